"""A sampler of your own: Adams-Bashforth's second-order method, from the command line and from Python.

    python -m diffusion_jax.main --config digits --workdir runs/digits
    python -m diffusion_jax.main --mode sample --workdir runs/digits --steps 10 --sampler own_sampler:adams --allow own_sampler
    python own_sampler.py runs/digits

A function of the process whose other arguments have defaults, which are its options: `own_sampler:adams,follow=0.5`.
"""
import sys

import jax.numpy as jnp

import diffusion_jax as dj
from diffusion_jax.build import allow
from diffusion_jax.diffusion.samplers import resting
from diffusion_jax.types import Array, Process, Sampler, State


def adams(process: Process, follow: float = 1.0) -> Sampler:
    """Follows dz/du = eps - x0, z = x / (alpha + sigma), u = sigma / (alpha + sigma), one network call a step.

    Args:
      process: what the model was trained on.
      follow: the share of the slope's change since the last step that is followed on: 1 is Adams-Bashforth, 0 is DDIM.
    """

    def init(x: Array, steps: int) -> State:
        """(the slope of the step before, its length): before the first step there was none, or an endless one."""
        return jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)

    @resting  # a step of length zero changes nothing
    def step(denoise, x, state, t, s, key):
        past, before = state
        alpha, sigma = process.alpha(t), process.sigma(t)
        wide_t, wide_s = alpha + sigma, process.alpha(s) + process.sigma(s)
        x0 = denoise(x, t, key).x0  # [B, H, W, C]
        slope = (x - alpha * x0) / sigma - x0
        length = (process.sigma(s) / wide_s - sigma / wide_t).astype(x.dtype)
        ahead = slope + follow * length / (2 * before) * (slope - past)
        return wide_s * (x / wide_t + length * ahead), (slope, length)

    return Sampler(init, step)


def main(folder: str) -> None:
    """Threes of a run of the digits by this sampler and by DDIM, in ten steps each."""
    allow("own_sampler")
    pipe = dj.pipeline(folder).using(steps=10)
    for sampler in ("ddim", "own_sampler:adams"):
        pipe.using(sampler=sampler)(3, num=16).save(f"{folder}/{sampler.rpartition(':')[2]}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
