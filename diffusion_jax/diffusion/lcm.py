"""Latent consistency models: a network that was distilled to see the end of the probability flow, and the times that it knows.

    f(x, t) = c_skip x + c_out x0,  c_skip = c^2 / (q^2 + c^2),  c_out = q / sqrt(q^2 + c^2),  q = scaling t    (1)  2310.04378
    x_s = alpha_s f(x_t, t) + sigma_s n,  n fresh                                                               (2)  2303.01469

with c = 1/2, and t counted from 0 to 1000: with the published scaling of 10, f is x0 to six digits but for the cleanest times. A
network that was not distilled says the mean of all images that x_t may come from, so that (2) makes them too smooth.

The distillation went by `teacher` of a table's T times, k - 1, 2 k - 1 ... T - 1 with k = T // teacher; N steps begin at

    i-th of these from the noisy end,   i = floor(n teacher / N),   n = 0 ... N - 1                                 (3)
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, number
from diffusion_jax.diffusion.process import DDPM, bcast, levels
from diffusion_jax.diffusion.samplers import resting
from diffusion_jax.types import Array, Noise, Process, Sampler, State

SPREAD = 0.5
"""c of (1), the standard deviation of images (2310.04378's sigma_data)."""


def lcm(process: Process, scaling: float = 10.0, noise: Noise = jax.random.normal) -> Sampler:
    """The sampler of latent consistency models, (2): ends of the flow, noised anew; the last step, to a clean time, adds none.

    Args:
      process: the process.
      scaling: of (1); a network was distilled with one.
      noise: the source of noise.

    Raises:
      ConfigError: a scaling that is not above 0.
    """
    if not number("scaling", scaling) > 0:
        raise ConfigError(f"scaling is above 0, 10 as published: got {scaling}")

    def init(x: Array, steps: int) -> State:
        return ()

    @resting
    def step(denoise, x, state, t, s, key):
        k_denoise, k_noise = jax.random.split(key)
        q = scaling * (process.label(t) if isinstance(process, DDPM) else 1000 * process.unit(t))
        skip, out = SPREAD**2 / (q**2 + SPREAD**2), q / jnp.hypot(q, SPREAD)
        end = bcast(skip, x) * x + bcast(out, x) * denoise(x, t, k_denoise).x0
        alpha, sigma = levels(process, s, x)
        return alpha * end + sigma * noise(k_noise, x.shape, x.dtype), state

    return Sampler(init, step)


def distilled(process: Process, steps: int, teacher: int = 50) -> np.ndarray:
    """(3), [steps + 1] int32, with its clean end.

    Args:
      process: a table.
      steps: how many, at most as the teacher had.
      teacher: how many the distillation went by.

    Raises:
      ConfigError: a process without a table, or more steps than the teacher had or the table has.
    """
    if not isinstance(process, DDPM):
        raise ConfigError(f"distilled times need a DDPM process, this one is continuous ({process}): use uniform")
    number("teacher", teacher, 1, process.steps, integer=True)
    number("steps of distilled times", steps, 1, teacher, integer=True)
    teacher, steps = int(teacher), int(steps)
    times = (np.arange(teacher, 0, -1) * (process.steps // teacher) - 1)[np.arange(steps) * teacher // steps]
    return np.append(times, -1).astype(np.int32)
