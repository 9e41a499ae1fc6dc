"""The oracle of these tests: data N(mean, std^2), of which every denoiser, flow and posterior is known in closed form."""
from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from diffusion_jax.types import Array, Denoiser, Prediction, Process


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
