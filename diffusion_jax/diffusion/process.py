"""Forward processes x_t = alpha(t) x0 + sigma(t) eps, and the posterior of one step.

    DDPM    alpha_t^2 = prod_{i <= t} (1 - beta_i),  sigma_t^2 = 1 - alpha_t^2           (1)  2006.11239 eq. 4
    cosine  alpha = cos(theta t),  sigma = sin(theta t)                                  (2)  2102.09672, 2107.00630
    EDM     alpha = 1,  sigma = t                                                        (3)  2206.00364
    flow    alpha = 1 - u,  sigma = u,  u = shift t / (1 + (shift - 1) t)                (4)  2209.03003, 2403.03206

With q = (sigma_s / alpha_s) / (sigma_t / alpha_t), the noise level at s over that at t, the posterior of a step t -> s is

    q(x_s | x_t, x0) = N(alpha_s (1 - q^2) x0 + q (sigma_s / sigma_t) x_t,  sigma_s^2 (1 - q^2))      (5)

for every process; with (1) and consecutive steps it is DDPM's eq. 6-7, and with any other pair the respaced one. Written in q
nothing cancels in float32: 1 - q^2 is never small, unlike 1 - alpha_t^2 / alpha_s^2. A step of length zero has q = 1 and is the
identity, at a clean time and at one without signal too, where q would be 0 / 0.
"""
from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.types import Array, Process

LARGEST_RATIO = 2.0**16      # stands for sigma / alpha = inf where a float time is interpolated towards it
MOST_STEPS = 10**6           # of a table: a thousand times what anybody trains with, and still megabytes


def narrow(a: Array, x: Array) -> Array:
    """`a` no wider than x: under jax_enable_x64 the functions of a process are float64, and images stay float32."""
    a = jnp.asarray(a)
    wide = a.dtype == jnp.float64 and jnp.issubdtype(x.dtype, jnp.floating)
    return a.astype(jnp.promote_types(x.dtype, jnp.float32)) if wide else a


def bcast(a: Array, x: Array) -> Array:
    """`a` (a scalar or [B]) shaped to multiply `x` [B, ...], and no wider."""
    a = narrow(a, x)
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim)) if a.ndim else a


def levels(process: Process, t: Array, x: Array) -> tuple[Array, Array]:
    """(alpha, sigma) at t, a scalar or [B], shaped to multiply x [B, ...]."""
    return bcast(process.alpha(t), x), bcast(process.sigma(t), x)


def linear(steps: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """betas [steps], float64, equally spaced; by default 1e-4 ... 0.02, scaled by 1000 / steps (2006.11239, 2102.09672)."""
    scale = 1000 / steps
    return np.linspace(scale * 1e-4 if start is None else start, scale * 0.02 if end is None else end, steps)


def scaled_linear(steps: int, start: float | None = None, end: float | None = None) -> np.ndarray:
    """betas [steps], float64, equally spaced in sqrt(beta); by default Stable Diffusion's 0.00085 ... 0.012 (2112.10752)."""
    return np.linspace((0.00085 if start is None else start) ** 0.5, (0.012 if end is None else end) ** 0.5, steps) ** 2


def _betas_of(alpha_bar: np.ndarray, cap: float = 0.999) -> np.ndarray:
    """betas [T] of a cumulative product given at T + 1 points, capped so that no step destroys everything."""
    return np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, cap)


def squaredcos(steps: int, start: float = 0.008) -> np.ndarray:
    """betas [steps], float64, of alpha_bar = cos^2((t + start) / (1 + start) pi / 2), capped at 0.999 (2102.09672 eq. 17)."""
    t = np.linspace(0, steps, steps + 1) / steps
    return _betas_of(np.cos((t + start) / (1 + start) * math.pi / 2) ** 2)


def sigmoid(steps: int, start: float = -3.0, end: float = 3.0) -> np.ndarray:
    """betas [steps], float64, of a sigmoid alpha_bar between `start` and `end` (2212.11972 fig. 8)."""
    def curve(x):
        return 1 / (1 + np.exp(-x))

    low, high = (np.float64(np.float32(curve(v))) for v in (start, end))      # the published code rounds the ends to float32
    t = np.linspace(0, steps, steps + 1) / steps
    bar = (high - curve(t * (end - start) + start)) / (high - low)
    return _betas_of(bar / bar[0])


def sqrt(steps: int, start: float = 1e-4, end: float = 2e-2) -> np.ndarray:
    """betas [steps], float64, the roots of equally spaced numbers (2112.10752's code)."""
    return np.linspace(start, end, steps, dtype=np.float64) ** 0.5


SCHEDULES = {"linear": linear, "scaled_linear": scaled_linear, "squaredcos": squaredcos, "sigmoid": sigmoid, "sqrt": sqrt}


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """betas [T] moved so that the last alpha is exactly 0 and the first is kept (2305.08891 alg. 1)."""
    alpha = np.sqrt(np.cumprod(1 - betas))
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    bar = np.concatenate([[1.0], alpha**2])
    return 1 - bar[1:] / bar[:-1]


@dataclass(frozen=True)
class DDPM:
    """A process given by a table of betas, (1). Times are integers 0 ... steps - 1; -1 is clean and `steps` is pure noise.

    A float time interpolates log(sigma / alpha) between the integers (and sigma / alpha itself between -1 and 0), so that
    `time` is its exact inverse.

    Args:
      schedule: 'linear', 'scaled_linear', 'squaredcos', 'sigmoid' or 'sqrt'.
      steps: length of the table.
      start, end: first and last beta (ends of the sigmoid; the offset of the squared cosine, which has no end); None: the
        published ones.
      zero_snr: rescale the table to zero terminal signal (2305.08891).
      rounded: betas, their products and the posterior of integer times in float32, as diffusers' schedulers compute them; at the
        noisy end of the squared cosine the weight of x_t changes by a quarter, which shows in the images of models that were
        published so.

    Raises:
      ConfigError: an unknown schedule, an end that it does not have, so few steps that a beta reaches 1, or more than a million.
    """

    schedule: str = "linear"
    steps: int = 1000
    start: float | None = None
    end: float | None = None
    zero_snr: bool = False
    rounded: bool = False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        # Before any table is laid out: a checkpoint's config is input from elsewhere.
        steps = number("steps of a DDPM process", self.steps, 2 if self.zero_snr else 1, MOST_STEPS, integer=True)
        object.__setattr__(self, "steps", steps)                # JSON writes 1000.0 too, of which NumPy makes no table
        for end, value in self._ends.items():
            number(end, value)
            if end not in inspect.signature(SCHEDULES[self.schedule]).parameters:
                raise ConfigError(f"schedule {self.schedule!r} has no {end!r}: leave it out")
        betas = SCHEDULES[self.schedule](self.steps, **self._ends)
        if not 0 < betas.min() <= betas.max() < 1:
            raise ConfigError(f"schedule {self.schedule!r} of {self.steps} steps has betas outside (0, 1): use more steps")

    @property
    def _ends(self) -> dict[str, float]:
        return {name: value for name, value in (("start", self.start), ("end", self.end)) if value is not None}

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """[steps] float64."""
        betas = SCHEDULES[self.schedule](self.steps, **self._ends)
        return zero_terminal_snr(betas) if self.zero_snr else betas

    @functools.cached_property
    def alpha_bar(self) -> np.ndarray:
        """[steps + 2] float64 cumulative products, entry t + 1 for time t: 1 at t = -1, 0 at t = steps."""
        dtype = np.float32 if self.rounded else np.float64
        products = np.cumprod(1 - self.betas.astype(dtype), dtype=np.float64)
        return np.concatenate([[1.0], products.astype(dtype), [0.0]])

    @functools.cached_property
    def _log_ratio(self) -> np.ndarray:
        bar = np.maximum(self.alpha_bar[1:-1], 1 / (1 + LARGEST_RATIO**2))
        return 0.5 * np.log((1 - bar) / bar)

    @property
    def t_max(self) -> int:
        return self.steps - 1

    @property
    def t_clean(self) -> int:
        return -1

    def _ratio(self, t: Array) -> Array:
        """sigma / alpha at a float t."""
        inside, table = jnp.clip(t, 0, self.t_max), jnp.asarray(self._log_ratio, float)
        below = jnp.floor(inside).astype(jnp.int32)
        low, high = table[below], table[jnp.minimum(below + 1, self.t_max)]
        return jnp.where(t < 0, jnp.exp(table[0]) * (1 + t), jnp.exp(low + (inside - below) * (high - low)))

    def alpha(self, t: Array) -> Array:
        """sqrt(alpha_bar)."""
        t = jnp.asarray(t)
        if jnp.issubdtype(t.dtype, jnp.integer):
            return jnp.asarray(np.sqrt(self.alpha_bar), float)[t + 1]
        return jax.lax.rsqrt(1 + self._ratio(t) ** 2)

    def sigma(self, t: Array) -> Array:
        """sqrt(1 - alpha_bar)."""
        t = jnp.asarray(t)
        if jnp.issubdtype(t.dtype, jnp.integer):
            return jnp.asarray(np.sqrt(1 - self.alpha_bar), float)[t + 1]
        ratio = self._ratio(t)
        return ratio * jax.lax.rsqrt(1 + ratio**2)

    def unit(self, t: Array) -> Array:
        return t / self.steps

    def at(self, u: Array) -> Array:
        return jnp.clip(jnp.floor(u * self.steps), 0, self.t_max).astype(jnp.int32)     # u may have rounded to 1

    def time(self, ratio: Array) -> Array:
        inner = jnp.interp(jnp.log(jnp.maximum(ratio, 1e-12)), self._log_ratio, np.arange(self.steps))
        low = math.exp(self._log_ratio[0])
        return jnp.where(ratio < low, ratio / low - 1, inner)

    def label(self, t: Array) -> Array:
        return jnp.asarray(t, float)


@dataclass(frozen=True)
class Cosine:
    """The cosine process in continuous time t in [0, 1], (2), with log SNR = `logsnr_min` at t = 1."""

    logsnr_min: float = -15.0
    t_max: float = 1.0
    t_clean: float = 0.0

    def __post_init__(self):
        number("logsnr_min", self.logsnr_min, -80, 0)                   # of alpha = exp(-40) nothing is left in float32

    @property
    def _theta(self) -> float:
        return math.atan(math.exp(-self.logsnr_min / 2))

    def alpha(self, t: Array) -> Array:
        return jnp.cos(self._theta * jnp.asarray(t, float))

    def sigma(self, t: Array) -> Array:
        return jnp.sin(self._theta * jnp.asarray(t, float))

    def unit(self, t: Array) -> Array:
        return t

    def at(self, u: Array) -> Array:
        return u

    def time(self, ratio: Array) -> Array:
        return jnp.arctan(ratio) / self._theta

    def label(self, t: Array) -> Array:
        return 1000 * jnp.asarray(t, float)


@dataclass(frozen=True)
class EDM:
    """Variance exploding, time = noise level, (3). `unit` is linear in sigma^(1/7), the sampler's own spacing."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_clean: float = 0.0

    def __post_init__(self):
        low, high = (number(name, getattr(self, name)) for name in ("sigma_min", "sigma_max"))
        if not 0 < low < high:
            raise ConfigError(f"noise levels of EDM rise from sigma_min > 0 to sigma_max: got {low:g} and {high:g}")

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t, dtype=float)

    def sigma(self, t: Array) -> Array:
        return jnp.asarray(t, float)

    def unit(self, t: Array) -> Array:
        low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return jnp.clip((jnp.asarray(t, float) ** (1 / 7) - low) / (high - low), 0, 1)

    def at(self, u: Array) -> Array:
        low, high = self.sigma_min ** (1 / 7), self.sigma_max ** (1 / 7)
        return (low + u * (high - low)) ** 7

    def time(self, ratio: Array) -> Array:
        return ratio

    def label(self, t: Array) -> Array:
        return jnp.log(jnp.maximum(t, self.sigma_min)) / 4


@dataclass(frozen=True)
class Flow:
    """Rectified flow, (4): t in [0, 1], pure noise at 1; `shift` > 1 spends more of t at high noise (for large images)."""

    shift: float = 1.0
    t_max: float = 1.0
    t_clean: float = 0.0

    def __post_init__(self):
        if not number("shift", self.shift) > 0:
            raise ConfigError(f"the shift of a flow is above 0, and 1 is none: got {self.shift}")

    def alpha(self, t: Array) -> Array:
        t = jnp.asarray(t, float)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Array) -> Array:
        t = jnp.asarray(t, float)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def unit(self, t: Array) -> Array:
        return t

    def at(self, u: Array) -> Array:
        return u

    def time(self, ratio: Array) -> Array:
        return ratio / (self.shift + ratio)

    def label(self, t: Array) -> Array:
        return 1000 * self.sigma(t)


@functools.cache
def starts_from_pure_noise(process: Process) -> bool:
    """Whether alpha(t_max) = 0: there x_t says nothing of x0, and eps gives no x0."""
    with jax.ensure_compile_time_eval():
        return bool(process.alpha(jnp.asarray(process.t_max)) == 0)


def refuse_pure_noise(process: Process, what: str, instead: str) -> None:
    """Raises ConfigError where a method that divides by alpha meets a process with alpha(t_max) = 0."""
    if starts_from_pure_noise(process):
        raise ConfigError(f"{what} divides by alpha, which is 0 at t_max of {process}: use {instead}")


def noised(process: Process, x0: Array, t: Array, eps: Array) -> Array:
    """x_t of (1): x0 and eps [B, ...], t a scalar or [B]."""
    alpha, sigma = levels(process, t, x0)
    return alpha * x0 + sigma * eps


def carried(process: Process, to: Process, x: Array, t: Array) -> tuple[Array, Array]:
    """x_t of one process as what another has at the same noise level: (x_s, s), s in the range that `to` was trained on.

    Args:
      process, to: from and to.
      x: [B, ...].
      t: a scalar or [B].
    """
    if process == to:
        return x, t
    s = to.time(process.sigma(t) / jnp.maximum(process.alpha(t), 1e-12))
    s = jnp.minimum(s, jnp.asarray(to.t_max, s.dtype))
    wide = (to.alpha(s) + to.sigma(s)) / (process.alpha(t) + process.sigma(t))
    return bcast(wide, x) * x, s


def ratio(process: Process, t: Array, s: Array) -> Array:
    """q of (5): the noise level at s over that at t; 0 at a clean s or an alpha(t) of 0, 1 at s = t whatever t is. Also exp(-h)
    of DPM-Solver."""
    q = process.sigma(s) * process.alpha(t) / (process.sigma(t) * process.alpha(s))
    return jnp.where(t == s, 1, q)


class Posterior(NamedTuple):
    """Coefficients of (5): mean = x0 * `x0` + x_t * `xt`; `small` its variance, `large` that of the forward step t <- s."""

    x0: Array
    xt: Array
    small: Array
    large: Array


def posterior(process: Process, t: Array, s: Array) -> Posterior:
    """(5) for the step t -> s, s <= t. `large` = sigma_t^2 (1 - q^2) is DDPM's beta, the upper bound of the variance."""
    if isinstance(process, DDPM) and process.rounded and jnp.issubdtype(jnp.result_type(t, s), jnp.integer):
        return _rounded_posterior(process, t, s)
    q = ratio(process, t, s)
    keep = 1 - q**2
    return Posterior(
        x0=process.alpha(s) * keep,
        xt=jnp.where(t == s, 1, q * process.sigma(s) / process.sigma(t)),
        small=process.sigma(s) ** 2 * keep,
        large=process.sigma(t) ** 2 * keep,
    )


def _rounded_posterior(process: DDPM, t: Array, s: Array) -> Posterior:
    """(5) for integers t and s, by the betas and products of `process` in their order of operations in diffusers."""
    bars, betas = (jnp.asarray(table, jnp.float32) for table in (process.alpha_bar, process.betas))
    bar_t, bar_s = bars[t + 1], bars[s + 1]
    beta = jnp.where(s == t - 1, betas[t], 1 - bar_t / bar_s)
    still, left = t == s, jnp.where(t < 0, 1, 1 - bar_t)                        # nothing is divided by the 0 of a clean time
    return Posterior(
        x0=jnp.where(still, 0, jnp.sqrt(bar_s) * beta / left),
        xt=jnp.where(still, 1, jnp.sqrt(1 - beta) * (1 - bar_s) / left),
        small=jnp.where(still, 0, (1 - bar_s) / left * beta),
        large=jnp.where(still, 0, beta),
    )
