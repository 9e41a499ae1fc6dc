"""Bits/dim: the variational bound of a whole chain (2006.11239 eq. 5, 2102.09672 section 3).

    bits/dim = (KL(q(x_T | x0) || N(0, 1)) + sum_t KL(q(x_s | x_t, x0) || p(x_s | x_t)) - log p(x0 | x_1)) / (dims ln 2)  (1)

with one draw of x_t for each t.
"""
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.guidance import eps_of
from diffusion_jax.diffusion.losses import BITS, bound, mean_flat, prior_bound
from diffusion_jax.diffusion.process import noised
from diffusion_jax.types import Array, Cond, Denoiser, Key, Noise, Process


class Bits(NamedTuple):
    """(1) and its parts, in bits/dim.

    Attributes:
      total: [B].
      prior: its first term, [B].
      terms: the others, [B, N], the noisiest first.
      x0_mse, eps_mse: mean squared error of what the network predicts at each time, [B, N].
    """

    total: Array
    prior: Array
    terms: Array
    x0_mse: Array
    eps_mse: Array


def bits_per_dim(
    denoise: Denoiser, process: Process, x0: Array, times: Array, cond: Cond, key: Key, variance: str = "fixed_small",
    noise: Noise = jax.random.normal,
) -> Bits:
    """(1) of images.

    Args:
      denoise: the denoiser, guided by nothing but clipping.
      process: the process, whose noisiest x is N(0, 1).
      x0: images [B, H, W, C] of 256 grey values in [-1, 1].
      times: [N + 1], the chain from the noisiest time to the clean one.
      cond: what the network sees.
      key: of the draws.
      variance: as in `samplers.ancestral`.
      noise: the source of noise.
    """
    times = jnp.asarray(times)
    steps = times[:-1], times[1:], jnp.concatenate([times[:1], times[:-2]]), jax.random.split(key, len(times) - 1)

    def term(_: None, step: tuple[Array, Array, Array, Key]) -> tuple[None, tuple[Array, Array, Array]]:
        t, s, above, key = step
        k_noise, k_denoise = jax.random.split(key)
        eps = noise(k_noise, x0.shape, x0.dtype)
        xt = noised(process, x0, t, eps)
        p = denoise(xt, t, cond, k_denoise)
        bits = BITS * bound(process, p, x0, xt, t, s, above, variance)
        return None, (bits, mean_flat((p.x0 - x0) ** 2), mean_flat((eps_of(process, p.x0, xt, t) - eps) ** 2))

    _, found = jax.lax.scan(term, None, steps)
    terms, x0_mse, eps_mse = (value.T for value in found)
    prior = BITS * prior_bound(process, x0, times[0])
    return Bits(prior + jnp.sum(terms, axis=1), prior, terms, x0_mse, eps_mse)
