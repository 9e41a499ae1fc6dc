"""How far a step may reach: what it does to the images, against how far they are spread where it ends.

With y = x / alpha and r = sigma / alpha, data of standard deviation c is spread by sqrt(c^2 + r^2) in y, and Euler's step from r
to r_s ends at y + (r_s - r) eps. A second evaluation there moves it by

    (r - r_s) / 2 (eps_s - eps)                                                       (1)

where eps_s - eps = (x0 - x0_s) / r_s, which is about c / r_s at most, and about 1 at most, for noise has unit variance. Against
the spread of what the network saw in training at r_s that is a strain of

    (r - r_s) min(1, c / r_s) / (2 sqrt(c^2 + r_s^2))                                 (2)

for the steps of `edm`, for the first of `plms`, and for those that the eps form of UniPC corrects. Heun's method in the
coordinates of `heun` has (1 + r_s) / (1 + r) of it, about 1 at most. The stochastic form of DPM-Solver in eps takes twice the
step away, and trusts in the fresh noise of variance r^2 - r_s^2 that it adds to make up for it, which leaves 2 (r - r_s)^2 too
much; its strain is

    2 (r - r_s) / sqrt(c^2 + r_s^2)                                                   (3)

DDPM with the variance of the forward step, beta, adds more noise than is left at s; with as much freedom as (3) its strain is

    2 sqrt(beta) / (alpha_s sqrt(c^2 + r_s^2)),   beta = sigma_t^2 (1 - r_s^2 / r^2)  (4)

UniPC's first correction is bounded by the change of x0, but for its variant bh1, which takes h / 2 of it, h = ln(r / r_s), where
half of it was right. A change of about c is then a strain of

    h c / (2 sqrt(c^2 + r_s^2))                                                       (5)

All other samplers move x0 by no more than it changes itself, on any grid. A strain of `LIMIT` throws images out of what the
network knows: of Gaussian data (tests/diffusion/test_reach.py) their spread is about doubled.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.times import karras, log_snr
from diffusion_jax.types import Process

LIMIT = 2.0
SPREAD = 0.5
"""c: of images in [-1, 1] (2206.00364's sigma_data); of latents, which are scaled to 1, (2) says nearly the same."""
WEAKEST = 1.5
"""The least sigma / alpha that pure noise may stand for: below it a third of the variance of x is the image's."""


class Steps(NamedTuple):
    """Steps of a grid to times that are not clean, [N] each.

    Attributes:
      r, r_s: sigma / alpha where they begin and end.
      beta: sqrt(beta) / alpha_s of (4).
    """

    r: np.ndarray
    r_s: np.ndarray
    beta: np.ndarray


Strain = Callable[[Steps], np.ndarray]
"""Steps -> the strain [N] of each."""


def second_evaluation(steps: Steps) -> np.ndarray:
    """(2)."""
    r, r_s, _ = steps
    return (r - r_s) * np.minimum(1, SPREAD / r_s) / (2 * np.hypot(SPREAD, r_s))


def first_step(steps: Steps) -> np.ndarray:
    """(2) of the first step alone that is not of length zero."""
    return second_evaluation(steps) * (np.cumsum(steps.r != steps.r_s) <= 1)


def fresh_noise(steps: Steps) -> np.ndarray:
    """(3)."""
    return 2 * (steps.r - steps.r_s) / np.hypot(SPREAD, steps.r_s)


def large_variance(steps: Steps) -> np.ndarray:
    """(4)."""
    return 2 * steps.beta / np.hypot(SPREAD, steps.r_s)


def first_variant(steps: Steps) -> np.ndarray:
    """(5)."""
    return np.log(steps.r / steps.r_s) * SPREAD / (2 * np.hypot(SPREAD, steps.r_s))


def steps_of(process: Process, times: np.ndarray) -> Steps:
    """Those of a grid of times [N + 1], in float64; r is infinite where alpha is 0."""
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(times)
        alpha, sigma = (np.asarray(value(t), np.float64) for value in (process.alpha, process.sigma))
    with np.errstate(divide="ignore"):
        r = sigma / alpha
    noisy = sigma[1:] > 0
    beta = sigma[:-1] * np.sqrt(np.maximum(1 - (r[1:] / r[:-1]) ** 2, 0)) / np.where(alpha[1:] > 0, alpha[1:], 1)
    return Steps(r[:-1][noisy], r[1:][noisy], beta[noisy])


def strain(process: Process, times: np.ndarray, of: Strain) -> float:
    """The largest strain of a grid of times [N + 1]; steps to a clean time, which are Euler's, have none."""
    return float(np.max(of(steps_of(process, times)), initial=0.0))


def check_start(process: Process, times: np.ndarray) -> None:
    """Raises ConfigError where a grid of times begins where noise cannot stand for x_t."""
    with jax.ensure_compile_time_eval():
        alpha, sigma = (float(value(jnp.asarray(times[0]))) for value in (process.alpha, process.sigma))
    if sigma < WEAKEST * alpha:
        raise ConfigError(
            f"the times begin at t = {times[0]:g}, where sigma / alpha is {sigma / alpha:.2g} and x is not the noise that "
            "sampling begins with: choose times 'trailing' or 'uniform', or more steps"
        )


def remark(process: Process, times: np.ndarray, of: Strain, sampler: str) -> str:
    """What to say of steps that are longer than a sampler can make, and what to choose instead; '' where none is.

    Args:
      process, times: of the run.
      of: the sampler's strain.
      sampler: its name.
    """
    if strain(process, times, of) <= LIMIT:
        return ""
    steps = steps_of(process, times)
    worst = int(np.argmax(of(steps)))
    others = {grid.__name__: grid(process, len(times) - 1) for grid in (karras, log_snr)}
    better = [f"times {name!r}, " for name, grid in others.items() if strain(process, grid, of) <= LIMIT]
    return (
        f"{sampler} steps from sigma / alpha = {steps.r[worst]:.3g} to {steps.r_s[worst]:.3g} at once, further than it can: "
        f"choose {''.join(better[:1])}more steps, or sampler 'dpmpp_2m' or 'ddim'"
    )
