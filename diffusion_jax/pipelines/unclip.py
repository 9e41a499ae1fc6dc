"""The parts of unCLIP put together (Ramesh et al. 2022, arXiv 2204.06125): text -> prior -> decoder -> upsamplers.

    slerp(a, b, v) = (sin((1 - v) w) a + sin(v w) b) / sin(w),      cos(w) = a . b / |a||b|                  (1)
"""
from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.types import Array

PARALLEL = 0.9995
"""Above this cosine, (1) is the straight line, which it then cannot be told from."""


def slerp(a: Array, b: Array, v: float, channelwise: bool = False) -> Array:
    """(1), row by row: a at v = 0, b at v = 1.

    Args:
      a, b: [..., D].
      v: where between them.
      channelwise: an angle for every channel, arccos of its own share of the cosine, as diffusers' interpolation of unCLIP
        computes it; for equal numbers only, it is no arc.

    Returns:
      [..., D].
    """
    products = a * b / (jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True))
    cos = products if channelwise else jnp.sum(products, axis=-1, keepdims=True)
    w = jnp.arccos(jnp.clip(cos, -1, 1))
    line, arc = (1 - v) * a + v * b, (jnp.sin((1 - v) * w) * a + jnp.sin(v * w) * b) / jnp.sin(w)
    return jnp.where(jnp.abs(cos) > PARALLEL, line, arc)
