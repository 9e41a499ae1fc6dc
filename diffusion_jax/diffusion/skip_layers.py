"""Skip-layer guidance: away from what a transformer predicts without some of its blocks (Stable Diffusion 3.5
medium; Hyung et al. 2411.18664).

With c the prediction under the condition, k that of the same network which passes over some blocks, and g what
other guidance has made of c, or c itself,

    x0 = g + s (c - k)    in steps i of N with   start < i / N < stop,    x0 = g in all others      (1)

both ends excluded, i = 0 the first step. (1) is affine, so that it is the same on x0, eps or a velocity. What k
lacks is structure rather than the text.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number
from diffusion_jax.types import Array, Cond, Denoiser, Guidance, Key, Prediction


@dataclass(frozen=True)
class Skip:
    """Of (1).

    Attributes:
      layers: numbers of the blocks that are passed over, both streams of them where there are two.
      scale: s.
      start, stop: shares of the steps, 0 ... 1.

    Raises:
      ConfigError: no blocks, or a number out of bounds.
    """

    layers: tuple[int, ...]
    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2

    def __post_init__(self):
        if not self.layers or min(self.layers) < 0:
            raise ConfigError(f"skip names blocks by their numbers, 0 or more: got {self.layers}")
        number("scale of skip", self.scale)
        if not number("start of skip", self.start, 0, 1) < number("stop of skip", self.stop, 0, 1):
            raise ConfigError(f"skip is from start to stop of the steps, got {self.start} and {self.stop}: "
                              "exchange them")

    @property
    def text(self) -> str:
        """As pipelines/spelling.py reads it, without the scale."""
        return f"layers={'.'.join(map(str, self.layers))},start={self.start},stop={self.stop}"

    def steps(self, count: int) -> np.ndarray:
        """In which of so many steps it guides, bool [count]."""
        i = np.arange(count)
        return (count * self.start < i) & (i < count * self.stop)


def step_of(times: np.ndarray) -> Callable[[Array], Array]:
    """t -> the number of the step that begins at t, or that t lies in.

    Of the descending times of all steps, [N + 1].
    A second-order sampler asks at both ends of a step: the later end belongs to the next one.
    """
    ascending = jnp.asarray(times, float)[::-1]
    last = len(times) - 2

    def step(t: Array) -> Array:
        return jnp.clip(last + 1 - jnp.searchsorted(ascending, jnp.asarray(t, float)), 0, last)

    return step


def skip_layers(
    skip: Skip, scale: Array | float, without: Denoiser, times: np.ndarray, full: Denoiser | None = None
) -> Guidance:
    """(1): a network call more in the steps that it guides, two with `full`, none in the others. t is a scalar.

    Args:
      skip: the steps.
      scale: s, a (traced) value.
      without: k, the denoiser of the network without those blocks.
      times: of all steps, [N + 1], descending.
      full: c, the bare denoiser; None where what is guided is that itself.

    Example:
      chain(skip_layers(Skip((7, 8, 9)), 2.8, without, times, denoise), CFG(4.5, null))(denoise)
    """
    guides = jnp.asarray(skip.steps(len(times) - 1))
    step = step_of(times)

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            p = denoise(x, t, cond, key)

            def led_away(x0: Array) -> Array:
                c = p.x0 if full is None else full(x, t, cond, key).x0
                return x0 + scale * (c - without(x, t, cond, key).x0)

            return replace(p, x0=jax.lax.cond(guides[step(t)], led_away, lambda x0: x0, p.x0))

        return guided

    return guide
