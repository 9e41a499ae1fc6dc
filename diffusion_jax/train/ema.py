"""Exponential moving averages of the weights, each with a profile that says how fast it forgets.

    ema_t = beta_t ema_{t-1} + (1 - beta_t) params_t,        t = 1, 2, ... updates done          (1)

    constant    beta_t = d,  or with warm-up  min(d, (1 + t) / (10 + t))                         (2)
    power       beta_t = (1 - dt/t)^(gamma + 1),             dt = 1                              (3)
    half-life   beta_t = 2^(-dt / min(h, r (t - dt)))                                            (6)

(6) counts what was trained on before this update, as EDM's code does: the first average is the parameters themselves. The code of
EDM2 has (6) too, with t in place of t - dt.

Under (3) the weight of params_i in ema_t is proportional to i^gamma whatever t is, so the average covers the same fraction of a
run however long it gets. That fraction is named by the standard deviation of the profile relative to the run's length,

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)),                                           (4)

and (4) is a cubic in gamma:  gamma^3 + 7 gamma^2 + (16 - 1/std^2) gamma + (12 - 1/std^2) = 0.    (5)

t may count anything else that grows with training, images for example, if dt is what one update adds to it.

References: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models (EDM2, 2024), section 3.1 and
appendix C for (3)-(5); Karras et al., EDM (2022), for (6).
"""
from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.types import Array, Params

COUNTED = ("before", "after")


def exponent(std: float) -> float:
    """gamma of a power average of relative standard deviation `std`: the largest root of (5)."""
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real[np.abs(roots.imag) < 1e-6].max())


def relative_std(gamma: float) -> float:
    """(4), the inverse of `exponent`."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


class Profile(Protocol):
    """How fast an average forgets."""

    def beta(self, step: Array, delta: Array | float = 1.0) -> Array:
        """The scalar beta_t in [0, 1) of (1), t = `step` = the updates done, counting this one: 1, 2, ...; dt = `delta`."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """(2): the classic average.

    Attributes:
      decay: d in [0, 1), 0.9999 in most diffusion papers.
      warmup: whether early averages forget faster, so that they are not still the initial weights.

    Raises:
      ConfigError: a decay outside [0, 1).
    """

    decay: float
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay of an average must lie in [0, 1), got {self.decay}")

    def beta(self, step: Array, delta: Array | float = 1.0) -> Array:
        """(2) at `step` updates; `delta` does not matter."""
        step = jnp.asarray(step, jnp.float32)
        decay = jnp.full_like(step, self.decay)
        return jnp.minimum(decay, (1 + step) / (10 + step)) if self.warmup else decay


@dataclasses.dataclass(frozen=True)
class Power:
    """(3): EDM2's power function profile.

    Attributes:
      std: the width (4) relative to the run's length, in (0, 0.288]; EDM2 keeps 0.05 and 0.10. 0.288 (gamma = 0) averages evenly.

    Raises:
      ConfigError: a width that no gamma >= 0 has.
    """

    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std <= 12**-0.5:
            raise ConfigError(f"std of a power average must lie in (0, 0.288], got {self.std}")

    @functools.cached_property
    def gamma(self) -> float:
        """The exponent that has this width: the largest root of (5)."""
        return exponent(self.std)

    def beta(self, step: Array, delta: Array | float = 1.0) -> Array:
        """(3) at `step` updates: 0 at the first, so the initial weights leave no trace."""
        step = jnp.maximum(jnp.asarray(step, float), delta)
        return jnp.exp((self.gamma + 1) * jnp.log1p(-delta / step))    # log1p keeps 1 - 1/t exact after millions of updates


@dataclasses.dataclass(frozen=True)
class HalfLife:
    """(6): EDM's average.

    Attributes:
      half_life: h, the updates after which half of a weight is forgotten.
      rampup: r, or None for a half-life that is the same from the start.
      counted: whether r counts what came 'before' an update, as in EDM's code, or what there is 'after' it, as in EDM2's.

    Raises:
      ConfigError: a half-life or a ramp that is not positive, an unknown `counted`.
    """

    half_life: float
    rampup: float | None = 0.05
    counted: str = "before"

    def __post_init__(self) -> None:
        if self.half_life <= 0:
            raise ConfigError(f"half_life of an average is a positive number of updates, got {self.half_life}")
        if self.rampup is not None and self.rampup <= 0:
            raise ConfigError(f"rampup of an average is a positive number, or None for none: got {self.rampup}")
        if self.counted not in COUNTED:
            raise unknown("value of counted", self.counted, COUNTED)

    def beta(self, step: Array, delta: Array | float = 1.0) -> Array:
        """(6) at `step` updates."""
        half = jnp.full_like(jnp.asarray(step, jnp.float32), self.half_life)
        if self.rampup is not None:
            half = jnp.minimum(half, self.rampup * (step if self.counted == "after" else step - delta))
        return jnp.exp2(-delta / jnp.maximum(half, 1e-8))


def update(ema: Params, params: Params, profile: Profile, step: Array, delta: Array | float = 1.0) -> Params:
    """(1) for every array.

    Args:
      ema: the average before, a pytree like `params`.
      params: the parameters after update number `step`.
      profile: gives beta_t.
      step: the number of updates done, counting this one (int scalar).
      delta: what this update added to `step`.
    """
    beta = profile.beta(step, delta)
    return jax.tree.map(lambda old, new: (beta * old + (1 - beta) * new).astype(old.dtype), ema, params)
