"""Times of published schedulers that count noise levels, as grids for `sample`.

Schedulers that came after k-diffusion take their times from a table of T noise levels r_t = sigma_t / alpha_t in two steps. First
N times between 0 and T - 1 (times.py has the roundings):

    linspace    T - 1 ... 0 in equal parts, not rounded unless asked                          (1)
    leading     (N - 1) k + offset, ..., k + offset, offset      with k = T // N              (2)
    trailing    T - 1, T - 1 - k, ...                            with k = T / N, rounded      (3)

of which some leave out the last ones: with `spare` = 1 they lay N + 1 times and take the first N. Then, where they are asked to,
N levels between those of the first and the last time in their place:

    karras      (a^(1/7) + i / (N - 1) (b^(1/7) - a^(1/7)))^7                                 (4)  2206.00364 eq. 5
    exponential a (b / a)^(i / (N - 1))                                                       (5)
    beta        b + (a - b) times the quantile 1 - i / (N - 1) of Beta(0.6, 0.6)              (6)  2407.12173

The step behind the last one ends at a clean image, or at time 0.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.diffusion.process import DDPM, Flow
from diffusion_jax.types import Process

SPACINGS = ("linspace", "leading", "trailing")
LEVELS = ("", "karras", "exponential", "beta")
SMALLEST_BAR = 2.0**-24
"""Stands for an alpha_bar of 0, whose noise level would be infinite."""
RHO, SHAPE = 7.0, 0.6
FLOW_STEPS = 1000
"""How many times a flow was trained with, as far as its first one tells: 1 - 1 / 1000."""


def noise_levels(process: DDPM) -> np.ndarray:
    """sigma / alpha of every time, [T] float64, finite at zero terminal signal too."""
    bar = process.alpha_bar[1:-1].astype(np.float64)
    bar = np.where(bar > 0, bar, SMALLEST_BAR)
    return np.sqrt((1 - bar) / bar)


def scheduler(
    process: Process, steps: int, spacing: str = "linspace", offset: int = 0, spare: int = 0, whole: bool = False,
    levels: str = "", low: float = 0.0, high: float = 0.0, last: int = -1, lowest: float = 0.0,
) -> np.ndarray:
    """The times of a scheduler, [steps + 1], int32 where all of them are whole.

    Args:
      process: a table, or a flow, which has equal parts of 1 - 1 / 1000 ... 0; with `spare` = 1 of 1 ... 1 / 1000, and 0 for
        the last of them, which is left out. A flow takes no other options.
      steps: how many.
      spacing: (1), (2) or (3).
      offset: of (2).
      spare: times that are laid beyond `steps` and left out.
      whole: round the times of (1).
      levels: (4), (5) or (6); '' keeps the times.
      low, high: ends of the levels; 0: those of the first and the last time.
      last: where the last step ends: -1 is clean, 0 the first time of the table.
      lowest: the smallest log(alpha / sigma) that (1) to (3) reach; 0 for all.

    Raises:
      ConfigError: an unknown word, a step count that the table does not have, ends outside of it.
    """
    number("steps of a scheduler", steps, 1, integer=True)
    if isinstance(process, Flow):
        if spare:
            return np.append(np.linspace(1, 1 / FLOW_STEPS, steps + 1)[:-1], 0).astype(np.float32)
        return np.linspace(1 - 1 / FLOW_STEPS, 0, steps + 1, dtype=np.float32)
    if not isinstance(process, DDPM):
        raise ConfigError(f"times of a scheduler need a DDPM process, this one is {process}: use karras or log_snr")
    for kind, word, words in (("spacing", spacing, SPACINGS), ("levels", levels, LEVELS)):
        if word not in words:
            raise unknown(kind, word, words)
    t = _spaced(process, steps + spare, spacing, offset, _reached(process, lowest))[:steps]
    t = np.round(t).astype(np.int32) if spacing != "linspace" or whole else t.astype(np.float32)
    if levels:
        t = _at(process, _between(process, t, steps, levels, low, high))
    return np.append(t, np.asarray(last, t.dtype))


def _reached(process: DDPM, lowest: float) -> int:
    """How many times of the table have log(alpha / sigma) >= lowest."""
    return int(np.sum(-np.log(noise_levels(process)) >= lowest)) if lowest else process.steps


def _spaced(process: DDPM, steps: int, spacing: str, offset: int, total: int) -> np.ndarray:
    """(1), (2) or (3) over the first `total` times of the table, descending float64."""
    if not 1 <= steps <= total:
        raise ConfigError(f"the table has {total} times, for {steps} of them there are too few: choose fewer steps")
    if steps == 1 and spacing != "trailing":
        raise ConfigError(f"one step of {spacing} times begins where there is no noise: choose spacing=trailing, or more steps")
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps)[::-1]
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -process.steps / steps)) - 1
    t = np.arange(steps)[::-1] * (total // steps) + offset
    if t[-1] < 0 or t[0] >= process.steps:
        raise ConfigError(f"times {t[-1]} ... {t[0]} leave 0 ... {process.steps - 1}: change the offset or the steps")
    return t.astype(np.float64)


def _between(process: DDPM, t: np.ndarray, steps: int, levels: str, low: float, high: float) -> np.ndarray:
    """(4), (5) or (6) between the levels of the first and the last of the times t, or between the given ends."""
    table = noise_levels(process)
    first, final = np.interp([t[0], t[-1]], np.arange(process.steps), table)
    a, b = high or first, low or final
    if not table[0] * (1 - 1e-6) <= b <= a <= table[-1] * (1 + 1e-6):
        raise ConfigError(
            f"noise levels {b:g} ... {a:g} leave those that were trained, {table[0]:g} ... {table[-1]:g}: leave low and high out"
        )
    i = np.linspace(0, 1, steps)
    if levels == "karras":
        return (a ** (1 / RHO) + i * (b ** (1 / RHO) - a ** (1 / RHO))) ** RHO
    if levels == "exponential":
        return a * (b / a) ** i
    from scipy.stats import beta  # half a second, which other grids do not wait for

    return b + (a - b) * beta.ppf(1 - i, SHAPE, SHAPE)


def _at(process: DDPM, levels: np.ndarray) -> np.ndarray:
    """The times [N] float32 of noise levels [N]."""
    with jax.ensure_compile_time_eval():
        return np.maximum(np.asarray(process.time(jnp.asarray(levels, jnp.float32)), np.float32), 0)
