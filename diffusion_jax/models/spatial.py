"""The spatial transformer of latent diffusion (Rombach et al. 2112.10752 sec. 3.3): a UNet's attention block that sees tokens.

The pixels of x become tokens, h = W norm(x), which `depth` blocks change by

    h <- h + attention(q(h'), k(h'), v(h'))                                           (1)      h' = LN(h)
    h <- h + attention(q(h'), k(seq), v(seq))                                         (2)      seq = h' where there is none
    h <- h + W (a gelu(g)),   a, g = W h'                                             (3)      GEGLU, 2002.05202

each with a norm of its own; then out = x + W h, whose W starts at zero, the other layers as PyTorch's (nn/init.py).
The norm over groups has eps 1e-6, whatever the UNet's.
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.linear import Linear, torch_linear
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array

NORM_EPS, LAYER_EPS = 1e-6, 1e-5


class CrossAttention(nn.Module):
    """The attention of (1) and (2): queries of one sequence, keys and values of another, none of them with a bias.

    Attributes:
      heads: a divisor of the inner channels.
      dtype: of the products and the output.
      inner: channels of the queries, D by default.
    """

    heads: int
    dtype: str = "float32"
    inner: int | None = None

    @nn.compact
    def __call__(self, x: Array, seq: Array, mask: Array | None = None) -> Array:
        """x [B, T, D], seq [B, S, E], mask [B, S] with False for tokens to leave out -> [B, T, D]."""
        def project(name: str, tokens: Array) -> Array:
            out = torch_linear(self.inner or x.shape[-1], dtype=self.dtype, use_bias=False, name=name)(tokens)
            return split_heads(out, 1, self.heads)[0]                                              # [B, heads, T or S, d]

        out = masked_attention(project("q", x), project("k", seq), project("v", seq), mask)
        return torch_linear(x.shape[-1], dtype=self.dtype, name="out")(join_heads(out))


class Block(nn.Module):
    """One block (1) to (3).

    Attributes:
      heads: a divisor of the channels.
      dtype: of the products and the output.
    """

    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: Array, seq: Array | None, mask: Array | None) -> Array:
        """h [B, T, D], seq [B, S, E] or None, mask [B, S] or None -> [B, T, D]."""
        tokens = LayerNorm(LAYER_EPS, name="norm1")(h)
        h = h + CrossAttention(self.heads, self.dtype, name="attn1")(tokens, tokens)
        tokens = LayerNorm(LAYER_EPS, name="norm2")(h)
        h = h + CrossAttention(self.heads, self.dtype, name="attn2")(tokens, tokens if seq is None else seq, mask)
        tokens = LayerNorm(LAYER_EPS, name="norm3")(h)
        a, gate = jnp.split(torch_linear(8 * h.shape[-1], dtype=self.dtype, name="ff_in")(tokens), 2, axis=-1)
        return h + torch_linear(h.shape[-1], dtype=self.dtype, name="ff_out")(a * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module):
    """The whole transformer over the pixels of an image.

    Attributes:
      heads: attention heads, a divisor of the channels.
      depth: blocks.
      groups: of the norm.
      dtype: of the products and the output.
    """

    heads: int
    depth: int = 1
    groups: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, seq: Array | None = None, seq_mask: Array | None = None) -> Array:
        """x [B, H, W, C], seq [B, L, D], seq_mask [B, L] -> [B, H, W, C]."""
        b, height, width, c = x.shape
        h = GroupNorm(self.groups, NORM_EPS, name="norm")(x).reshape(b, height * width, c)
        h = torch_linear(c, dtype=self.dtype, name="proj_in")(h)
        mask = None if seq is None or seq_mask is None else seq_mask.astype(bool)
        for i in range(self.depth):
            h = Block(self.heads, self.dtype, name=f"block_{i}")(h, seq, mask)
        return x + Linear(c, nn.initializers.zeros, self.dtype, name="proj")(h).reshape(x.shape)
