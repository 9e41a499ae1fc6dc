"""Normalisation by the root of the mean square (Zhang & Sennrich 2019, arXiv 1910.07467), in float32 whatever the input.

    y = gamma x / sqrt(mean(x^2) + eps)                                               (1)
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


class RMSNorm(nn.Module):
    """(1) over the last axis; there is no mean to subtract and no bias to add.

    Attributes:
      eps: added to the mean square.

    Parameters: scale [D] (gamma), float32.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., D], any float type -> its shape and type."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.float32)
        mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean + self.eps) * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)
