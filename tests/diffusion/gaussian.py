"""The oracle of these tests: data N(mean, std^2), of which every denoiser, flow and posterior is known in closed form."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Denoiser, Key, Prediction, Process, Sampler


@dataclass(frozen=True)
class Gaussian:
    """x_t of data N(mean, std^2) has the mean alpha mean and the variance alpha^2 std^2 + sigma^2."""

    mean: float = 0.7
    std: float = 0.5

    def width(self, process: Process, t: Array) -> Array:
        """The standard deviation of x_t."""
        return jnp.hypot(process.alpha(t) * self.std, process.sigma(t))

    def x0(self, process: Process, x: Array, t: Array) -> Array:
        """E[x0 | x_t]."""
        a = process.alpha(t)
        return self.mean + a * self.std**2 / self.width(process, t) ** 2 * (x - a * self.mean)

    def denoiser(self, process: Process) -> Denoiser:
        """The exact one."""
        return lambda x, t, cond, key: Prediction(self.x0(process, x, t))

    def flow(self, process: Process, x: Array, t: Array, s: Array) -> Array:
        """Where the probability flow takes x_t at time s: it keeps the number of standard deviations from the mean."""
        deviation = (x - process.alpha(t) * self.mean) / self.width(process, t)
        return process.alpha(s) * self.mean + self.width(process, s) * deviation


def error(p: Process, make: Callable[[Process], Sampler], high: float = 60.0) -> Callable[[int], float]:
    """n -> the distance from the exact flow after n steps that are equal in log SNR, one compiled step at a time."""
    data, key = Gaussian(), jax.random.key(0)
    sampler, exact = make(p), data.denoiser(p)
    step = jax.jit(lambda x, state, t, s: sampler.step(lambda x, t, key: exact(x, t, {}, key), x, state, t, s, key))
    grid = {n: p.time(jnp.asarray(np.geomspace(high, 0.05, n + 1))) for n in (40, 80)}

    def run(n: int) -> float:
        start = data.width(p, grid[n][0]) * jnp.linspace(-1, 1, 4)
        x, state = start, sampler.init(start, n)
        for t, s in zip(grid[n][:-1], grid[n][1:], strict=True):
            x, state = step(x, state, t, s)
        return float(jnp.abs(x - data.flow(p, start, grid[n][0], grid[n][-1])).max())

    return run


def wave(key: Key, shape: tuple[int, ...], dtype: str) -> Array:
    """Any noise: the same at every step."""
    return jnp.cos(jnp.arange(math.prod(shape), dtype=dtype)).reshape(shape)
