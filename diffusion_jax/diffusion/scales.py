"""Parametrisations: the four scalars that make a denoiser of a network, x0 = skip x + out F(in x, noise, cond).

With a = alpha(t), s = sigma(t), sd = sigma_data and n = a^2 sd^2 + s^2:

    F predicts          in          noise       skip          out
    eps                 1           label(t)    1 / a         -s / a               (1)  2006.11239
    v = a eps - s x0    1           label(t)    a             -s                   (2)  2202.00512
    x0                  1           label(t)    0             1                    (3)
    eps - x0            1           label(t)    1 / (a + s)   -s / (a + s)         (4)  2209.03003
    EDM                 1/sqrt(n)   ln(s/a)/4   a sd^2 / n    s sd / sqrt(n)       (5)  2206.00364 table 1
    mean of x_{t-1}     1           label(t)    -c / b        1 / b                (6)  2006.11239 eq. 7, mean b x0 + c x_t

(2) is written for processes with a^2 + s^2 = 1. The training target of F is F* = (x0 - skip x) / out, and |F - F*|^2 is
each paper's own simple loss.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import DDPM, bcast, narrow, posterior, starts_from_pure_noise
from diffusion_jax.types import Array, Cond, Denoiser, Key, Network, Prediction, Process, Scales


class Scale(Protocol):
    """What a network predicts, as the four scalars."""

    def __call__(self, process: Process, t: Array) -> Scales:
        """The scalars at t, each shaped like it."""
        ...


@dataclass(frozen=True)
class Eps:
    """(1): F predicts the noise. Undefined where alpha = 0."""

    def __call__(self, process: Process, t: Array) -> Scales:
        if starts_from_pure_noise(process):
            raise ConfigError(f"eps gives no x0 where alpha = 0 ({process}): predict v, x0 or velocity")
        a, s = process.alpha(t), process.sigma(t)
        return Scales(jnp.ones_like(a), process.label(t), 1 / a, -s / a)


@dataclass(frozen=True)
class V:
    """(2): F predicts v = alpha eps - sigma x0."""

    def __call__(self, process: Process, t: Array) -> Scales:
        a, s = process.alpha(t), process.sigma(t)
        return Scales(jnp.ones_like(a), process.label(t), a, -s)


@dataclass(frozen=True)
class X0:
    """(3): F predicts the clean image."""

    def __call__(self, process: Process, t: Array) -> Scales:
        one = jnp.ones_like(process.alpha(t))
        return Scales(one, process.label(t), 0 * one, one)


@dataclass(frozen=True)
class Velocity:
    """(4): F predicts eps - x0, the velocity of z = x / (alpha + sigma) against u = sigma / (alpha + sigma)."""

    def __call__(self, process: Process, t: Array) -> Scales:
        a, s = process.alpha(t), process.sigma(t)
        return Scales(jnp.ones_like(a), process.label(t), 1 / (a + s), -s / (a + s))


@dataclass(frozen=True)
class EDM:
    """(5): input and target of unit variance at every noise level, for data of standard deviation `sigma_data`."""

    sigma_data: float = 0.5

    def __call__(self, process: Process, t: Array) -> Scales:
        a, s, sd = process.alpha(t), process.sigma(t), self.sigma_data
        n = (a * sd) ** 2 + s**2
        return Scales(n**-0.5, jnp.log(s / a) / 4, a * sd**2 / n, s * sd * n**-0.5)


@dataclass(frozen=True)
class PreviousMean:
    """(6): F predicts the mean of q(x_{t-1} | x_t, x0) of a process that counts its steps, whatever steps are sampled."""

    def __call__(self, process: Process, t: Array) -> Scales:
        if not isinstance(process, DDPM):
            raise ConfigError(f"the previous mean needs a DDPM process, whose times have a previous one; {process} has none")
        q = posterior(process, t, t - 1)
        return Scales(jnp.ones_like(q.x0), process.label(t), -q.xt / q.x0, 1 / q.x0)


def target(process: Process, scale: Scale, x0: Array, xt: Array, t: Array) -> Array:
    """F* = (x0 - skip x_t) / out, shaped like x0 [B, ...]; t [B]."""
    c = scale(process, t)
    return (x0 - bcast(c.skip, x0) * xt) / bcast(c.out, x0)


def to_x0(c: Scales, x: Array, out: Array) -> Array:
    """x0 of the network output `out` at x, both [B, ...].

    A large skip (1 / a of eps, at high noise) stands outside the difference, whose terms nearly cancel: x - s out keeps the
    digits that x / a - (s / a) out would lose.
    """
    outside = jnp.where(jnp.abs(c.skip) > 1, c.skip, 1.0)
    return bcast(outside, x) * (bcast(c.skip / outside, x) * x + bcast(c.out / outside, x) * out)


def to_output(c: Scales, x: Array, x0: Array) -> Array:
    """The network output that means x0: the inverse of `to_x0`."""
    return (x0 - bcast(c.skip, x) * x) / bcast(c.out, x)


def denoiser(network: Network, process: Process, scale: Scale, learned_variance: bool = False) -> Denoiser:
    """The denoiser of a network.

    Args:
      network: (in_ x [B, ..., C], noise label [B], cond) -> [B, ..., C], or [B, ..., 2C] with `learned_variance`.
      process, scale: what the network was trained for.
      learned_variance: whether the second half of the channels is the raw variance, put into `Prediction.logvar`.

    Example:
      guided = chain(Clip(), CFG(4.0, null))(denoiser(network, DDPM(), Eps()))
      images = sample(guided, ddim(DDPM()), noise, respace(DDPM(), 50), cond, key)
    """

    def denoise(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
        c = scale(process, t)
        label = jnp.broadcast_to(narrow(c.noise, x), x.shape[:1])         # [B]
        out = network(bcast(c.in_, x) * x, label, cond)                   # [B, ..., C or 2C]
        out, logvar = jnp.split(out, 2, axis=-1) if learned_variance else (out, None)
        return Prediction(to_x0(c, x, out), logvar=logvar)

    return denoise
