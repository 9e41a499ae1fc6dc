"""The transformer of CLIP and GLIDE (Vaswani et al. 2017, with the norm before each part as in GPT-2).

    y   = x + W attention(q, k, v),   q, k, v = W' norm(x)                            (1)
    x'  = y + W2 act(W1 norm(y))                                                      (2)

A causal transformer lets token i see tokens 0 ... i; a mask takes tokens away from all others.
Layers start as PyTorch's do, as in GLIDE, unless `start` says otherwise (nn/init.py).
"""
from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.init import TORCH, Init
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.types import Array


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x), OpenAI's approximation of the GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


def causal(length: int) -> np.ndarray:
    """What is added to the logits of attention so that no token sees a later one: [1, length, length] of 0 and -inf."""
    return np.where(np.tri(length, dtype=bool), 0, -np.inf).astype(np.float32)[None]


class BlockInit(NamedTuple):
    """How the layers of a block start."""

    qkv: Init = TORCH
    proj: Init = TORCH
    fc1: Init = TORCH
    fc2: Init = TORCH


class Block(nn.Module):
    """The block (1), (2).

    Attributes:
      heads: a divisor of the width.
      hidden: width of W1 x; None is four times that of x.
      act: 'quick_gelu', 'gelu' (exact) or 'gelu_tanh'.
      eps: of the norms.
      dtype: of the products and the output.
      start: how the layers start.

    Parameters: norm1, qkv, proj, norm2, fc1, fc2.
    """

    heads: int
    hidden: int | None = None
    act: str = "gelu"
    eps: float = 1e-5
    dtype: str = "float32"
    start: BlockInit = BlockInit()

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, bias: np.ndarray | None = None) -> Array:
        """x [B, T, D], mask [B, T] False for tokens that none sees, bias [1 or heads, T, T] -> [B, T, D].

        Raises:
          ConfigError: the heads do not divide the width, or an unknown activation.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise ConfigError(f"a width of {width} does not divide into {self.heads} heads: change one")
        if self.act not in ACTIVATIONS:
            raise unknown("activation", self.act, ACTIVATIONS)
        norm = partial(LayerNorm, self.eps)
        q, k, v = split_heads(self._linear("qkv", 3 * width)(norm(name="norm1")(x)), 3, self.heads)  # each [B, heads, T, d]
        x = x + self._linear("proj", width)(join_heads(masked_attention(q, k, v, mask, bias)))
        h = ACTIVATIONS[self.act](self._linear("fc1", self.hidden or 4 * width)(norm(name="norm2")(x)))
        return x + self._linear("fc2", width)(h)

    def _linear(self, name: str, features: int) -> Linear:
        init: Init = getattr(self.start, name)
        return Linear(features, init.kernel, self.dtype, bias_init=init.bias, name=name)


class Transformer(nn.Module):
    """Blocks in a row.

    Attributes:
      layers: how many.
      is_causal: whether tokens see earlier ones and themselves only.

    and those of `Block`.

    Parameters: blocks_0, blocks_1 ...
    """

    layers: int
    heads: int
    hidden: int | None = None
    act: str = "gelu"
    eps: float = 1e-5
    is_causal: bool = False
    dtype: str = "float32"
    start: BlockInit = BlockInit()

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> list[Array]:
        """x [B, T, D], mask [B, T] -> what goes into the first block and what comes out of each, layers + 1 of [B, T, D]."""
        bias = causal(x.shape[1]) if self.is_causal else None
        states = [x.astype(self.dtype)]
        for i in range(self.layers):
            block = Block(self.heads, self.hidden, self.act, self.eps, self.dtype, self.start, name=f"blocks_{i}")
            states.append(block(states[-1], mask, bias))
        return states
