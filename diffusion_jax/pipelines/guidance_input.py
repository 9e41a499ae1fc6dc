"""Networks that are told the weight of guidance (models/guidance_weight.py), and so make in one
prediction what guidance mixes of two.

Their recipe's `guidance` is what they are told; what belongs to a second prediction is refused.
"""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.models.guidance_weight import KEY, reads_weight
from diffusion_jax.types import Array, Raw


def with_weight(task: Any, raw: Raw, weight: Array | float | None) -> Raw:
    """`raw` with the weight of guidance, one for all images, [1], where the network reads one.

    Args:
      task: what is sampled from.
      raw: conditions; a weight among them stays.
      weight: of the recipe; None for 1, no guidance.
    """
    if not reads_weight(task.cond) or KEY in raw:
        return raw
    return {**raw, KEY: jnp.full((1,), 1.0 if weight is None else weight, jnp.float32)}


def refusal(task: Any, name: str) -> str:
    """Why an option that belongs to a second prediction has no use; '' where the network is not
    told the weight."""
    if not reads_weight(task.cond):
        return ""
    return (
        f"{name} (--{name}) is of guidance by a second prediction, and this model makes one, told "
        "the weight of guidance: leave it out"
    )


def refuse_second(task: Any, **used: bool) -> None:
    """Raises ConfigError for an option that is used and that belongs to a second prediction which
    the network does not make."""
    for name, is_used in used.items():
        reason = refusal(task, name) if is_used else ""
        if reason:
            raise ConfigError(reason)
