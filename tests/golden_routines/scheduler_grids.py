"""The grids of diffusers' schedulers: which times, where each step ends, and what the network is shown.

Euler, Heun and DPM-Solver think in noise levels r = sigma / alpha.
"""
from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from golden_routines.replay import Shown

from diffusion_jax.diffusion import guidance, process, times
from diffusion_jax.diffusion.lcm import distilled

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squaredcos"}


class Grid(NamedTuple):
    """Steps [N, 2] on the times of `process`, and the labels [N] that their networks see."""

    process: process.Process
    pairs: np.ndarray
    labels: np.ndarray


def ddpm_of(options: dict) -> process.DDPM:
    """The process of a scheduler's options, by default as the schedulers have them."""
    schedule = SCHEDULES[options.get("beta_schedule", "linear")]
    ends = {} if schedule == "squaredcos" else dict(start=options.get("beta_start", 1e-4), end=options.get("beta_end", 0.02))
    return process.DDPM(
        schedule, options["num_train_timesteps"], zero_snr=options.get("rescale_betas_zero_snr", False),
        rounded=schedule == "squaredcos", **ends,
    )


def spaced(options: dict, p: process.DDPM, steps: int) -> np.ndarray:
    """The descending timesteps of an option `timestep_spacing`, without the clean end."""
    kind = options.get("timestep_spacing", "leading")
    grid = times.leading(p, steps, options.get("steps_offset", 0)) if kind == "leading" else getattr(times, kind)(p, steps)
    return grid[:-1]


def on_x0(options: dict, keep_eps: process.Process | None = None) -> guidance.Guidance:
    """Thresholding or clipping of the predicted x0."""
    if options.get("thresholding", False):
        ratio, largest = options.get("dynamic_thresholding_ratio", 0.995), options.get("sample_max_value", 1.0)
        return guidance.Threshold(ratio, largest, keep_eps)
    if options.get("clip_sample", True):
        return guidance.Clip(options.get("clip_sample_range", 1.0), keep_eps)
    return guidance.chain()


# Grids ----------------------------------------------------------------------------------------------------------------------


def chained(options: dict, steps: int) -> Grid:
    """DDPMScheduler: every step ends where the next begins."""
    p = ddpm_of(options)
    t = spaced(options, p, steps)
    return Grid(p, np.stack([t, np.append(t[1:], np.int32(-1))], 1), t)


def strided(options: dict, steps: int) -> Grid:
    """DDIMScheduler: a step always goes back T // N, whatever the spacing."""
    p = ddpm_of(options)
    t = spaced(options, p, steps)
    s = np.maximum(t - p.steps // steps, -1)
    return Grid(p, np.stack([t, s if options.get("set_alpha_to_one", True) else np.maximum(s, 0)], 1), t)


def inverse(options: dict, steps: int) -> Grid:
    """DDIMInverseScheduler: ascending, and the network is shown the time that the step goes to."""
    p = ddpm_of(options)
    s = spaced(options, p, steps)[::-1]
    t = (s - p.steps // steps).astype(np.float32)
    t[t < 0] = -1 if options.get("set_alpha_to_one", True) else 1e-4       # not quite 0, which the next step may start from
    return Grid(Shown(p, t, s), np.stack([t, s], 1), s)


def beta_levels(high: float, low: float, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) between two noise levels (2407.12173)."""
    from scipy.stats import beta

    return low + beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (high - low)


def holding(p: process.DDPM, high: float, low: float) -> process.Process:
    """`p`, or where noise levels lie outside of its table the process that has them all."""
    return p if table(p)[0] <= low and high <= table(p)[-1] else process.Cosine()


def levels(options: dict, p: process.DDPM, high: float, low: float, steps: int) -> np.ndarray | None:
    """The noise levels of an option that replaces the timesteps by them; None where no such option is set."""
    high, low = options.get("sigma_max") or high, options.get("sigma_min") or low
    p = holding(p, high, low)
    if options.get("use_karras_sigmas"):
        return ratio(p, times.karras(p, steps, low, high)[:-1])
    if options.get("use_exponential_sigmas"):
        return ratio(p, times.log_snr(p, steps, low, high)[:-1])
    if options.get("use_beta_sigmas"):
        return beta_levels(high, low, steps)
    return None


def ratio(p: process.Process, t: np.ndarray) -> np.ndarray:
    return np.asarray(p.sigma(t) / p.alpha(t))


def table(p: process.DDPM) -> np.ndarray:
    """[T] noise levels; the schedulers replace an infinite last one by that of alpha_bar = 2^-24."""
    bar = p.alpha_bar[1:-1]
    bar = np.where(bar > 0, bar, 2.0**-24)
    return np.sqrt((1 - bar) / bar)


def at_levels(options: dict, p: process.DDPM, r: np.ndarray, labels: np.ndarray | None, last: float | None = None) -> Grid:
    """Steps through the noise levels r [N] to the final one. Labels default to the times at which r is found."""
    if last is None:
        last = table(p)[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    if labels is None:
        labels = np.interp(np.log(r), np.log(table(p)), np.arange(p.steps)).astype(np.float32)
    p = holding(p, r.max() * (1 - 1e-6), r.min() * (1 + 1e-6))
    t = np.asarray(p.time(jnp.asarray(np.append(r, last), jnp.float32)))
    return Grid(Shown(p, t[:-1], labels), np.stack([t[:-1], t[1:]], 1), labels)


def euler_grid(options: dict, steps: int) -> Grid:
    """Euler, Euler ancestral and Heun: float timesteps, noise levels interpolated linearly between the table's."""
    options = {"timestep_spacing": "linspace"} | options
    p = ddpm_of(options)
    whole = options["timestep_spacing"] != "linspace"
    t = (spaced(options, p, steps) if whole else np.linspace(0, p.steps - 1, steps)[::-1]).astype(np.float32)
    r = np.interp(t, np.arange(p.steps), table(p))
    if (special := levels(options, p, r[0], r[-1], steps)) is not None:
        r, t = special, None
    if options.get("interpolation_type") == "log_linear" and special is None:           # one level more, which ends the last step
        r = np.exp(np.linspace(np.log(table(p)[-1]), np.log(table(p)[0]), steps + 1))
        return at_levels(options, p, r[:-1], t, r[-1])
    grid = at_levels(options, p, r, t)
    if options.get("timestep_type") == "continuous" and options.get("prediction_type") == "v_prediction":
        return at_levels(options, p, r, np.log(r) / 4)
    return grid


def dpm_grid(options: dict, steps: int) -> Grid:
    """DPM-Solver: linspace and leading take one time more and drop the last; timesteps are rounded, noise levels are not."""
    options = {"timestep_spacing": "linspace"} | options
    p = ddpm_of(options)
    if options.get("use_flow_sigmas"):
        flow = process.Flow(options.get("flow_shift", 1.0))
        t = np.linspace(0, 1 - 1 / p.steps, steps + 1)[:0:-1].astype(np.float32)
        labels = (p.steps * np.asarray(flow.sigma(t))).astype(np.int32)
        return Grid(Shown(flow, t, labels), np.stack([t, np.append(t[1:], np.float32(0))], 1), labels)
    kept = p.steps - int(np.sum(-np.log(table(p)) < options.get("lambda_min_clipped", -np.inf)))
    if options["timestep_spacing"] == "trailing":
        t = np.round(np.arange(kept, 0, -p.steps / steps)).astype(np.int32) - 1
    else:
        t = spaced(options, replace(p, steps=kept), steps + 1)[:-1]
    r = levels(options, p, table(p)[-1], table(p)[0], steps)
    if options.get("use_lu_lambdas"):
        r = np.exp(np.linspace(np.log(table(p)[-1]), np.log(table(p)[0]), steps))
    if r is None:
        return at_levels(options, p, table(p)[t], t)
    t = np.interp(np.log(r), np.log(table(p).astype(np.float32)), np.arange(p.steps))
    rounds = (options.get("use_karras_sigmas") or options.get("use_lu_lambdas")) and p.schedule != "squaredcos"
    return at_levels(options, p, r, (np.round(t) if rounds else t).astype(np.int32))


def unipc_grid(options: dict, steps: int) -> Grid:
    """UniPC: as DPM-Solver, but levels may have ends of their own, a flow is shifted once, and the last step may only correct."""
    p = ddpm_of(options)
    r = levels(options, p, table(p)[-1], table(p)[0], steps)
    if options.get("use_flow_sigmas"):
        shift = options.get("flow_shift", 1.0)
        u = np.linspace(1, 1 / p.steps, steps + 1)[:-1]
        sigma = shift * u / (1 + (shift - 1) * u) if r is None else r / (1 + r)
        sigma = np.where(abs(sigma - 1) < 1e-6, sigma - 1e-6, sigma)
        t = sigma.astype(np.float32)                                      # of a flow that is not shifted, these are its times
        last = t[-1] if options.get("final_sigmas_type") == "sigma_min" else np.float32(0)
        labels = (p.steps * sigma).astype(np.int64)
        return Grid(Shown(process.Flow(), t, labels), np.stack([t, np.append(t[1:], last)], 1), labels)
    if r is None:
        return dpm_grid(options, steps)
    labels = np.interp(np.log(r), np.log(table(p).astype(np.float32)), np.arange(p.steps))
    labels = (np.round(labels) if options.get("use_karras_sigmas") else labels).astype(np.int32)
    # A step of length zero corrects nothing here; there it does.
    return at_levels(options, p, r, labels, r[-1] * (1 - 1e-5) if options.get("final_sigmas_type") == "sigma_min" else 0.0)


def deis_grid(options: dict, steps: int) -> Grid:
    """DEIS: as UniPC to the smallest level."""
    return unipc_grid(options | {"final_sigmas_type": "sigma_min"}, steps)


def lcm_grid(options: dict, steps: int) -> Grid:
    """LCM: times of the distillation, from a part of which edits begin."""
    p, teacher = ddpm_of(options), options.get("original_inference_steps") or 50
    part = int(teacher * options.get("strength", 1.0))
    t = distilled(replace(p, steps=p.steps // teacher * part), steps, part)
    return Grid(p, np.stack([t[:-1], t[1:]], 1), t[:-1])
