"""Maps along the flow in one step: what consistency models and mean flows are made of.

The probability flow of any process is regular in

    z = x / (alpha + sigma),   u = sigma / (alpha + sigma):   dz/du = eps - x0 = (z - x0(x, t)) / u    (1)

and a step t -> s of it, by Euler's method (DDIM) or Heun's, is

    z_s = z + (u_s - u) v,   v = dz/du at t, or the mean of both ends                                  (2)

Consistency models see x_t and an earlier x_s on one path. With r = sigma / alpha the two come as

    r_s = r max(0, 1 - n(r) / 2^a),   n(r) = 1 + k sigmoid(-b r)                                       (3)  2406.14548

which begins at r_s = 0 for a = 0, where x_s is the image, and approaches r as a rises while training goes on. Their distance is

    d = sqrt(|y|^2 + c^2) - c,   c = 0.00054 sqrt(number of values)                                    (4)  2310.14189 sec. 3.3

Mean flows know the mean of v on the way from t to s, so that (2) is exact however long the step:

    z_s = z + (u_s - u) mean v                                                                         (5)  2505.13447 eq. 12

(5) is DDIM's step with a denoiser that is told where the step ends.
"""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.process import levels
from diffusion_jax.diffusion.samplers import resolve, resting
from diffusion_jax.types import Array, Process, Sampler, State

SHARPNESS, STEEPNESS = 8.0, 1.0
"""k and b of (3)."""
HUBER = 0.00054
"""c of (4) over the root of the number of values."""


def earlier(process: Process, t: Array, halvings: Array | float) -> Array:
    """s of (3), [B]: earlier times on the same paths, clean ones among them.

    Args:
      process: the process.
      t: [B], in the unit of the process.
      halvings: a of (3), 0 or more.
    """
    t = jnp.asarray(t, float)
    r = process.sigma(t) / process.alpha(t)
    step = (1 + SHARPNESS * jax.nn.sigmoid(-STEEPNESS * r)) * 2.0 ** -jnp.asarray(halvings, float)
    return process.time(r * jnp.maximum(1 - step, 0))


def huber(y: Array, share: float = HUBER) -> Array:
    """(4) of y [B, ...], [B]; share 0 is the norm itself.

    Args:
      y: differences.
      share: c over the root of the number of values.
    """
    flat = y.reshape(len(y), -1)
    c = share * flat.shape[1] ** 0.5
    squares = jnp.sum(flat**2, axis=1)
    # The root of 0 has no derivative: there the distance is flat.
    moved = squares > 0
    root = jnp.sqrt(jnp.where(moved, squares, 1) + c**2)
    return jnp.where(moved, root, c) - c


def followed(
    x0_of: Callable[[Array, Array], Array], process: Process, x: Array, t: Array, s: Array, order: int = 1
) -> Array:
    """A step (2) of the probability flow, [B, ...].

    Args:
      x0_of: (x, t) -> x0, the denoiser whose flow it is.
      process: the process.
      x: at time t, [B, ...].
      t, s: begin and end, [B], t not clean.
      order: 1, Euler's method, or 2, Heun's; a step to a clean time is Euler's.
    """
    (alpha, sigma), (alpha_s, sigma_s) = levels(process, t, x), levels(process, s, x)
    z, u, u_s = x / (alpha + sigma), sigma / (alpha + sigma), sigma_s / (alpha_s + sigma_s)
    v = (z - x0_of(x, t)) / u
    if order == 2:
        noisy = sigma_s > 0
        ahead = z + (u_s - u) * v
        late = jnp.where(process.sigma(s) > 0, s, t)
        v_s = (ahead - x0_of((alpha_s + sigma_s) * ahead, late)) / jnp.where(noisy, u_s, 1)
        v = jnp.where(noisy, (v + v_s) / 2, v)
    return (alpha_s + sigma_s) * (z + (u_s - u) * v)


def meanflow(process: Process) -> Sampler:
    """The sampler of mean flows, (5): exact in any number of steps for a network that knows the mean velocity.

    Its denoiser is called as denoise(x, t, key, until), `until` being the noise label of the time that the step goes to; guidance
    then acts on mean velocities.

    Args:
      process: the process.
    """

    def init(x: Array, steps: int) -> State:
        return ()

    @resting
    def step(denoise, x, state, t, s, key):
        x0, eps = resolve(process, denoise(x, t, key, process.label(s)), x, t)
        alpha, sigma = levels(process, s, x)
        return alpha * x0 + sigma * eps, state

    return Sampler(init, step)


def adaptive(squares: Array, power: float, c: float) -> Array:
    """The weight 1 / (squares + c)^power of squared errors, [B], through which no gradient goes (2505.13447 sec. 4.3).

    Args:
      squares: summed over a sample, [B].
      power: 0 weighs nothing, 1 makes all samples count alike.
      c: keeps it finite.
    """
    return jax.lax.stop_gradient(squares + c) ** -power

