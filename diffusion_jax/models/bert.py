"""The text encoder of the first latent diffusion model of texts (Rombach et al. 2112.10752): a transformer trained with it.

    x = token + position,    x <- x + attention(LN(x)),    x <- x + W gelu(W' LN(x)),    seq = LN(x)                 (1)

It sees tokens of BERT's vocabulary, and every token sees all others. Its attention has 8 heads of 64 channels whatever its width.
Layers start as PyTorch's do (nn/init.py), tables as N(0, 0.02^2).
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.spatial import LAYER_EPS, CrossAttention
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array


class TextEncoder(nn.Module):
    """(1).

    Attributes:
      vocab: number of tokens.
      context: the longest text, in tokens.
      width: channels of a token.
      layers: pairs of attention and MLP.
      heads, head_channels: of the attention.
      dtype: of the products.

    Parameters: token [vocab, D], position [context, D], norm1_<i>, attn_<i>, norm2_<i>, fc1_<i>, fc2_<i>, norm.
    """

    vocab: int = 30522
    context: int = 77
    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_channels: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """tokens [B, L] int, L at most `context` -> [B, L, width]; NaN for a token beyond the vocabulary."""
        init = nn.initializers.normal(0.02)
        token = self.param("token", init, (self.vocab, self.width), jnp.float32)
        position = self.param("position", init, (self.context, self.width), jnp.float32)
        x = jnp.take(token, tokens, axis=0, mode="fill", fill_value=jnp.nan) + position[None, : tokens.shape[1]]
        for i in range(self.layers):
            h = LayerNorm(LAYER_EPS, name=f"norm1_{i}")(x)
            x = x + CrossAttention(self.heads, self.dtype, self.heads * self.head_channels, name=f"attn_{i}")(h, h)
            h = LayerNorm(LAYER_EPS, name=f"norm2_{i}")(x)
            h = nn.gelu(torch_linear(4 * self.width, dtype=self.dtype, name=f"fc1_{i}")(h), approximate=False)
            x = x + torch_linear(self.width, dtype=self.dtype, name=f"fc2_{i}")(h)
        return LayerNorm(LAYER_EPS, name="norm")(x.astype(jnp.float32))
