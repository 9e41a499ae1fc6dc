"""The trained diffusion model that a run learns from (tasks/consistency.py): `config.teacher`.

    --config.teacher=runs/digits

names its folder. Its task goes into config.task.teacher, and so into every checkpoint, and its
weights into workdir/teacher: the run's folder alone is enough to resume. To sample, nothing of the
teacher is read.
"""
from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.experimental import multihost_utils

from diffusion_jax.build import ConfigError, short
from diffusion_jax.runs.folder import TEACHER, Run, holds_run, open_run, save_start
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Params

TASK = "Consistency"
"""The task that has a teacher."""


class Joined(NamedTuple):
    """A run's config with its teacher.

    Attributes:
      config: with the teacher's task in its own.
      params: the teacher's weights; None where the page names none.
      keep: writes their copy into the run's folder, where it is not yet there.
    """

    config: dict[str, Any]
    params: Params | None
    keep: Callable[[], None]


def read(config: Mapping[str, Any], workdir: str) -> Joined:
    """A page's teacher, with nothing written yet.

    A resumed run goes on with the copy in its folder, whatever has become since of the folder that
    the page names.

    Raises:
      ConfigError: a task that has no teacher, guidance of one that is not there, and a folder that
        holds no diffusion model.
    """
    folder = config.get(TEACHER)
    learns = str(config["task"]["name"]).endswith(f":{TASK}")
    if not folder:
        if learns and config["task"].get("guidance", 1) != 1:
            raise ConfigError(
                "task.guidance is the teacher's: name its folder in config.teacher"
            )
        return Joined({k: v for k, v in config.items() if k != TEACHER}, None, _nothing)
    if not learns:
        raise ConfigError(
            "config.teacher is for tasks.consistency:Consistency, config.task is "
            f"{short(config['task']['name'])}: leave it out"
        )
    if not isinstance(folder, str):
        raise ConfigError(f"config.teacher is the folder of a run, got {short(folder)}")
    copy = Path(workdir, TEACHER)
    begun = holds_run(workdir) and holds_run(copy)
    run = open_run(copy if begun else folder, kinds.AtTimes, flag="config.teacher ")
    page = run.config
    model = {"model": page["model"]} if "model" in page else {}
    task = {**config["task"], TEACHER: {**page["task"], **model}}
    keep = _nothing if begun else functools.partial(_keep, copy, run)
    return Joined({**config, "task": task}, run.model.params, keep)


def _nothing() -> None:
    """What there is to keep of a copy."""


def _keep(copy: Path, run: Run) -> None:
    """Writes the copy, in the place of one that an unfinished start left."""
    if holds_run(copy):
        if jax.process_index() == 0:
            logging.warning("%s is of an unfinished start: replaced", copy)
            shutil.rmtree(copy)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("diffusion_jax: teacher replaced")
    parts = {key: run.config[key] for key in ("task", "model") if key in run.config}
    save_start(copy, parts, run.model.params)
