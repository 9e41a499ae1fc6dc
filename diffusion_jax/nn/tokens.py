"""How the next token is drawn from logits: temperature, the k most likely, the nucleus, guidance.

    token = argmax(logits / temperature + g),   g Gumbel noise                        (1)      the same as a draw from the softmax
    guided = null + w (cond - null)                                                   (2)      2207.12598 for logits

References: Holtzman et al. 2019, arXiv 1904.09751 (nucleus, top-p).
"""
from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def top_k(logits: Array, k: int) -> Array:
    """The k largest logits of [..., V] and those equal to the least of them, the others -inf; 0 keeps all."""
    if not 0 < k < logits.shape[-1]:
        return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def top_p(logits: Array, p: float) -> Array:
    """The most likely tokens of [..., V] whose probabilities first sum to p, the one that crosses it too; the others -inf.

    0 and 1 keep all.
    """
    if not 0 < p < 1:
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    total = jnp.cumsum(jnp.take_along_axis(jax.nn.softmax(logits), order, -1), -1)
    before = jnp.concatenate([jnp.zeros_like(total[..., :1]), total[..., :-1]], -1)
    keep = jnp.take_along_axis(before < p, jnp.argsort(order, axis=-1), -1)
    return jnp.where(keep, logits, -jnp.inf)


def filtered(logits: Array, temperature: float = 1.0, k: int = 0, p: float = 0.0) -> Array:
    """Logits [..., V] divided by the temperature, then cut off by `top_k` and `top_p`."""
    return top_p(top_k(logits / temperature, k), p)


def choose(logits: Array, gumbel: Array) -> Array:
    """(1) for logits that `filtered` has seen: int32 [...], given noise shaped like them."""
    return jnp.argmax(logits + gumbel, axis=-1).astype(jnp.int32)
