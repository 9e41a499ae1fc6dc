"""Scaled dot-product attention (Vaswani et al. 2017, equation 1), the one place where it is computed.

    attention(q, k, v) = softmax(q k^T / sqrt(d)) v                                   (1)
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def attention(q: Array, k: Array, v: Array) -> Array:
    """Attention (1) with the heads before the tokens, so that every product is over contiguous matrices.

    Args:
      q: [B, heads, T, d].
      k: [B, heads, S, d].
      v: [B, heads, S, d].

    Returns:
      [B, heads, T, d] in the type of v; the softmax is taken in float32.
    """
    logits = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)  # [B, heads, T, S]
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bhsd->bhtd", weights, v)
