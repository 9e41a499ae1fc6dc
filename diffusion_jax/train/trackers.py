"""W&B and MLflow: a run's numbers, pictures and page, there too.

    runs/x/metrics.jsonl              what a run says; the trackers hold the same
           trackers/wandb.json        which run of W&B it is: {"id": "3f2k9c1a"}
           trackers/mlflow.json       and of MLflow

1. A restart goes on in the same run of the tracker.
2. Nothing is logged twice: a step that comes again, after the last checkpoint, is the same bit for bit and is left out.
3. What a tracker misses, because it was not there or a kill came between, it gets from metrics.jsonl at the next start.
4. Of a tracker that fails while a run trains one line is logged, and the run goes on without it. Only one that a run has not
   been in before stops it: at a start there is nothing to lose yet.

Where a run of a tracker lies, its own variables of the environment say (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME ...). A copy of a run's folder that is to be another run there loses its folder 'trackers' first.
"""
from __future__ import annotations

import importlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data.image import to_uint8
from diffusion_jax.data.pictures import grid
from diffusion_jax.files import json_object, rows_that_read, whole
from diffusion_jax.train.log import Tracker, first_line

PROJECT = "diffusion_jax"
"""Of W&B, and the experiment of MLflow, where the environment names none."""
PATIENCE = 600
"""Seconds that W&B has at the end to send what it holds, where WANDB_FINISH_TIMEOUT names no others; the rest stays on disk."""
LONGEST = 500
"""Characters of a parameter in MLflow: all its servers take so many."""


def names_of(text: str) -> tuple[str, ...]:
    """The trackers that a text lists, 'wandb,mlflow'.

    Raises:
      ConfigError: one of them is unknown (the message names the nearest), or its library is not installed.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in KINDS:
            raise unknown("tracker", name, KINDS)
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"tracker {name} does not import ({first_line(error)}): pip install {name}") from None
    return names


def of_names(names: Sequence[str], folder: str | os.PathLike[str], config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run. Nothing is imported or written before `resume`.

    Args:
      names: see `names_of`.
      folder: the run's.
      config: its page, plain JSON.
    """
    return [Steady(name, KINDS[name](folder, config), Path(folder)) for name in names]


class Steady:
    """A tracker whose failures end no run, and which gets what it misses when it begins.

    Args:
      name: what a line about it calls it.
      tracker: takes each number of a step once, whatever is offered to it.
      folder: the run's.

    Raises:
      ConfigError: from `resume`: it cannot begin, and the run was not in it before.
    """

    def __init__(self, name: str, tracker: Tracker, folder: Path):
        self._name, self._tracker, self._folder = name, tracker, folder
        self._failed = False

    def resume(self, step: int) -> None:
        """Begins, or goes on, and hands over the lines of metrics.jsonl."""
        self._failed = False
        if note_of(self._folder, self._name):
            return self._try(lambda: self._begin(step))
        try:
            self._begin(step)
        except Exception as error:
            says = first_line(error, 1000)                 # whole: what to do often stands at its end
            raise ConfigError(f"tracker {self._name} does not begin ({says}): mend that, or leave it out of --track") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that are functions of the step."""
        self._try(lambda: self._tracker.scalars(step, values))

    def speeds(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that differ from run to run."""
        self._try(lambda: self._tracker.speeds(step, values))

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Batches of images."""
        self._try(lambda: self._tracker.images(step, images))

    def close(self) -> None:
        """Lets go."""
        self._try(self._tracker.close)

    def _begin(self, step: int) -> None:
        self._tracker.resume(step)
        for at, values in _lines(self._folder / "metrics.jsonl", step):
            self._tracker.scalars(at, values)

    def _try(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:                         # a library and a network may raise anything
            self._failed = True
            logging.warning("tracker %s fails (%s): the run goes on without it, and gives it what it misses at its next start",
                            self._name, first_line(error))


class WandB:
    """A run of Weights & Biases, one row for each step. See `Tracker`.

    A row cannot be changed, and a lower step not be added to. So a row is sent when the next one begins. Offline every start
    writes a folder of its own, which holds the numbers from the first step on: of a process that is killed W&B loses what it has
    not yet written. So the last folder is the one to `wandb sync`.

    Args:
      folder: the run's; its files lie in 'trackers' there, unless WANDB_DIR says where.
      config: the run's page.
    """

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any]):
        self._folder, self._config = Path(folder), dict(config)
        self._run: Any = None
        self._last = -1                                    # the step of the last row that was sent
        self._step, self._row = -1, {}

    def resume(self, step: int) -> None:
        """Begins a run, or goes on in that of before."""
        import wandb

        self.close()
        note = note_of(self._folder, "wandb")
        home = self._folder / "trackers"
        home.mkdir(parents=True, exist_ok=True)
        again = {"id": note["id"], "resume": "allow"} if note else {}
        patience = float(os.environ.get("WANDB_FINISH_TIMEOUT", PATIENCE))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=os.environ.get("WANDB_NAME", self._folder.resolve().name),
            dir=os.environ.get("WANDB_DIR", str(home)), config=self._config, allow_val_change=True,
            settings=wandb.Settings(console="off", finish_timeout=patience), **again)
        self._last = self._run.step - 1 if self._run.resumed else -1
        _keep(self._folder, "wandb", {"id": self._run.id})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Into the row of a step."""
        if step <= self._last:
            return
        if step > self._step:
            self._send()
        self._step = step
        self._row |= values

    def speeds(self, step: int, values: Mapping[str, float]) -> None:
        """Into the row of a step."""
        self.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """A grid each, into the row of a step."""
        import wandb

        if step > self._last:
            self.scalars(step, {name: wandb.Image(grid(to_uint8(batch))) for name, batch in images.items()})

    def close(self) -> None:
        """Sends the last row, and ends when W&B has it all, or in offline mode has written it."""
        run = self._run
        if run is not None:
            self._send()
            self._run = None
            run.finish()

    def _send(self) -> None:
        if self._row:
            self._run.log(self._row, step=self._step)
            self._last, self._row = self._step, {}


class MLflow:
    """A run of MLflow. See `Tracker`.

    The page is its parameters as it began, and its file page.json as it is now. Names of metrics there have no brackets.

    Args:
      folder: the run's.
      config: its page.
    """

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any]):
        self._folder, self._config = Path(folder), config
        self._client: Any = None
        self._id = ""
        self._last: dict[str, int] = {}                    # name of a metric -> the last step that it has

    def resume(self, step: int) -> None:
        """Begins a run, or goes on in that of before."""
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._id = note_of(self._folder, "mlflow").get("id", "")
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._begin()
        self._client.log_dict(self._id, self._config, "page.json")
        names = self._client.get_run(self._id).data.metrics
        self._last = {name: max(metric.step for metric in self._client.get_metric_history(self._id, name)) for name in names}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A metric each."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w./ -]+", " ", name, flags=re.ASCII).strip(): value for name, value in values.items()}
        new = [Metric(name, value, now, step) for name, value in named.items() if step > self._last.get(name, -1)]
        if new:
            self._client.log_batch(self._id, metrics=new)
            self._last |= {metric.key: step for metric in new}

    def speeds(self, step: int, values: Mapping[str, float]) -> None:
        """A metric each."""
        self.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """A file for each grid, <name>/<step>.png."""
        for name, batch in images.items():
            sheet = grid(to_uint8(batch))
            self._client.log_image(self._id, np.repeat(sheet, 3 // sheet.shape[-1], -1), f"{name}/{step:08d}.png")

    def close(self) -> None:
        """The run has ended."""
        if self._client is not None:
            client, self._client = self._client, None
            client.set_terminated(self._id)

    def _begin(self) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        home = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(home, run_name=self._folder.resolve().name).info.run_id
        _keep(self._folder, "mlflow", {"id": self._id})
        for key, value in _flat(self._config):
            self._client.log_param(self._id, key, str(value)[:LONGEST])


KINDS: dict[str, Callable[[str | os.PathLike[str], Mapping[str, Any]], Tracker]] = {"wandb": WandB, "mlflow": MLflow}
"""By the name of the library."""


def note_of(folder: Path, name: str) -> dict[str, Any]:
    """Which run of a tracker a run's folder is; {} where it is in none yet.

    Raises:
      ConfigError: the file that says it does not read.
    """
    file = folder / "trackers" / f"{name}.json"
    if not file.exists():
        return {}
    try:
        return json_object(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} does not read ({error}): delete it to begin a new run of {name}") from None


def _keep(folder: Path, name: str, note: Mapping[str, Any]) -> None:
    with whole(folder / "trackers" / f"{name}.json") as file:
        file.write_text(json.dumps(note), encoding="utf-8")


def _lines(path: Path, step: int) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, numbers) of the lines of metrics.jsonl, no later than `step`."""
    for row in rows_that_read(path) if path.exists() else ():
        at = row.pop("step", None)
        if isinstance(at, int) and at <= step:
            yield at, row


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a page by their path, 'model.width'."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
