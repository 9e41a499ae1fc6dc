"""Normalisation over the channels of a token, in float32 whatever the input.

    y = (x - mean(x)) / sqrt(var(x) + eps)                                            (1)
"""
from __future__ import annotations

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
