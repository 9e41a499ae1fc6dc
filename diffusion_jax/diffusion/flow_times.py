"""The times of diffusers' FlowMatchEulerDiscreteScheduler, as a grid for `sample`: what Stable Diffusion 3 is sampled at.

A flow with a shift k has the noise levels

    s_k(u) = k u / (1 + (k - 1) u),    u in [0, 1]                                    (1)

and sigma(t) = s_k(t) in our `Flow`. The scheduler begins from N equal parts of 1 ... s_k(1 / T), where T = 1000 is how many times
it was trained with, and shifts those again, so that k acts twice at the small end:

    u_i = 1 + (i / (N - 1)) (s_k(1 / T) - 1),    sigma_i = s_k(u_i),    i = 0 ... N - 1            (2)

Three options change sigma_i after that, in this order: stretched, so that the last one is `terminal`,

    sigma <- 1 - (1 - sigma) (1 - terminal) / (1 - sigma_{N-1})                       (3)

and replaced by levels between the first and the last of them,

    karras       (a^(1/7) + i / (N - 1) (b^(1/7) - a^(1/7)))^7                        (4)  2206.00364 eq. 5
    exponential  a (b / a)^(i / (N - 1))                                              (5)
    beta         b + (a - b) times the quantile 1 - i / (N - 1) of Beta(0.6, 0.6)     (6)  2407.12173

The step behind the last one ends at a clean image.
"""
from __future__ import annotations

import numpy as np

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.diffusion.process import Flow
from diffusion_jax.types import Process

LEVELS = ("", "karras", "exponential", "beta")
STEPS = 1000
"""T of (2)."""
RHO, SHAPE = 7.0, 0.6


def flow_match(process: Process, steps: int, levels: str = "", terminal: float = 0.0, dynamic: bool = False) -> np.ndarray:
    """The times of (2), [steps + 1] float32.

    Args:
      process: a flow.
      steps: N.
      levels: (4), (5) or (6); '' keeps (2).
      terminal: of (3); 0 for none.
      dynamic: the shift came with the size of the image and not with the scheduler, whose table is then not shifted: (2) goes
        down to u = 1 / T.

    Raises:
      ConfigError: another process, an unknown word, a step count below 1, a `terminal` that is no noise level below 1.
    """
    number("steps", steps, 1, integer=True)
    if not isinstance(process, Flow):
        raise ConfigError(f"times of flow_match need a Flow, this process is {process}: use scheduler or karras")
    if levels not in LEVELS:
        raise unknown("levels", levels, LEVELS)
    if not 0 <= number("terminal", terminal) < 1:
        raise ConfigError(f"terminal is the last noise level, 0 ... 1, and 0 for none: got {terminal}")
    sigma = noise_levels(process.shift, steps, levels, terminal, dynamic)
    return np.append(unshifted(sigma, process.shift), 0.0).astype(np.float32)


def shifted(u: np.ndarray, shift: float) -> np.ndarray:
    """(1)."""
    return shift * u / (1 + (shift - 1) * u)


def unshifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    """The inverse of (1), which is (1) with 1 / k."""
    return shifted(sigma, 1 / shift)


def noise_levels(shift: float, steps: int, levels: str = "", terminal: float = 0.0, dynamic: bool = False) -> np.ndarray:
    """sigma_i of (2) to (6), [steps] float64, see `flow_match`."""
    least = 1 / STEPS if dynamic else shifted(np.float64(1 / STEPS), shift)
    sigma = shifted(np.linspace(1, least, steps), shift)
    if terminal:
        sigma = 1 - (1 - sigma) * (1 - terminal) / (1 - sigma[-1])
    if not levels:
        return sigma
    a, b, i = sigma[0], sigma[-1], np.linspace(0, 1, steps)
    if levels == "karras":
        return (a ** (1 / RHO) + i * (b ** (1 / RHO) - a ** (1 / RHO))) ** RHO
    if levels == "exponential":
        return a * (b / a) ** i
    from scipy.stats import beta  # half a second, which other grids do not wait for

    return b + (a - b) * beta.ppf(1 - i, SHAPE, SHAPE)
