"""The encoder of T5 v1.1 (Raffel et al. 2019, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202): the states of a text's tokens.

With x the embedded tokens and norm(x) = gamma x / rms(x),

    y  = x + W_o attention(q, k, v),     q, k, v = W norm(x)                          (1)
    x' = y + W_2 (gelu(W_0 norm(y)) * W_1 norm(y))                                    (2)
    logits_ij = q_i . k_j + bias[bucket(j - i)]                                       (3)

No layer has a bias, q is not scaled, and the one table of (3) serves every block. A bucket holds distances: of B buckets one half
is for keys behind the query, j > i, the other for those before it and itself. In a half of h = B / 2 buckets, d = |j - i| has

    bucket(d) = d                                                    d < h / 2        (4)
                h / 2 + floor(h / 2 log(d / (h/2)) / log(D / (h/2))),    at most h - 1

so that distances from D on are all the same. The last block's output is normed once more.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.dit import DTYPES, REMAT, run_blocks
from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.rms_norm import RMSNorm
from diffusion_jax.types import Array

LEAST_BUCKETS = 4
"""Of (4): below it a half has no distance of its own."""


def buckets(distance: np.ndarray, number: int = 32, most: int = 128) -> np.ndarray:
    """(4): where distances lie, in the float32 steps of the published code.

    At some distances the logarithm is a whole number and rounding decides, 16, 32 and 64 of the published ones.

    Args:
      distance: key minus query, any shape of int.
      number: B, a multiple of four.
      most: D, in tokens.

    Returns:
      0 ... B - 1, int32, shaped like `distance`.

    Raises:
      ConfigError: no such number of buckets, or a largest distance that has a bucket of its own.
    """
    half = number // 2
    exact = half // 2
    if number % LEAST_BUCKETS or number < LEAST_BUCKETS:
        raise ConfigError(f"buckets of distances are a multiple of {LEAST_BUCKETS}, got {number}")
    if most <= exact:
        raise ConfigError(f"of {number} buckets {exact} hold one distance each: the largest distance is above that, got {most}")
    far = np.abs(distance)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(most / exact))
    rough = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    return np.where(far < exact, far, np.minimum(rough, half - 1)).astype(np.int32) + half * (distance > 0).astype(np.int32)


class Near(NamedTuple):
    """What every block sees beside its tokens.

    Attributes:
      bias: of (3), [heads, T, T] float32.
      mask: [B, T], False for tokens that none attends to; None leaves none out.
    """

    bias: Array
    mask: Array | None


class Block(nn.Module):
    """(1) and (2).

    Attributes:
      heads, head_channels: of the attention; their product need not be the width.
      hidden: channels of W_0 and W_1.
      eps: of the norms.
      dtype: of the products.

    Parameters: norm1, qkv, proj, norm2, gate (W_0), fc1 (W_1), fc2 (W_2).
    """

    heads: int
    head_channels: int
    hidden: int
    eps: float = 1e-6
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, near: Near) -> Array:
        """x [B, T, D] -> [B, T, D], the type of x."""
        width = x.shape[-1]
        inner = self.heads * self.head_channels
        q, k, v = split_heads(self._linear("qkv", 3 * inner, width)(RMSNorm(self.eps, name="norm1")(x)), 3, self.heads)
        # `masked_attention` divides by this root: of 64 channels a power of two, so that nothing is rounded.
        out = masked_attention(q * self.head_channels**0.5, k, v, near.mask, near.bias)
        x = x + self._linear("proj", width, inner)(join_heads(out)).astype(x.dtype)
        h = RMSNorm(self.eps, name="norm2")(x)
        gate = nn.gelu(self._linear("gate", self.hidden, width)(h), approximate=True)
        h = gate * self._linear("fc1", self.hidden, width)(h)
        return x + self._linear("fc2", width, self.hidden)(h).astype(x.dtype)

    def _linear(self, name: str, features: int, fan_in: int) -> Linear:
        return Linear(features, nn.initializers.normal(fan_in**-0.5), self.dtype, use_bias=False, name=name)


class T5Encoder(nn.Module):
    """The encoder; XXL's is the third text encoder of Stable Diffusion 3.

    Attributes:
      vocab: number of tokens.
      width: channels D of a token.
      layers: number of blocks.
      heads, head_channels, hidden, eps, dtype: of a block.
      buckets, distance: B and D of (4).
      scan: one traced block over stacked parameters, see models/dit.py:DiT.
      remat: what the backward pass computes again, see models/dit.py:DiT.

    Parameters: token [vocab, D], bias [buckets, heads], blocks_0 ... or blocks, norm.

    Example:
      tower = T5Encoder(**preset('t5-v1.1-xxl'))
      states = tower.apply({'params': params}, tokens)              # [B, 256] int -> [B, 256, 4096]
    """

    vocab: int = 32128
    width: int = 768
    layers: int = 12
    heads: int = 12
    head_channels: int = 64
    hidden: int = 2048
    eps: float = 1e-6
    dtype: str = "float32"
    buckets: int = 32
    distance: int = 128
    scan: bool = False
    remat: str | None = None

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None) -> Array:
        """The states of texts.

        Args:
          tokens: [B, T] int.
          mask: [B, T], False for tokens that none attends to. Stable Diffusion 3 has none: what fills up is attended to.

        Returns:
          [B, T, D] float32; NaN where a token is beyond the vocabulary.

        Raises:
          ConfigError: an unknown option.
        """
        for kind, value, known in (("dtype", self.dtype, DTYPES), ("remat", self.remat or "full", REMAT)):
            if value not in known:
                raise unknown(kind, value, known)
        places = np.arange(tokens.shape[1])
        table = self.param("bias", nn.initializers.normal(self.width**-0.5), (self.buckets, self.heads), jnp.float32)
        bucket = buckets(places[None] - places[:, None], self.buckets, self.distance)                     # [T, T]
        near = Near(table[bucket].transpose(2, 0, 1), None if mask is None else mask.astype(bool))
        token = self.param("token", nn.initializers.normal(1.0), (self.vocab, self.width), jnp.float32)
        # Sums are kept in float32 where products are not: with the published weights they leave what bfloat16 tells apart.
        x = jnp.take(token, tokens, axis=0, mode="fill", fill_value=jnp.nan).astype(jnp.float32)
        options = self.heads, self.head_channels, self.hidden, self.eps, self.dtype
        x = run_blocks(Block, options, self.layers, self.scan, self.remat, x, near)
        return RMSNorm(self.eps, name="norm")(x)


PRESETS = {
    # Encoders of T5 v1.1; what follows is millions of parameters.
    "t5-v1.1-small": {"width": 512, "layers": 8, "heads": 6, "hidden": 1024},                        # 35
    "t5-v1.1-base": {"width": 768, "layers": 12, "heads": 12, "hidden": 2048},                       # 110
    "t5-v1.1-large": {"width": 1024, "layers": 24, "heads": 16, "hidden": 2816},                     # 341
    "t5-v1.1-xl": {"width": 2048, "layers": 24, "heads": 32, "hidden": 5120},                        # 1224
    "t5-v1.1-xxl": {"width": 4096, "layers": 24, "heads": 64, "hidden": 10240},                      # 4762
    "tiny": {"vocab": 512, "width": 32, "layers": 2, "heads": 2, "head_channels": 16, "hidden": 64},
}


def preset(name: str) -> dict[str, int]:
    """The options of a published encoder, and of a tiny one for tests and small pages.

    Raises:
      ConfigError: no such encoder; names the nearest.

    Example:
      dict(name='diffusion_jax.models.t5:T5Encoder', **preset('t5-v1.1-xxl'), scan=True, dtype='bfloat16')
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
