"""Samplers: pairs of pure functions under one `lax.scan`.

Every step t -> s starts from x0 and eps = (x - alpha_t x0) / sigma_t. With q = (sigma_s / alpha_s) / (sigma_t / alpha_t):

    DDPM             x_s ~ the posterior of process.py (5), variance fixed or learned               (1)  2006.11239, 2102.09672
    DDIM(eta)        x_s = alpha_s x0 + sqrt(sigma_s^2 - d^2) eps + d n,  d^2 = eta^2 sigma_s^2 (1 - q^2)      (2)  2010.02502
    Heun             z = x / (alpha + sigma), u = sigma / (alpha + sigma):  dz/du = eps - x0        (3)
    EDM              y = x / alpha, r = sigma / alpha:  dy/dr = eps, with churn                     (4)  2206.00364 alg. 2

An Euler step of the ODE in any of these coordinates is DDIM with eta = 0, and k-diffusion's Euler ancestral is DDIM with its
eta: both are (2). (3) is regular at alpha = 0, where (4) is not. multistep.py and unipc.py hold the methods with a memory. A
step of length zero is the identity for every sampler, and nothing of it is remembered; reach.py says how far a step may go.

`sample` takes times of any direction: descending samples, ascending inverts. An image that is inverted stands at the first time
of its grid, which must be a noisy one (the least noisy that was trained): a clean x says nothing of eps.
"""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.diffusion.process import bcast, levels, noised, posterior, ratio, refuse_pure_noise
from diffusion_jax.diffusion.variance import VARIANCES, log_variance
from diffusion_jax.types import UNTIL, Array, Cond, Denoiser, Key, Noise, Prediction, Process, Sampler, State

RAW = ("image", "label", "tokens", "low_res", "clip_image", "clip_text")
"""Keys of conditions that are not embedded yet."""
CHURN_LIMIT = 2**0.5 - 1        # 2206.00364 alg. 2: never add more noise than there is

Conds = Cond | Callable[[Array], Cond]
"""What a network sees, embedded: the same at all steps, or by the time at which a step begins."""


class Progress(NamedTuple):
    """A run of a sampler between two steps.

    Attributes:
      x: where it is, [B, ...].
      state: what the sampler remembers.
      x0: what the denoiser took the image for at the beginning of the last step, [B, ...]; zeros before the first.
    """

    x: Array
    state: State
    x0: Array


def sample(denoise: Denoiser, sampler: Sampler, x: Array, times: Array | np.ndarray, cond: Conds, key: Key,
           keep: bool = False) -> Array:
    """Runs a sampler over a grid of times.

    Args:
      denoise: a denoiser, guided or not.
      sampler: one of this file's.
      x: the start at times[0], [B, ...]: `start(process, times, key, shape)` when sampling, an image when inverting.
      times: [N + 1] consecutive times, or [N, 2] pairs (t, s) where a step's end need not be the next step's begin.
      cond: what the network sees, embedded, or a function of the time t at which a step t -> s begins that returns it: all
        calls of that step see the same, those at s too.
      key: randomness of the sampler and of guidance that draws.
      keep: return every state [N, B, ...] instead of the last.

    Raises:
      ConfigError: what `check_call` refuses.
    """
    check_call(denoise, times, cond)
    pairs = pairs_of(times)
    keys = jax.random.split(key, len(pairs))
    progress, path = advance(denoise, sampler, begin(sampler, x, len(pairs)), pairs, keys, cond, keep)
    return path if keep else progress.x


def check_call(denoise: Denoiser, times: Array | np.ndarray, cond: Conds) -> None:
    """Refuses what `sample` is given by mistake.

    Raises:
      ConfigError: a number of steps where times belong, a guidance that was given no denoiser, or a condition that was not
        embedded.
    """
    if jnp.ndim(times) not in (1, 2) or len(times) < (2 if jnp.ndim(times) == 1 else 1):
        raise ConfigError(f"times are a grid such as trailing(process, 20), not a number of steps: got {times}")
    if not callable(denoise) or _takes_one(denoise):
        raise ConfigError("sample takes a denoiser: give the guidance one, as in CFG(3.0, null)(task.denoiser(params))")
    for name in () if callable(cond) else cond:
        if name in RAW:
            raise ConfigError(f"{name!r} is not what a network sees: embed it first, cond = task.embed(params, raw)")


def _takes_one(function: Callable[..., object]) -> bool:
    """Whether a function takes a single argument, as guidance takes its denoiser."""
    parameters = list(inspect.signature(function).parameters.values())
    return len(parameters) == 1 and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL


def pairs_of(times: Array | np.ndarray) -> Array:
    """The steps (t, s) of a grid of times [N + 1], as [N, 2]; pairs as they are."""
    times = jnp.asarray(times)
    return times if times.ndim == 2 else jnp.stack([times[:-1], times[1:]], axis=1)


def begin(sampler: Sampler, x: Array, steps: int) -> Progress:
    """A run of `steps` steps in all, before the first."""
    return Progress(x, sampler.init(x, steps), jnp.zeros_like(x))


def advance(denoise: Denoiser, sampler: Sampler, progress: Progress, pairs: Array, keys: Array, cond: Conds,
            keep: bool = False) -> tuple[Progress, Array | None]:
    """Some steps of a run: the only scan of the package's diffusion, whole in `sample`, in parts where somebody watches.

    Args:
      denoise, sampler, cond, keep: as in `sample`.
      progress: where the run is.
      pairs: the steps to make, [n, 2].
      keys: a key for each, [n].

    Returns:
      (where the run is then, its path [n, B, ...] or None).
    """
    def body(progress: Progress, step: tuple[Array, Key]) -> tuple[Progress, Array | None]:
        (t, s), key = step
        here = cond(t) if callable(cond) else cond
        estimates = []

        def bound(x: Array, t: Array, key: Key, until: Array | None = None) -> Prediction:
            seen = here if until is None else {**here, UNTIL: jnp.broadcast_to(until, x.shape[:1])}
            # Of the type of the images, whatever the network's is: bfloat16, or float64 under jax_enable_x64.
            prediction = jax.tree.map(lambda a: a.astype(progress.x.dtype), denoise(x, t, seen, key))
            estimates.append(prediction.x0)
            return prediction

        x, state = sampler.step(bound, progress.x, progress.state, t, s, key)
        return Progress(x, state, estimates[0]), x if keep else None

    return jax.lax.scan(body, progress, (pairs, keys))


def start(process: Process, times: Array | np.ndarray, key: Key, shape: tuple[int, ...],
          noise: Noise = jax.random.normal) -> Array:
    """x at times[0] of data that is negligible beside the noise there: N(0, alpha^2 + sigma^2) for unit-variance x."""
    t = jnp.asarray(times).reshape(-1)[0]
    level = jnp.where(process.alpha(t) < 1, jnp.hypot(process.alpha(t), process.sigma(t)), process.sigma(t))
    x = noise(key, shape, jnp.float32)
    return bcast(level, x) * x


def resolve(process: Process, p: Prediction, x: Array, t: Array) -> tuple[Array, Array]:
    """(x0, eps) of a prediction at x_t, a pending gradient folded into the score: eps - sigma grad (2105.05233 alg. 2).

    At alpha = 0 x_t says nothing of x0, and so nothing of y: there x0 stays.
    """
    a, s = levels(process, t, x)
    eps = (x - a * p.x0) / s if p.eps is None else p.eps
    if p.grad is None:
        return p.x0, eps
    eps = eps - s * p.grad
    return jnp.where(a > 0, (x - s * eps) / jnp.where(a > 0, a, 1), p.x0), eps


def _stateless(x: Array, steps: int) -> State:
    return ()


def resting(step: Callable[..., tuple[Array, State]]) -> Callable[..., tuple[Array, State]]:
    """`step`, but where s = t it leaves x and the state as they are: formulas divide by the length of a step, or by the sigma of
    a clean time that it would begin and end at."""

    @functools.wraps(step)
    def guarded(denoise: Callable[..., Prediction], x: Array, state: State, t: Array, s: Array, key: Key) -> tuple[Array, State]:
        still = t == s
        return jax.tree.map(lambda before, after: jnp.where(still, before, after), (x, state), step(denoise, x, state, t, s, key))

    return guarded


class _Before(NamedTuple):
    """The time before t, for the clipped log-variance of the last step."""

    t: Array
    first: Array


def ancestral(process: Process, variance: str = "fixed_small", noise: Noise = jax.random.normal) -> Sampler:
    """DDPM's sampler, (1), for any pair of times; a classifier's gradient shifts the mean (2105.05233 alg. 1).

    Args:
      process: the process.
      variance: see `log_variance`.
      noise: the source of noise.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)

    def init(x: Array, steps: int) -> _Before:
        return _Before(jnp.zeros((), float), jnp.ones((), bool))

    @resting
    def step(denoise, x, state, t, s, key):
        k_denoise, k_noise = jax.random.split(key)
        p = denoise(x, t, k_denoise)
        c = posterior(process, t, s)
        mean = bcast(c.x0, x) * p.x0 + bcast(c.xt, x) * x
        above = jnp.where(state.first, t, state.t.astype(t.dtype))
        logvar = log_variance(process, variance, t, s, above, p.logvar)
        if p.grad is not None:
            shift = c.small if variance == "fixed_small" else jnp.exp(logvar)                       # small: 0 at a clean s
            mean = mean + bcast(shift, x) * p.grad
        spread = jnp.where(process.sigma(s) > 0, jnp.exp(logvar / 2), 0)
        x = mean + bcast(spread, x) * noise(k_noise, x.shape, x.dtype)
        return x, _Before(t.astype(float), jnp.zeros((), bool))

    return Sampler(init, step)


def ddim(process: Process, eta: float = 0.0, noise: Noise = jax.random.normal, clip: float = 0.0) -> Sampler:
    """DDIM, (2): deterministic at eta = 0, DDPM's posterior at eta = 1; over ascending times, where eta is 0, it inverts.

    Args:
      process: the process.
      eta: 0 ... 1, the share of fresh noise.
      noise: the source of noise, asked only if eta is not 0.
      clip: clip x0 to [-clip, clip] and keep eps, as diffusers' scheduler does; 0 is not. A recipe's clip moves eps too.

    Raises:
      ConfigError: eta outside of 0 ... 1.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta is the share of fresh noise, 0 ... 1: got {eta}")

    @resting
    def step(denoise, x, state, t, s, key):
        k_denoise, k_noise = jax.random.split(key)
        x0, eps = resolve(process, denoise(x, t, k_denoise), x, t)
        x0 = jnp.clip(x0, -clip, clip) if clip else x0
        alpha, sigma = levels(process, s, x)
        if not eta:                             # q is infinite on the way up from a clean t, or to pure noise
            return alpha * x0 + sigma * eps, state
        fresh = bcast(eta**2 * (1 - ratio(process, t, s) ** 2), x)
        x = alpha * x0 + sigma * jnp.sqrt(1 - fresh) * eps
        return x + sigma * jnp.sqrt(fresh) * noise(k_noise, x.shape, x.dtype), state

    return Sampler(_stateless, step)


def ddim_inversion(process: Process) -> Sampler:
    """The form of DDIM inversion that asks the network at the time stepped to, with the x of the time stepped from.

    eps(x_t, s) then stands for eps(x_s, s), which the way back will use (2211.09794's starting point, and diffusers'). `ddim`
    over ascending times asks at t instead, as ADM does. For eps-predicting networks; use with ascending times.
    """

    @resting
    def step(denoise, x, state, t, s, key):
        _, eps = resolve(process, denoise(x, s, key), x, s)
        (alpha, sigma), (alpha_s, sigma_s) = levels(process, t, x), levels(process, s, x)
        return alpha_s * (x - sigma * eps) / alpha + sigma_s * eps, state

    return Sampler(_stateless, step)


def euler_ancestral(process: Process, eta: float = 1.0, noise: Noise = jax.random.normal) -> Sampler:
    """k-diffusion's Euler ancestral: the same step as `ddim(process, eta)`, under the name that its users know."""
    return ddim(process, eta, noise)


def heun(process: Process) -> Sampler:
    """Heun's second-order method in the coordinates (3), for every process; a step to a clean s is an Euler step."""

    def velocity(denoise, x, t, key):
        x0, eps = resolve(process, denoise(x, t, key), x, t)
        return eps - x0

    @resting
    def step(denoise, x, state, t, s, key):
        first, second = jax.random.split(key)
        (alpha, sigma), (alpha_s, sigma_s) = levels(process, t, x), levels(process, s, x)
        wide_t, wide_s = alpha + sigma, alpha_s + sigma_s
        du = sigma_s / wide_s - sigma / wide_t
        d = velocity(denoise, x, t, first)
        ahead = wide_s * (x / wide_t + du * d)
        d = jax.lax.cond(sigma_s > 0, lambda: (d + velocity(denoise, ahead, s, second)) / 2, lambda: d)
        return wide_s * (x / wide_t + du * d), state

    return Sampler(_stateless, step)


class Churn(NamedTuple):
    """Karras' stochasticity (2206.00364 alg. 2): before a step at noise level r in [low, high] raise it to (1 + gamma) r,
    gamma = min(churn / steps, sqrt(2) - 1), with noise of standard deviation `noise`."""

    churn: float = 0.0
    low: float = 0.0
    high: float = float("inf")
    noise: float = 1.0

    def checked(self) -> Churn:
        """Itself.

        Raises:
          ConfigError: a strength below 0, or levels that are not low <= high.
        """
        number("s_churn", self.churn, 0)
        number("s_noise", self.noise, 0)
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"churn lies between s_min and s_max, 0 <= s_min <= s_max: got {self.low} and {self.high}")
        return self


def _karras(process: Process, churn: Churn, correct: bool, noise: Noise) -> Sampler:
    """(4) with (correct) or without Heun's second evaluation."""

    def init(x: Array, steps: int) -> State:
        return jnp.float32(min(churn.churn / steps, CHURN_LIMIT))

    @resting
    def step(denoise, x, gamma, t, s, key):
        k_noise, first, second = jax.random.split(key, 3)
        alpha_s = bcast(process.alpha(s), x)
        r, r_s = process.sigma(t) / process.alpha(t), process.sigma(s) / process.alpha(s)
        y, t_hat, r_hat, x_hat = x / bcast(process.alpha(t), x), t, r, x
        if churn.churn:
            g = jnp.where((churn.low <= r) & (r <= churn.high), gamma, 0)
            t_hat = jnp.where(g > 0, process.time((1 + g) * r), t)                     # a table of noise levels ends
            r_hat = jnp.where(g > 0, process.sigma(t_hat) / process.alpha(t_hat), r)
            spread = jnp.sqrt(jnp.maximum((r_hat - r) * (r_hat + r), 0))           # exactly 0 without churn
            y = y + churn.noise * bcast(spread, x) * noise(k_noise, x.shape, x.dtype)
            x_hat = bcast(process.alpha(t_hat), x) * y
        _, eps = resolve(process, denoise(x_hat, t_hat, first), x_hat, t_hat)
        dr = bcast(r_s - r_hat, x)
        ahead = alpha_s * (y + dr * eps)
        if not correct:
            return ahead, gamma

        def corrected():
            eps_s = resolve(process, denoise(ahead, s, second), ahead, s)[1]
            return alpha_s * (y + dr * (eps + eps_s) / 2)

        return jax.lax.cond(r_s > 0, corrected, lambda: ahead), gamma

    return Sampler(init, step)


def edm(
    process: Process, s_churn: float = 0.0, s_min: float = 0.0, s_max: float = float("inf"), s_noise: float = 1.0,
    noise: Noise = jax.random.normal,
) -> Sampler:
    """Heun's method in the noise level, with churn, (4); the sampler of EDM and EDM2. alpha must be positive.

    Args:
      process: the process.
      s_churn: noise to add over the whole run (S_churn); 0: deterministic.
      s_min, s_max: churn only where sigma / alpha lies between them.
      s_noise: standard deviation of the added noise.
      noise: the source of noise, asked only if s_churn is not 0.
    """
    refuse_pure_noise(process, "edm", "heun")
    return _karras(process, Churn(s_churn, s_min, s_max, s_noise).checked(), True, noise)


def euler(
    process: Process, s_churn: float = 0.0, s_min: float = 0.0, s_max: float = float("inf"), s_noise: float = 1.0,
    noise: Noise = jax.random.normal,
) -> Sampler:
    """Euler's method, with churn as in `edm`; without it this is `ddim(process)`, which is regular at alpha = 0 too.

    Args:
      process: the process.
      s_churn, s_min, s_max, s_noise, noise: as in `edm`.
    """
    churn = Churn(s_churn, s_min, s_max, s_noise).checked()
    if not s_churn:
        return ddim(process)
    refuse_pure_noise(process, "euler with churn", "euler")
    return _karras(process, churn, False, noise)


def with_known(sampler: Sampler, process: Process, known: Array, mask: Array, noise: Noise = jax.random.normal) -> Sampler:
    """Inpainting by replacing the known region of x_t, before every step, with `known` noised to t (2112.10752, 2201.09865).

    Args:
      sampler: the sampler to wrap.
      process: the process.
      known: the image [B, H, W, C].
      mask: 1 where the image is known, [B, H, W, 1].
      noise: the source of noise.
    """

    @resting
    def step(denoise, x, state, t, s, key):
        k_noise, k_step = jax.random.split(key)
        x = mask * noised(process, known, t, noise(k_noise, x.shape, x.dtype)) + (1 - mask) * x
        return sampler.step(denoise, x, state, t, s, k_step)

    return Sampler(sampler.init, step)
