"""A run that is trained by hand, in a folder that `open_run` reads: for scripts and notebooks.

    with recording("runs/mine", page) as run:
        for step, state in loop.steps(
            task=run.task, checkpoints=run.checkpoints, writer=run.writer, optimizer=..., batches=...
        ):
            ...
    dj.pipeline("runs/mine")

The page says what the weights are of, for those who open the folder later: `task` with its
`model`, and perhaps `sample`. Data, optimiser and averages are arguments of the loop, any objects
of Python.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError
from diffusion_jax.runs import page as pages
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.log import Tracker, Writer
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Task


class Recording(NamedTuple):
    """What `train.loop.steps` takes of a run's folder.

    Attributes:
      task: what the page describes.
      checkpoints: where to go on from, and where to save.
      writer: of metrics.jsonl and TensorBoard.
    """

    task: Task
    checkpoints: Checkpoints
    writer: Writer


@contextlib.contextmanager
def recording(
    folder: str | os.PathLike[str],
    page: Mapping[str, Any],
    every: int = 1000,
    keep: int = 3,
    class_names: Sequence[str] = (),
    trackers: Sequence[Tracker] = (),
) -> Iterator[Recording]:
    """Holds a folder for a run that `train.loop.steps` trains, new or begun before.

    Args:
      folder: made where it is missing; ~ is expanded.
      page: sections of a page, all but `task` optional. What names a package of one's own needs
        `build.allow` first, here and where the folder is opened.
      every: updates between checkpoints.
      keep: how many of the latest stay.
      class_names: in the order of the labels, for those who ask for a class by its name.
      trackers: get the metrics too (train/trackers.py).

    Raises:
      ConfigError: what `open_run` would refuse of the page, another page than the folder's, another
        process that writes it, a first stage, whose weights only mode train keeps.
    """
    config = plain(page)
    pages.check_stored(config)
    task = task_of(config)
    if "first_stage" in config or config["task"].get("first_stage"):
        raise ConfigError("a first stage comes into the run's folder in mode train: train it there")
    folder = Path(folder).expanduser()
    data = {"classes": list(class_names)} if class_names else None
    with contextlib.ExitStack() as held:
        held.enter_context(one_writer(folder, "trained"))
        saved = Checkpoints(
            folder, config, every=every, keep=keep, may_change=pages.MAY_CHANGE, data=data
        )
        checkpoints = held.enter_context(saved)
        writer = held.enter_context(Writer(folder, trackers))
        yield Recording(task, checkpoints, writer)
