"""Networks that know the flow of Gaussian data, but for an error of a size that is their only parameter."""
from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.diffusion.process import bcast
from diffusion_jax.diffusion.scales import to_output
from diffusion_jax.types import UNTIL

MEAN, STD = 0.7, 0.5
SHAPE = (2, 2, 1)


def width(process, t):
    """The standard deviation of x_t."""
    return jnp.hypot(process.alpha(t) * STD, process.sigma(t))


def expected(process, x, t):
    """E[x0 | x_t]."""
    a = process.alpha(t)
    return MEAN + a * STD**2 / width(process, t) ** 2 * (x - a * MEAN)


def flow(process, x, t, s):
    """Where the probability flow takes x_t at time s: it keeps the number of standard deviations from the mean."""
    return process.alpha(s) * MEAN + width(process, s) * (x - process.alpha(t) * MEAN) / width(process, t)


def end(process, x, t):
    """The x0 of the flow through x_t."""
    return MEAN + STD * (x - process.alpha(t) * MEAN) / width(process, t)


class Exact(nn.Module):
    """x0 of x_t, the mean (`ends` False) or the end of the flow, plus error x_t."""

    process: Any
    scale: Any
    ends: bool

    @nn.compact
    def __call__(self, x, noise, cond):
        error = self.param("error", nn.initializers.zeros, ())
        t = noise / self.process.label(1.0)
        tb = bcast(t, x)
        x0 = end(self.process, x, tb) if self.ends else expected(self.process, x, tb)
        return to_output(self.scale(self.process, t), x, x0 + error * x)


class ExactMean(nn.Module):
    """The mean velocity of Flow's flow between two times, plus error z."""

    process: Any
    interval: bool = True

    @nn.compact
    def __call__(self, x, noise, cond):
        error = self.param("error", nn.initializers.zeros, ())
        t, s = (bcast(label / 1000, x) for label in (noise, cond.get(UNTIL, noise)))
        near = jnp.abs(t - s) < 1e-3
        velocity = (x - expected(self.process, x, t)) / t
        way = (x - flow(self.process, x, t, jnp.where(near, t - 0.1, s))) / jnp.where(near, 0.1, t - s)
        return jnp.where(near, velocity, way) + error * x


def batch(n=8192):
    """Pictures whose values are independent, of this mean and deviation."""
    return {"image": jnp.asarray(MEAN + STD * np.random.default_rng(0).normal(size=(n, *SHAPE)), jnp.float32)}
