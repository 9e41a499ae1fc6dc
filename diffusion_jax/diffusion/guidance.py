"""Guidance: functions from denoiser to denoiser, and how they compose.

    classifier-free      x0 = n + w (c - n)                                                       (1)  2207.12598
    rescaled phi         g <- phi g std(c) / std(g) + (1 - phi) g                                 (2)  2305.08891 eq. 15-16
    projection           u = c - n;  u <- u - (1 - keep) <u, c> / <c, c> c;  g = c + (w - 1) u    (3)  2410.02416
    CFG++                x0 as in (1), eps of the null prediction                                 (4)  2406.08070
    autoguidance         (1) with a weaker model for n                                            (5)  2406.02507
    gradient             score <- score + w d log p(y | x_t) / d x_t                              (6)  2105.05233
    CADS                 y <- sqrt(gamma) y + s sqrt(1 - gamma) n, rescaled, mixed by psi         (7)  2310.17347 eq. 1-4
    thresholding         x0 <- clip(x0, -m, m) / m,  m = max(1, quantile_p |x0|)                  (8)  2205.11487

(1) is affine, so it may act on x0, eps or v alike; (2), (3) and (8) are not, and name their space. `chain(f, g)(d)` is
f(g(d)): the first sees what the others made. What acts on the guided x0 stands first (Clip, Threshold, Known), then CADS,
which perturbs the condition before CFG splits it, then CFG.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.diffusion.process import bcast, levels
from diffusion_jax.diffusion.samplers import resolve
from diffusion_jax.diffusion.scales import Scale, to_output, to_x0
from diffusion_jax.types import UNTIL, Array, Cond, Denoiser, Guidance, Key, Noise, Prediction, Process

Schedule = Callable[[Array], Array]
"""t -> a guidance scale, or a clock in [0, 1]."""

Statistics = Literal["sample", "batch"]


def chain(*guidances: Guidance) -> Guidance:
    """One guidance of several: chain(f, g)(d) = f(g(d)); chain() changes nothing.

    Example:
      guided = chain(Clip(), CADS(process.unit), CFG(4.0, null))(denoise)
    """
    return lambda denoise: functools.reduce(lambda inner, guide: guide(inner), reversed(guidances), denoise)


# Scales over time -----------------------------------------------------------------------------------------------------------


def dynamic_cfg(w: Array, unit: Callable[[Array], Array], tau1: float = 0.6, tau2: float = 0.9) -> Schedule:
    """w gamma(t): the dynamic CFG that 2310.17347 compares CADS with."""
    return lambda t: w * annealing(unit(t), tau1, tau2)


def power_cosine(w: Array, unit: Callable[[Array], Array], power: float = 4.0) -> Schedule:
    """1 + (w - 1) (1 - cos(pi (1 - t)^p)) / 2: no guidance at full noise, w at the end (DiffiT, 2312.02139).

    Raises:
      ConfigError: a negative power, which is infinite at full noise.
    """
    number("power", power, 0)
    # A root of what rounding made negative is no number.
    return lambda t: 1 + (w - 1) * (1 - jnp.cos(jnp.pi * jnp.clip(1 - unit(t), 0, 1) ** power)) / 2


def in_interval(w: Array, process: Process, low: float, high: float) -> Schedule:
    """w where low < sigma / alpha <= high, 1 elsewhere (2404.07724 eq. 6). `interval` also saves the network call."""

    def scale(t):
        level = process.sigma(t) / process.alpha(t)
        return jnp.where((low < level) & (level <= high), w, 1.0)

    return scale


# Two predictions into one ---------------------------------------------------------------------------------------------------


class Mix(NamedTuple):
    """How a conditional and a weaker prediction become one.

    Attributes:
      phi: strength of (2), toward the conditional prediction's standard deviation per sample; unbounded.
      space: (process, parametrisation) in whose network output (2), (3) and (4) act; None: on x0.
      remove_parallel: guide as in (3), without the part of c - n that is parallel to c.
      keep_parallel: the fraction of that part which (3) keeps.
      channels: guide only the first so many channels (DiT's published sampler: 3); None: all.
      plus_plus: keep the weaker prediction's eps, (4); needs `space`.
    """

    phi: Array | float = 0.0
    space: tuple[Process, Scale] | None = None
    remove_parallel: bool = False
    keep_parallel: float = 0.0
    channels: int | None = None
    plus_plus: bool = False


def parallel_part(u: Array, c: Array) -> Array:
    """The part of u [B, ...] that is parallel to c [B, ...], per sample."""
    axes = tuple(range(1, c.ndim))
    dot = functools.partial(jnp.sum, axis=axes, keepdims=True)
    return dot(u * c) / jnp.maximum(dot(c * c), 1e-24) * c


def spread(x: Array, axes: tuple[int, ...] | None) -> Array:
    """The unbiased standard deviation over axes, which stay; 0 of a single value."""
    size = x.size if axes is None else math.prod(x.shape[axis] for axis in axes)
    return jnp.std(x, axis=axes, keepdims=True, ddof=1 if size > 1 else 0)


def mix_outputs(c: Array, n: Array, w: Array, mix: Mix) -> Array:
    """(1)-(3) on two outputs [B, ..., C]; w a scalar or [B]."""
    axes = tuple(range(1, c.ndim))
    u = c - n
    if mix.remove_parallel:
        u = u - (1 - mix.keep_parallel) * parallel_part(u, c)
        g = c + bcast(jnp.asarray(w) - 1, c) * u
    else:
        g = n + bcast(w, c) * u
    if isinstance(mix.phi, Array) or mix.phi:
        of_g = spread(g, axes)
        shrink = jnp.where(of_g > 0, spread(c, axes) / jnp.where(of_g > 0, of_g, 1), 1)     # what is constant is not rescaled
        g = mix.phi * g * shrink + (1 - mix.phi) * g
    if mix.channels is not None:
        g = jnp.concatenate([g[..., : mix.channels], c[..., mix.channels :]], axis=-1)
    return g


def mix_predictions(c: Prediction, n: Prediction, w: Array, x: Array, t: Array, mix: Mix) -> Prediction:
    """`mix_outputs` on the x0 of two predictions at x_t, or on the network outputs of `mix.space`; the rest is c's."""
    if mix.space is None:
        if mix.plus_plus:
            raise ConfigError("CFG++ needs Mix(space=(process, scale)) to know eps")
        return replace(c, x0=mix_outputs(c.x0, n.x0, w, mix))
    process, scale = mix.space
    scales = scale(process, t)
    g = mix_outputs(to_output(scales, x, c.x0), to_output(scales, x, n.x0), w, mix)
    return replace(c, x0=to_x0(scales, x, g), eps=eps_of(process, n.x0, x, t) if mix.plus_plus else c.eps)


def eps_of(process: Process, x0: Array, x: Array, t: Array) -> Array:
    """eps = (x_t - alpha x0) / sigma."""
    alpha, sigma = levels(process, t, x)
    return (x - alpha * x0) / sigma


def _at(scale: Array | float | Schedule, t: Array) -> Array:
    return scale(t) if callable(scale) else jnp.asarray(scale)


def CFG(scale: Array | float | Schedule, null: Cond, mix: Mix = Mix(), together: bool = True) -> Guidance:
    """Classifier-free guidance, (1)-(4), in one network call on 2B rows: the conditional ones first.

    Args:
      scale: w, a (traced) value or a schedule. 1 is no guidance, 0 unconditional, negative repels.
      null: the null condition, embedded, with the keys of the condition and the batch of x.
      mix: anything beside (1).
      together: one call on 2B rows, or two on B rows one after the other, which take half the memory.

    Example:
      CFG(7.5, null, Mix(phi=0.7, space=(process, Eps())))
    """

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            # Where a step ends is the same for both.
            away = {name: cond[name] if name == UNTIL else null[name] for name in cond}
            if not together:
                return mix_predictions(denoise(x, t, cond, key), denoise(x, t, away, key), _at(scale, t), x, t, mix)
            both = {name: jnp.concatenate([cond[name], away[name]]) for name in cond}
            times = jnp.concatenate([t, t]) if jnp.ndim(t) else t
            p = denoise(jnp.concatenate([x, x]), times, both, key)
            c, n = (jax.tree.map(lambda a, half=half: jnp.split(a, 2)[half], p) for half in range(2))
            return mix_predictions(c, n, _at(scale, t), x, t, mix)

        return guided

    return guide


def Autoguidance(scale: Array | float | Schedule, weak: Denoiser, mix: Mix = Mix()) -> Guidance:
    """(5): guidance away from a weaker denoiser, which sees the same condition: a smaller or less trained network.

    A `weak` that ignores its condition makes this classifier-free guidance with two networks, as in EDM2.
    """

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            return mix_predictions(denoise(x, t, cond, key), weak(x, t, cond, key), _at(scale, t), x, t, mix)

        return guided

    return guide


def interval(guidance: Guidance, process: Process, low: float, high: float) -> Guidance:
    """`guidance` where low < sigma / alpha <= high, the bare denoiser (and its cost) elsewhere (2404.07724). t is a scalar."""

    def guide(denoise: Denoiser) -> Denoiser:
        inside = guidance(denoise)

        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            level = process.sigma(t) / process.alpha(t)
            shape = jax.eval_shape(inside, x, t, cond, key)

            def outside(*args) -> Prediction:
                p = denoise(*args)
                eps = p.eps if p.eps is not None or shape.eps is None else eps_of(process, p.x0, x, t)
                grad = p.grad if p.grad is not None or shape.grad is None else jnp.zeros_like(p.x0)
                return replace(p, eps=eps, grad=grad)

            return jax.lax.cond((low < level) & (level <= high), inside, outside, x, t, cond, key)

        return guided

    return guide


def Gradient(log_prob: Callable[[Array, Array, Cond], Array], scale: Array | float | Schedule) -> Guidance:
    """(6): guidance by the gradient of a classifier, a CLIP or any other likelihood.

    The gradient stays in `Prediction.grad`: the ancestral sampler shifts its mean by variance * grad, the others fold it into
    the score; the two are different methods (2105.05233 alg. 1 and 2).

    Args:
      log_prob: (x_t [B, ...], t, cond) -> log p(y | x_t) [B].
      scale: w.
    """

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            p = denoise(x, t, cond, key)
            grad = bcast(_at(scale, t), x) * jax.grad(lambda x: jnp.sum(log_prob(x, t, cond)))(x)
            return replace(p, grad=grad if p.grad is None else p.grad + grad)

        return guided

    return guide


def Fold(process: Process) -> Guidance:
    """Folds a pending gradient into x0, (6), so that what stands before it (Clip, Threshold) acts on the guided x0.

    ADM's published DDIM does not clip what the gradient made; where alpha is near 0, as at the noisy end of a cosine schedule, a
    small error of the classifier then leaves the range of images by far.
    """

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            p = denoise(x, t, cond, key)
            return p if p.grad is None else Prediction(resolve(process, p, x, t)[0], logvar=p.logvar)

        return guided

    return guide


# CADS -----------------------------------------------------------------------------------------------------------------------


def annealing(u: Array, tau1: float, tau2: float) -> Array:
    """gamma(u) of (7), u in [0, 1] with 1 the noisiest: 1 below tau1, 0 above tau2, linear between."""
    if not tau1 < tau2:
        raise ConfigError(f"CADS anneals from tau2 down to tau1: tau1 must be below tau2, got {tau1} and {tau2}")
    u = jnp.asarray(u, float)
    tau1, tau2 = jnp.asarray(tau1, u.dtype), jnp.asarray(tau2, u.dtype)     # rounded like u: exactly 1 at tau1, 0 at tau2
    return jnp.clip((tau2 - u) / (tau2 - tau1), 0, 1)


def progress(times: Array) -> Schedule:
    """A clock for `CADS` that counts steps: 1 at the first time of a descending grid, 1 - i / N at its i-th."""
    ascending = jnp.asarray(times, float)[::-1]
    return lambda t: jnp.searchsorted(ascending, jnp.asarray(t, float)) / (len(ascending) - 1)


def corrupt(y: Array, n: Array, gamma: Array, s: Array, psi: Array, rescale: bool, statistics: Statistics) -> Array:
    """(7): y and n [B, ...]; mean and unbiased std over each sample, or over the whole batch."""
    axes = tuple(range(1, y.ndim)) if statistics == "sample" else None
    mean = functools.partial(jnp.mean, axis=axes, keepdims=True)
    gamma = bcast(gamma, y)
    noisy = jnp.sqrt(gamma) * y + s * jnp.sqrt(1 - gamma) * n
    if not rescale:
        return noisy
    width = spread(noisy, axes)
    rescaled = (noisy - mean(noisy)) / jnp.where(width > 0, width, 1) * spread(y, axes) + mean(y)
    return psi * rescaled + (1 - psi) * noisy


def CADS(
    unit: Schedule, tau1: float = 0.6, tau2: float = 0.9, s: Array | float = 0.1, psi: Array | float = 1.0, *,
    rescale: bool = True, statistics: Statistics = "sample", keys: Sequence[str] = ("vec", "seq"),
    noise: Noise = jax.random.normal,
) -> Guidance:
    """Condition-annealed diffusion sampling, (7): fresh noise on the embedded condition at every call, for diversity.

    Place it outside CFG, so that the null condition stays clean as in the paper. The statistics are per sample unless asked
    otherwise: over the batch, images of one batch would influence each other.

    Args:
      unit: the clock, t -> [0, 1] with 1 the noisiest: `process.unit` or `progress(times)`.
      tau1, tau2: no noise below tau1, nothing but noise above tau2.
      s: noise scale.
      psi: 1 rescales to the condition's mean and standard deviation fully, 0 not at all.
      rescale: whether to rescale.
      statistics: 'sample' or 'batch' (as the first public plug-in does).
      keys: which entries of the condition are perturbed.
      noise: the source of noise.

    Raises:
      ConfigError: unknown statistics; when called, a condition that has none of `keys`.
    """
    if statistics not in get_args(Statistics):
        raise unknown("statistics", statistics, get_args(Statistics))

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            if not set(keys) & set(cond):
                raise ConfigError(f"CADS perturbs {' or '.join(keys)} of a condition, this one is {list(cond)}: leave it out")
            gamma = annealing(unit(t), tau1, tau2)
            key, *own = jax.random.split(key, len(keys) + 1)

            def anneal(y: Array, key: Key) -> Array:
                return corrupt(y, noise(key, y.shape, y.dtype), gamma, s, psi, rescale, statistics)

            annealed = {name: anneal(cond[name], k) for name, k in zip(keys, own, strict=True) if name in cond}
            return denoise(x, t, {**cond, **annealed}, key)

        return guided

    return guide


# On x0 ----------------------------------------------------------------------------------------------------------------------


def _on_x0(change: Callable[[Array], Array], keep_eps: Process | None = None) -> Guidance:
    """Changes x0; eps follows it unless a process is given by which the unchanged x0's eps is kept."""

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            p = denoise(x, t, cond, key)
            eps = eps_of(keep_eps, p.x0, x, t) if keep_eps and p.eps is None else p.eps
            return replace(p, x0=change(p.x0), eps=eps)

        return guided

    return guide


def Clip(limit: float = 1.0, keep_eps: Process | None = None) -> Guidance:
    """x0 clipped to [-limit, limit]. eps then follows from the clipped x0 (ADM), or is kept, given the process (diffusers)."""
    return _on_x0(lambda x0: jnp.clip(x0, -limit, limit), keep_eps)


def threshold(x0: Array, quantile: float, largest: float) -> Array:
    """(8) per sample of x0 [B, ...], m clipped to [1, largest]."""
    m = jnp.quantile(jnp.abs(x0.reshape(len(x0), -1)), quantile, axis=1)
    m = bcast(jnp.clip(m, 1, largest), x0)
    return jnp.clip(x0, -m, m) / m


def Threshold(quantile: float = 0.995, largest: float = float("inf"), keep_eps: Process | None = None) -> Guidance:
    """Dynamic thresholding, (8). `largest` = 1 is plain clipping."""
    return _on_x0(lambda x0: threshold(x0, quantile, largest), keep_eps)


def Known(known: Array, mask: Array) -> Guidance:
    """Inpainting on x0: `known` [B, H, W, C] where mask [B, H, W, 1] is 1 (GLIDE). `samplers.with_known` acts on x_t instead."""
    return _on_x0(lambda x0: mask * known + (1 - mask) * x0)
