"""Scaled dot-product attention (Vaswani et al. 2017, equation 1), the one place where it is computed.

    attention(q, k, v) = softmax(q k^T / sqrt(d) + bias) v                            (1)

On long sequences a kernel of the platform's computes it (nn/kernels.py), elsewhere XLA does, and where rules in force split the
tokens (nn/partition.py): a kernel wants them whole.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.nn import kernels
from diffusion_jax.nn.partition import constrain, splits
from diffusion_jax.types import Array


def attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """Attention (1) with the heads before the tokens, so that every product is over contiguous matrices.

    The weights are normalised after they have met v: T x d divisions instead of T x S, a third of the time on a CPU.

    Args:
      q: [B, heads, T, d].
      k: [B, heads, S, d].
      v: [B, heads, S, d].
      bias: [heads, T, S], the same for all samples; None is zero.

    Returns:
      [B, heads, T, d] in the type of v; the softmax is taken in float32.
    """
    q, k, v = constrain(q, "attention/q"), constrain(k, "attention/k"), constrain(v, "attention/v")
    platform, mesh = kernels.current()
    parted = any(splits(x, f"attention/{name}", 2) for x, name in ((q, "q"), (k, "k"), (v, "v")))
    chosen = "xla" if parted else kernels.backend(platform, q, k, bias is not None, mesh)
    if chosen != "xla":
        return constrain(kernels.cudnn(q, k, v) if chosen == "cudnn" else kernels.flash(q, k, v, mesh), "attention/q")
    return constrain(plain(q, k, v, bias), "attention/q")


def plain(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """(1) in XLA's own products, as `attention`."""
    logits = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)  # [B, heads, T, S]
    if bias is not None:
        logits = logits + bias[None]
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    out = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)


def split_heads(x: Array, parts: int, heads: int) -> Array:
    """[B, T, parts * D] -> [parts, B, heads, T, d]."""
    b, t, d = x.shape
    return x.reshape(b, t, parts, heads, d // parts // heads).transpose(2, 0, 3, 1, 4)


def join_heads(x: Array) -> Array:
    """[B, heads, T, d] -> [B, T, D]."""
    b, heads, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, t, heads * d)
