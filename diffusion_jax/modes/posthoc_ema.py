"""Mode `posthoc_ema`: averages of any length, made of a run's snapshots after training; each is a folder that samples."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.train.checkpoint import Checkpoints, available
from diffusion_jax.train.posthoc import reconstruct
from diffusion_jax.types import TrainState


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Writes a folder <out>/<std> for each length.

    Args:
      config: not needed: the snapshots carry the run's.
      workdir: the run's folder, trained with config.snapshots.
      options: std, relative standard deviations as text; step, the update at which the averages end, the last snapshot's by
        default; out, 'posthoc' in the run's folder by default.

    Raises:
      ConfigError: no std, one that is no number, what `reconstruct` refuses, or a folder that is there already.
    """
    options = dict(options)
    if "std" not in options:
        raise ConfigError("mode posthoc_ema needs --std, lengths of averages: --std=0.05,0.10,0.15")
    names, step = options.pop("std"), options.pop("step", None)
    out = Path(options.pop("out", Path(workdir, "posthoc")))
    for name in options:
        raise ConfigError(f"--{name} is not for averages: give --std and perhaps --step and --out")
    try:
        stds = [float(name) for name in names]
    except ValueError:
        raise ConfigError(f"--std is a list of numbers, got {','.join(names)}") from None
    taken = [name for name in names if (out / name).is_dir() and available(out / name)]
    if taken:
        raise ConfigError(f"{out / taken[0]} holds an average already: choose another --out")
    stored, end, averages = reconstruct(workdir, stds, step)
    for name, average in zip(names, averages, strict=True):
        with Checkpoints(out / name, stored, every=1, keep=1) as checkpoints:
            params = jax.tree.map(jnp.asarray, average)
            checkpoints.save(TrainState(step=jnp.int32(end), params=params, opt_state=(), ema={}))
        print(f"average of std {name} at step {end}: {out / name}")
