"""Losses of a denoiser: weights of |F - F*|^2, and the variational bound.

With snr = alpha^2 / sigma^2 and F = (x0 - skip x) / out, a weight w of |x0 - x0'|^2 is the weight w out^2 of |F - F*|^2:

    simple     1 on F                                            (1)  each paper's own loss (2006.11239 eq. 14)
    min-SNR    min(snr, gamma) on x0                             (2)  2303.09556 eq. 8
    P2         snr / (k + snr)^gamma on x0                       (3)  2204.00227 eq. 9
    EDM        (s^2 + sd^2) / (s sd)^2 on x0, s = sigma / alpha  (4)  2206.00364 table 1; it is snr + 1 / sd^2

    bound      KL(q(x_s | x_t, x0) || p(x_s | x_t)) for a noisy s, -log p(x0 | x_t) for a clean one    (5)  2006.11239 eq. 5

p is the Gaussian that the ancestral sampler draws from; x0 is then 256 grey values in [-1, 1].
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.process import bcast, posterior
from diffusion_jax.diffusion.variance import log_variance
from diffusion_jax.types import Array, Prediction, Process, Scales

BITS = 1 / math.log(2)          # bits in a nat


def snr(process: Process, t: Array) -> Array:
    """alpha^2 / sigma^2, shaped like t."""
    return (process.alpha(t) / process.sigma(t)) ** 2


@dataclass(frozen=True)
class Simple:
    """(1)."""

    def __call__(self, process: Process, t: Array, c: Scales) -> Array:
        """The weight of |F - F*|^2, [B]."""
        return jnp.ones_like(c.out)


@dataclass(frozen=True)
class MinSNR:
    """(2). gamma = inf weighs x0 by its SNR: the simple loss of eps in any parametrisation."""

    gamma: float = 5.0

    def __call__(self, process: Process, t: Array, c: Scales) -> Array:
        """The weight of |F - F*|^2, [B]."""
        return jnp.minimum(snr(process, t), self.gamma) * c.out**2


@dataclass(frozen=True)
class P2:
    """(3)."""

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, process: Process, t: Array, c: Scales) -> Array:
        """The weight of |F - F*|^2, [B]."""
        r = snr(process, t)
        return r / (self.k + r) ** self.gamma * c.out**2


@dataclass(frozen=True)
class EDM:
    """(4)."""

    sigma_data: float = 0.5

    def __call__(self, process: Process, t: Array, c: Scales) -> Array:
        """The weight of |F - F*|^2, [B]."""
        return (1 / self.sigma_data**2 + snr(process, t)) * c.out**2


def mean_flat(x: Array) -> Array:
    """Mean over all but the batch axis: [B, ...] -> [B]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def normal_kl(mean1: Array, logvar1: Array, mean2: Array, logvar2: Array) -> Array:
    """KL(N1 || N2) in nats per element."""
    ratio = logvar1 - logvar2                   # expm1: nearly equal Gaussians keep their digits
    return 0.5 * (jnp.expm1(ratio) - ratio + (mean1 - mean2) ** 2 * jnp.exp(-logvar2))


def discretized_log_likelihood(x0: Array, mean: Array, log_scale: Array) -> Array:
    """log of the mass that a Gaussian puts on the grey value of x0 (2006.11239 eq. 13), the outer two bins open.

    Args:
      x0: images in [-1, 1] on the grid of 256 values.
      mean, log_scale: the Gaussian, the scale as log standard deviation.
    """

    def cdf(z):                     # the published approximation (1 + tanh(.)) / 2 of the normal distribution function
        return jax.nn.sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))

    centred, inverse = x0 - mean, jnp.exp(-log_scale)
    tail = -jnp.abs(centred)        # the same mass by symmetry, as a difference of small numbers, which keeps its digits
    inner = cdf(inverse * (tail + 1 / 255)) - cdf(inverse * (tail - 1 / 255))
    black, white = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (1 / 255 - centred))
    mass = jnp.where(x0 < -0.999, black, jnp.where(x0 > 0.999, white, inner))
    return jnp.log(jnp.maximum(mass, 1e-12))


def bound(process: Process, p: Prediction, x0: Array, xt: Array, t: Array, s: Array, above: Array, variance: str) -> Array:
    """One term of the variational bound, (5), in nats per dimension [B]; times `BITS` it is in bits/dim.

    Args:
      process: the process.
      p: the prediction at xt.
      x0, xt: clean and noised images [B, ...].
      t, s, above: the step's begin and end, and the time before it on the grid, [B]; see `variance.log_variance`.
      variance: as in `samplers.ancestral`.
    """
    c = posterior(process, t, s)
    logvar = bcast(log_variance(process, variance, t, s, above, p.logvar), xt)
    true_mean = bcast(c.x0, xt) * x0 + bcast(c.xt, xt) * xt
    mean = bcast(c.x0, xt) * p.x0 + bcast(c.xt, xt) * xt
    true_logvar = bcast(log_variance(process, "fixed_small", t, s, above, None), xt)
    kl = mean_flat(normal_kl(true_mean, true_logvar, mean, logvar))
    nll = -mean_flat(discretized_log_likelihood(x0, mean, logvar / 2))
    return jnp.where(process.sigma(s) == 0, nll, kl)


def prior_bound(process: Process, x0: Array, t_max: Array) -> Array:
    """KL(q(x_T | x0) || N(0, 1)) in nats per dimension [B]."""
    a, s = process.alpha(t_max), process.sigma(t_max)
    return mean_flat(normal_kl(a * x0, jnp.full_like(x0, 2 * jnp.log(s)), jnp.zeros_like(x0), jnp.zeros_like(x0)))
