"""Grids of times for sampling, and draws of times for training.

A grid function takes (process, steps) and returns [steps + 1] times from the noisiest to the clean one: int32 where the
process counts its times, float32 elsewhere. Integers are computed as integers; the published roundings are part of the methods:

    respace     sections of equal integer strides                                     (1)  2102.09672, official respacing
    leading     0, k, 2k, ...                      with k = T // steps                (2)  2305.08891 table 2
    trailing    T - 1, T - 1 - k, ...              with k = T / steps, rounded        (3)
    linspace    0 ... T - 1 in equal parts, rounded                                   (4)
    karras      sigma_i = (max^(1/rho) + i / (N-1) (min^(1/rho) - max^(1/rho)))^rho   (5)  2206.00364 eq. 5
    log_snr     equal steps of log(sigma / alpha)                                     (6)  2206.00927
    uniform     equal steps of t                                                      (7)

A single step begins at the noisiest time: in (4) and (7), which have both ends, by our choice; (1) and (2), which would begin at
time 0, where there is hardly any noise, refuse it.

Importance sampling draws t with p_t and divides its loss by T p_t, which leaves the expectation as it was:

    p_t = (1 - u) r_t / sum r + u / T,   r_t = sqrt(mean of the last `history` losses^2 at t)           (8)  2102.09672 sec. 3.3
"""
from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number
from diffusion_jax.diffusion.process import DDPM, LARGEST_RATIO
from diffusion_jax.types import Array, Key, Memory, Process


def _table(process: Process, what: str) -> int:
    """The length of a process that counts its times."""
    if not isinstance(process, DDPM):
        raise ConfigError(f"{what} times need a DDPM process, this one is continuous ({process}): use uniform, karras or log_snr")
    return process.steps


def space(spec: str | Sequence[int], steps: int) -> np.ndarray:
    """The times that a respacing string keeps of 0 ... steps - 1, ascending int32, (1).

    Args:
      spec: '250' (that many), '10,15,20' (that many of each of three equal parts), 'ddim50' (the integer stride that gives
        exactly 50), 'fast27' (GLIDE's upsampler schedule), '' (all), or a sequence of section counts.
      steps: length of the process.

    Raises:
      ConfigError: no such respacing.
    """
    if spec == "fast27":
        return np.append(space("10,10,3,2,2", steps)[:-1], np.int32(steps - 3))     # the noisiest time makes artefacts
    if isinstance(spec, str) and spec.startswith("ddim"):
        return _stride(_count(spec[4:], spec), steps)
    counts = [_count(part, spec) for part in spec.split(",")] if isinstance(spec, str) and spec else list(spec)
    return _sections(counts or [steps], steps)


def _count(text: str, spec: str) -> int:
    text = text.strip()
    # Of at most nine digits: longer ones are numbers of no table, and Python refuses to read those of thousands.
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise ConfigError(f"{spec!r} is no respacing: write '250', '10,15,20', 'ddim50' or 'fast27'")
    return int(text)


def _stride(count: int, steps: int) -> np.ndarray:
    counts = [len(range(0, steps, stride)) for stride in range(1, steps + 1)]
    if count not in counts:
        near = min(counts, key=lambda other: abs(other - count))
        raise ConfigError(f"no integer stride takes exactly {count} of {steps} times: 'ddim{near}' is the nearest that there is")
    return np.arange(0, steps, counts.index(count) + 1, dtype=np.int32)


def _sections(counts: Sequence[int], steps: int) -> np.ndarray:
    sizes = [steps // len(counts) + (i < steps % len(counts)) for i in range(len(counts))]
    kept, first = [], 0
    for size, count in zip(sizes, counts, strict=True):
        if not 1 <= count <= size:
            raise ConfigError(f"cannot take {count} of a section of {size} times: 1 ... {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        at = 0.0                                             # summed, not multiplied: the published rounding depends on it
        for _ in range(count):
            kept.append(first + round(at))
            at += stride
        first += size
    return np.array(sorted(set(kept)), np.int32)


def _closed(process: Process, descending: np.ndarray) -> np.ndarray:
    """The grid with its clean end."""
    return np.append(descending, np.asarray(process.t_clean, descending.dtype))


def _begun(times: np.ndarray, total: int, name: str) -> np.ndarray:
    """Descending times, refused where they are a single one below T - 1: sampling begins with noise, which is not there."""
    if len(times) == 1 and times[0] < total - 1:
        raise ConfigError(f"one step of {name} times begins at {times[0]} of {total}, not in noise: choose times 'trailing'")
    return times


def respace(process: Process, steps: int | str) -> np.ndarray:
    """(1): `steps` is a number or any respacing string of `space`.

    Raises:
      ConfigError: no such respacing, or a single step.
    """
    total = _table(process, "respaced")
    return _closed(process, _begun(space(str(steps), total)[::-1], total, "respaced"))


def leading(process: Process, steps: int, offset: int = 0, last: int = -1) -> np.ndarray:
    """(2); `offset` is 1 for Stable Diffusion. Never reaches T - 1. The last step ends at time `last`: -1 is clean, 0 almost.

    Raises:
      ConfigError: an offset that leaves 0 ... T - 1, a `last` that is neither, or a single step.
    """
    total = _table(process, "leading")
    _at_most(steps, total)
    if last not in (-1, 0):
        raise ConfigError(f"the last of leading times is -1, clean, or 0, almost: got {last}")
    offset = int(number("offset", offset, integer=True))
    times = np.arange(steps) * (total // steps) + offset
    if times[0] < 0 or times[-1] >= total:
        raise ConfigError(f"leading times {times[0]} ... {times[-1]} leave 0 ... {total - 1}: change the offset or the steps")
    return np.append(_begun(times[::-1].astype(np.int32), total, "leading"), np.int32(last))


def trailing(process: Process, steps: int) -> np.ndarray:
    """(3): starts at T - 1; the spacing for few steps and for zero terminal SNR."""
    total = _table(process, "trailing")
    _at_most(steps, total)
    return _closed(process, np.round(total - np.arange(steps) * (total / steps)).astype(np.int32) - 1)


def linspace(process: Process, steps: int) -> np.ndarray:
    """(4): both ends of the table; a single step begins at T - 1."""
    total = _table(process, "linspace")
    _at_most(steps, total)
    # One part of NumPy's would be 0 alone.
    times = np.round(np.linspace(0, total - 1, steps)) if steps > 1 else np.array([total - 1])
    return _closed(process, times[::-1].astype(np.int32))


def _at_most(steps: int, total: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= total:
        raise ConfigError(f"steps must lie in 1 ... {total}, got {steps}")


def _noise_ends(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """sigma / alpha at both ends of the training range, unless given. A DDPM process ends at its first and last table entry.

    Raises:
      ConfigError: ends that are not 0 < sigma_min < sigma_max, or not finite.
    """
    clean = 0 if isinstance(process, DDPM) else 1e-3 * process.t_max
    with jax.ensure_compile_time_eval():
        t = jnp.asarray([clean, process.t_max])
        low, high = (float(v) for v in process.sigma(t) / jnp.maximum(process.alpha(t), 1 / LARGEST_RATIO))
    low = getattr(process, "sigma_min", low) if sigma_min is None else sigma_min
    high = high if sigma_max is None else sigma_max
    if not 0 < low < high < float("inf"):
        raise ConfigError(f"noise levels fall from sigma_max to sigma_min > 0: got sigma_min={low:g}, sigma_max={high:g}")
    return low, high


def _at_levels(process: Process, levels: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        return _closed(process, np.asarray(process.time(jnp.asarray(levels, jnp.float32)), np.float32))


def karras(
    process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7.0
) -> np.ndarray:
    """(5): dense at low noise. Float times; the ends default to the process's own noise levels sigma / alpha."""
    number("rho", rho, LEAST_RHO, MOST_RHO)
    number("steps", steps, 1, integer=True)
    low, high = (v ** (1 / rho) for v in _noise_ends(process, sigma_min, sigma_max))
    return _at_levels(process, (high + np.linspace(0, 1, steps) * (low - high)) ** rho)


def log_snr(process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None) -> np.ndarray:
    """(6): equal steps of log(sigma / alpha), DPM-Solver's own spacing. Float times."""
    number("steps", steps, 1, integer=True)
    low, high = _noise_ends(process, sigma_min, sigma_max)
    return _at_levels(process, np.exp(np.linspace(np.log(high), np.log(low), steps)))


def uniform(process: Process, steps: int) -> np.ndarray:
    """(7) for continuous processes; (1) for a table, whose equal steps are the official respacing, but for a single one."""
    number("steps", steps, 1, integer=True)
    if isinstance(process, DDPM):
        return respace(process, steps) if steps > 1 else trailing(process, 1)
    return np.linspace(process.t_max, process.t_clean, steps + 1, dtype=np.float32)


LEAST_RHO, MOST_RHO = 1.0, 1000.0
"""Of (5): 1 is equal steps of sigma, and 1000 is (6) to three digits; further on powers lose all of theirs."""
GRIDS = ("respace", "leading", "trailing", "linspace", "karras", "log_snr", "uniform")


def _unit(key: Key, n: int) -> Array:
    """u [n] uniform in (0, 1), the middles of the cells of a float32 draw: at u = 0 there is no noise to predict, only 0 / 0."""
    return jax.random.uniform(key, (n,), jnp.float32) + 2.0**-24


def _below_one(u: Array) -> Array:
    """u in (0, 1) that rounding may have brought to an end of it, where a process has no time (1) or no noise (0)."""
    return jnp.clip(u, 2.0**-24, 1 - 2.0**-24)


class Memoryless(abc.ABC):
    """Training times that depend on nothing but the key, all of the same weight."""

    @abc.abstractmethod
    def __call__(self, process: Process, key: Key, n: int) -> Array:
        """t [n]."""

    def memory(self, process: Process) -> Memory:
        """Nothing."""
        return {}

    def draw(self, process: Process, memory: Memory, key: Key, n: int) -> tuple[Array, Array]:
        """(t [n], the weights [n] of their losses)."""
        return self(process, key, n), jnp.ones(n)

    def learn(self, memory: Memory, t: Array, loss: Array) -> Memory:
        """The memory as it was."""
        return memory


@dataclass(frozen=True)
class Uniform(Memoryless):
    """Training times spread evenly over `Process.unit`: integers where the process counts."""

    def __call__(self, process: Process, key: Key, n: int) -> Array:
        """t [n]."""
        return process.at(_unit(key, n))


@dataclass(frozen=True)
class Stratified(Memoryless):
    """As `Uniform`, one draw in each of n equal strata: less variance of the loss (2107.00630 app. I.1)."""

    def __call__(self, process: Process, key: Key, n: int) -> Array:
        """t [n]."""
        return process.at(_below_one((jnp.arange(n) + _unit(key, n)) / n))


@dataclass(frozen=True)
class LogNormal(Memoryless):
    """ln(sigma / alpha) ~ N(mean, std^2) (2206.00364 table 1: -1.2, 1.2; EDM2: -0.4, 1.0)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, process: Process, key: Key, n: int) -> Array:
        """t [n]."""
        return process.time(jnp.exp(self.mean + self.std * jax.random.normal(key, (n,))))


@dataclass(frozen=True)
class LogitNormal(Memoryless):
    """logit(unit t) ~ N(mean, std^2): more of the middle (2403.03206 eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, process: Process, key: Key, n: int) -> Array:
        """t [n]."""
        return process.at(_below_one(jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (n,)))))


@dataclass(frozen=True)
class SecondMoment:
    """Importance sampling by the second moments of the loss, (8); uniform until every t has `history` losses.

    The memory is {'losses': [T, history], 'counts': [T]}, each row a ring whose next place is counts % history.

    Attributes:
      history: how many losses of each t are remembered.
      uniform: the share u of uniform draws.
    """

    history: int = 10
    uniform: float = 0.001

    def memory(self, process: Process) -> Memory:
        """No losses yet.

        Raises:
          ConfigError: the process does not count its times.
        """
        steps = _table(process, "importance-sampled")
        return {"losses": jnp.zeros((steps, self.history)), "counts": jnp.zeros(steps, jnp.int32)}

    def probabilities(self, memory: Memory) -> Array:
        """p [T] of (8)."""
        steps = len(memory["counts"])
        r = jnp.sqrt(jnp.mean(memory["losses"] ** 2, axis=1))
        p = (1 - self.uniform) * r / jnp.sum(r) + self.uniform / steps
        return jnp.where(jnp.all(memory["counts"] >= self.history), p, 1 / steps)

    def draw(self, process: Process, memory: Memory, key: Key, n: int) -> tuple[Array, Array]:
        """(t [n], the weights [n] of their losses)."""
        p = self.probabilities(memory)
        t = jax.random.categorical(key, jnp.log(p), shape=(n,)).astype(jnp.int32)
        return t, 1 / (len(p) * p[t])

    def learn(self, memory: Memory, t: Array, loss: Array) -> Memory:
        """The memory after losses [n] at times t [n], in their order."""
        steps, order = len(memory["counts"]), jnp.argsort(t, stable=True)
        t, loss, place = t[order], loss[order], jnp.arange(len(t))
        earlier, later = place - jnp.searchsorted(t, t, "left"), jnp.searchsorted(t, t, "right") - place - 1
        slot = (memory["counts"][t] + earlier) % self.history
        row = jnp.where(later < self.history, t, steps)            # beyond the table: overwritten within this batch
        losses = memory["losses"].at[row, slot].set(loss, mode="drop")
        return {"losses": losses, "counts": memory["counts"].at[t].add(1)}
