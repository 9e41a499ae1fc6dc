"""Replays of an official run: its stored noise goes in, the calls of the network come out.

Both go through ordered callbacks, so that the package's own `sample` runs unchanged under its `lax.scan`. Official arrays are
channels first, ours channels last.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from diffusion_jax.types import Array, Denoiser, Process


def nhwc(x: Array | np.ndarray) -> Array | np.ndarray:
    """[..., C, H, W] -> [..., H, W, C]. What is no JAX array becomes a NumPy one, with its dtype."""
    return jnp.moveaxis(x, -3, -1) if isinstance(x, jax.Array) else np.moveaxis(np.asarray(x), -3, -1)


def nchw(x: Array | np.ndarray) -> Array | np.ndarray:
    """[..., H, W, C] -> [..., C, H, W]. What is no JAX array becomes a NumPy one, with its dtype."""
    return jnp.moveaxis(x, -1, -3) if isinstance(x, jax.Array) else np.moveaxis(np.asarray(x), -1, -3)


def replay(draws: Iterable[np.ndarray]):
    """A `Noise` that hands out stored draws, one a call, in order."""
    left = iter(draws)

    def noise(key, shape, dtype) -> Array:
        return io_callback(lambda: np.asarray(next(left), dtype), jax.ShapeDtypeStruct(shape, dtype), ordered=True)

    return noise


def record(tape: list, *arrays: Array) -> None:
    """Appends the values of `arrays` to `tape` when this point of a program runs; read it after `jax.effects_barrier()`."""
    io_callback(lambda *values: tape.append([np.array(v) for v in values]), None, *arrays, ordered=True)


def watched(denoise: Denoiser, tape: list) -> Denoiser:
    """`denoise`, every call of it recorded as (x, t, x0)."""
    def call(x, t, cond, key):
        p = denoise(x, t, cond, key)
        record(tape, x, jnp.asarray(t), p.x0)
        return p

    return call


@dataclass(frozen=True, eq=False)
class Shown:
    """`process` on the times of one run, at each of which the network is shown a label of its own.

    Published schedulers round times, ask at a neighbouring time, or leave the trained range, while the step itself uses the
    exact noise level.
    """

    process: Process
    times: np.ndarray
    labels: np.ndarray

    @property
    def t_max(self) -> float:
        return self.times[0]

    @property
    def t_clean(self) -> float:
        return self.process.t_clean

    def alpha(self, t: Array) -> Array:
        return self.process.alpha(t)

    def sigma(self, t: Array) -> Array:
        return self.process.sigma(t)

    def unit(self, t: Array) -> Array:
        return self.process.unit(t)

    def at(self, u: Array) -> Array:
        return self.process.at(u)

    def time(self, ratio: Array) -> Array:
        return self.process.time(ratio)

    def label(self, t: Array) -> Array:
        return jnp.asarray(self.labels, jnp.float32)[jnp.argmin(jnp.abs(jnp.asarray(self.times) - t))]
