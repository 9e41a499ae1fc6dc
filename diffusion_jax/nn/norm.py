"""Normalisation over the channels of a token, in float32 whatever the input.

    y = (x - mean(x)) / sqrt(var(x) + eps)                                            (1)
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Layer normalisation (1) over the last axis without an affine map (Ba et al. 2016, arXiv 1607.06450).

    Args:
      x: [..., D], any float type.
      eps: added to the variance; DiT uses 1e-6.

    Returns:
      Shape and type of x; mean and variance are taken in float32.
    """
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(var + eps)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(1) with an affine map: gamma y + beta.

    Attributes:
      eps: added to the variance.

    Parameters: scale [D] (gamma), bias [D] (beta), both float32.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D], the type of x."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return (layer_norm(x.astype(jnp.float32), self.eps) * scale[None, None] + bias[None, None]).astype(x.dtype)
