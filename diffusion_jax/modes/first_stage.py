"""A frozen first stage that a run trains on, a discrete VAE for example: `config.first_stage` names its folder.

What is read from that folder, its task and its weights, becomes part of the run: the task goes into config.task.first_stage, and
so into every checkpoint, and the weights into workdir/first_stage. So the run's folder alone is enough to sample and to resume.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from diffusion_jax.train.checkpoint import Checkpoints, available, load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Params, TrainState

NAME = "first_stage"


def joined(config: Mapping[str, Any], workdir: str) -> tuple[dict[str, Any], Params]:
    """(the config with the first stage's task in its own, {'first_stage': its weights}); (config, None) where it names none.

    Raises:
      ConfigError: what `load` refuses.
    """
    if NAME not in config:
        return dict(config), None
    folder = Path(workdir, NAME)
    stored, _, params = load(folder if _has(folder) else config[NAME])
    stored = plain(stored)
    spec = stored["task"] | ({"model": stored["model"]} if "model" in stored else {})
    if not _has(folder):
        with Checkpoints(folder, {name: stored[name] for name in ("task", "model") if name in stored}, every=1, keep=1) as kept:
            kept.save(TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=(), ema={}))
    return {**config, "task": {**config["task"], NAME: spec}}, {NAME: params}


def kept(workdir: str) -> Params:
    """{'first_stage': the weights} in a run's folder, or None."""
    folder = Path(workdir, NAME)
    return {NAME: load(folder)[2]} if _has(folder) else None


def _has(folder: Path) -> bool:
    return folder.is_dir() and bool(available(folder))
