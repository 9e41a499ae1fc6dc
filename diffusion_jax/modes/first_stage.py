"""A frozen first stage that a run trains on, a discrete VAE or a CLIP for example: `config.first_stage` names its folder.

What is read from that folder, its task and its weights, becomes part of the run: the task goes into config.task.first_stage, and
so into every checkpoint, and the weights into workdir/first_stage. So the run's folder alone is enough to sample and to resume.
With a mapping in place of the folder's name, {'folder': ..., 'scale': ...}, its other entries change the task: one autoencoder
gives latents of many scales.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from diffusion_jax.modes import embedder
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
    spec, params = _read(config[NAME], Path(workdir, NAME), config.get("data", {}))
    return {**config, "task": {**config["task"], NAME: spec}}, {NAME: params}


def _read(where: str | Mapping[str, Any], folder: Path, data: Mapping[str, Any]) -> tuple[dict[str, Any], Params]:
    """(the task, the weights) of the run in `where`, or of `folder`, to which they are copied; a CLIP with its statistics."""
    where, changes = (where, {}) if isinstance(where, str) else (where["folder"], {**where})
    stored, _, params = load(folder if _has(folder) else where)
    stored = plain(stored)
    stored["task"] |= {name: value for name, value in changes.items() if name != "folder"}
    if stored["task"]["name"] == embedder.CLIP:
        spec, params = embedder.fitted(stored, params, data)
        stored = {"task": spec}
    spec = stored["task"] | ({"model": stored["model"]} if "model" in stored else {})
    if not _has(folder):
        kept = {name: stored[name] for name in ("task", "model") if name in stored}
        with Checkpoints(folder, kept, every=1, keep=1) as checkpoints:
            checkpoints.save(TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=(), ema={}))
    return spec, params


def kept(workdir: str) -> Params:
    """{'first_stage': the weights} in a run's folder, or None."""
    folder = Path(workdir, NAME)
    return {NAME: load(folder)[2]} if _has(folder) else None


def _has(folder: Path) -> bool:
    return folder.is_dir() and bool(available(folder))
