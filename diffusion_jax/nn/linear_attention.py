"""Attention whose cost is linear in the number of tokens (Shen et al. 2018, "Efficient Attention", arXiv 1812.01243).

    context = softmax_S(k)^T v,        out = c softmax_d(q) context                   (1)

The softmax of the keys runs over the tokens, that of the queries over the channels of a head. c is 1 in the paper; lucidrains'
UNet has c = 1 / sqrt(d).
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def linear_attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention (1) with c = 1.

    Args:
      q: [B, heads, T, d].
      k: [B, heads, S, d].
      v: [B, heads, S, e].
      mask: [B, S] bool, False for tokens to leave out.

    Returns:
      [B, heads, T, e] in the type of v; both softmaxes are taken in float32.
    """
    k = k.astype(jnp.float32)
    if mask is not None:
        k = jnp.where(mask[:, None, :, None], k, -jnp.inf)
    k = jax.nn.softmax(k, axis=-2).astype(v.dtype)
    q = jax.nn.softmax(q.astype(jnp.float32), axis=-1).astype(v.dtype)
    context = jnp.einsum("bhsd,bhse->bhde", k, v)
    return jnp.einsum("bhtd,bhde->bhte", q, context)


def scaled_linear_attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention (1) with c = 1 / sqrt(d); see `linear_attention`."""
    return linear_attention(q, k, v, mask) * q.shape[-1] ** -0.5
