"""Scaled dot-product attention that leaves out some tokens.

    attention(q, k, v) = softmax(q k^T / sqrt(d) + log(mask) + bias) v                (1)
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.nn.attention import attention
from diffusion_jax.types import Array


def masked_attention(q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None) -> Array:
    """Attention (1).

    Args:
      q: [B, heads, T, d].
      k: [B, heads, S, d].
      v: [B, heads, S, d].
      mask: [B, S] bool, False for tokens to leave out; None keeps all. Each query must keep at least one token.
      bias: [1 or heads, T, S], the same for all samples; None is zero.

    Returns:
      [B, heads, T, d] in the type of v; the softmax is taken in float32.
    """
    if mask is None:
        return attention(q, k, v, bias)
    logits = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + bias[None]
    logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
