"""The variance of a reverse step p(x_s | x_t), fixed or learned.

With the posterior's variance small and the forward step's large (process.py (5)), and raw in [-1, 1] what a network put out:

    learned_range    log var = log small + (raw + 1) / 2 (log large - log small)      (1)  2102.09672 eq. 15
"""
from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.diffusion.process import bcast, posterior
from diffusion_jax.types import Array, Process

VARIANCES = ("fixed_small", "fixed_large", "learned_range", "learned")
LEAST_VARIANCE = 1e-20


def log_variance(process: Process, kind: str, t: Array, s: Array, above: Array, raw: Array | None) -> Array:
    """The log-variance of p(x_s | x_t), a scalar or shaped like t, or like `raw` where it is learned.

    At a clean s the posterior variance is 0; like the published code it is replaced there by that of the step before, above -> t.

    Args:
      process: the process.
      kind: 'fixed_small' (posterior), 'fixed_large' (beta), 'learned_range' (interpolated by raw in [-1, 1], 2102.09672
        eq. 15) or 'learned' (raw itself).
      t, s: from and to.
      above: the time before t on the grid.
      raw: `Prediction.logvar`.
    """
    if kind not in VARIANCES:
        raise unknown("variance", kind, VARIANCES)
    if kind.startswith("learned") and raw is None:
        raise ConfigError(f"variance {kind!r} needs a network that learned it (twice the channels out); use 'fixed_small'")
    if kind == "learned":
        return raw
    here, before = posterior(process, t, s), posterior(process, above, t)
    clean = process.sigma(s) == 0
    small = jnp.log(jnp.maximum(jnp.where(clean, before.small, here.small), LEAST_VARIANCE))
    if kind == "fixed_small":
        return small
    large = jnp.log(jnp.maximum(here.large, LEAST_VARIANCE))        # 0 at s = t, of whose log a share is no number
    if kind == "fixed_large":
        return jnp.where(clean, small, large)
    low, high = bcast(small, raw), bcast(large, raw)
    return low + (raw + 1) / 2 * (high - low)
