"""What a run says: metrics.jsonl, TensorBoard and the terminal, from process 0 only.

metrics.jsonl holds one object per line, {"step": 100, "loss": 0.0123...}, with every float32 written as the shortest decimal that
reads back exactly (Python's repr of its double). So two runs are equal bit for bit when their files are equal. Only what is a
function of the step goes there; speeds go to TensorBoard and the terminal.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.files import whole
from diffusion_jax.types import Array


@contextlib.contextmanager
def writing(what: str, where: Path, left: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turns what a full or broken disk makes a writer raise, perhaps of an earlier write in the background, into one line.

    Args:
      what: is written, 'a checkpoint'.
      where: it is written.
      left: says what there is besides, '; the last good one is of step 4'.

    Raises:
      ConfigError: it could not be written.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{what} could not be written to {where} ({first_line(error)}){left()}: make room or choose another "
                          "disk, and run the same command to go on") from error


def first_line(error: BaseException) -> str:
    """What an error is and says, short."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


class Writer:
    """Writes scalars and images of one run; silent on every process but the first.

    A context manager. Nothing is created before the first call of another method.

    Args:
      workdir: metrics.jsonl is written here, TensorBoard's events in its folder 'tensorboard'.

    Raises:
      ConfigError: from every method: the disk takes no more.

    Example:
      >>> with Writer(workdir) as writer:
      ...     writer.resume(0)
      ...     writer.scalars(1, {"loss": 0.5})
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = Path(workdir) / "metrics.jsonl"
        self._main = jax.process_index() == 0
        self._lines = self._events = None
        self._purge: int | None = None

    def resume(self, step: int) -> None:
        """Forgets what was written after `step`, and a last line that a kill tore, in one atomic rename."""
        if not self._main:
            return
        self.close()
        self._purge = step + 1                             # TensorBoard hides older events from this step on
        if self.path.exists():
            with self._writing():
                # By line feeds alone, and whatever bytes: a torn line is left out, not a reason to fail.
                lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
                with whole(self.path) as fresh:
                    fresh.write_text("".join(f"{line}\n" for line in lines if _step(line) <= step), encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl and TensorBoard's scalars; values are Python, NumPy or JAX scalars."""
        if not self._main:
            return
        line = {"step": int(step)} | {name: float(value) for name, value in values.items()}
        with self._writing():
            if self._lines is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lines = self.path.open("a", buffering=1)  # by line: a killed process leaves whole lines
            self._lines.write(json.dumps(line) + "\n")
        self.speeds(step, values)

    def speeds(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars for TensorBoard only: what differs from run to run."""
        if self._main:
            from tensorboardX.summary import scalar

            self._event(step, [scalar(name, float(value)) for name, value in values.items()])

    def images(self, step: int, images: Mapping[str, Array]) -> None:
        """Grids of images for TensorBoard: name -> [N, H, W, C] in [-1, 1], C 1 or 3."""
        if self._main:
            from tensorboardX.summary import image

            for name, batch in images.items():
                pixels = np.clip((np.asarray(batch, np.float32) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
                self._event(step, [image(name, np.repeat(pixels, 3 // pixels.shape[-1], -1), dataformats="NHWC")])

    def close(self) -> None:
        """Writes out and closes both files."""
        files = [file for file in (self._lines, self._events) if file is not None]
        self._lines = self._events = None
        with self._writing(), contextlib.ExitStack() as stack:
            for file in files:
                stack.callback(file.close)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _event(self, step: int, summaries: list[Any]) -> None:
        """To TensorBoard's file, at once: the thread of tensorboardX's SummaryWriter waits for ever for a disk that is full."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with self._writing():
            if self._events is None:
                folder = self.path.parent / "tensorboard"
                folder.mkdir(parents=True, exist_ok=True)
                self._events = EventsWriter(str(folder / "events"))
                if self._purge is not None:
                    self._events.write_event(Event(step=self._purge, session_log=SessionLog(status=SessionLog.START)))
            for summary in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=summary))
            self._events.flush()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing("metrics", self.path.parent)


class Trace:
    """A trace of some steps for TensorBoard's profiler, in workdir/tensorboard.

    Args:
      workdir: the run's folder.
      steps: 'first:last', both are traced.

    Raises:
      ConfigError: no such steps.
    """

    def __init__(self, workdir: str | os.PathLike[str], steps: str):
        found = re.fullmatch(r"(\d+):(\d+)", steps)
        self._first, self._last = map(int, found.groups()) if found else (1, 0)
        if not 1 < self._first <= self._last:
            raise ConfigError(f"steps to trace are 'first:last', first at least 2, '10:15' for example, not {steps!r}")
        self._folder, self._on = Path(workdir) / "tensorboard", False

    def at(self, step: int, state: Any) -> None:
        """To be called after every step: starts before the first of them and stops when the last is done."""
        if step == self._first - 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._on = True
        elif step == self._last and self._on:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._on = False
            print(f"trace of steps {self._first} to {self._last}: tensorboard --logdir {self._folder}")


class Console:
    """The terminal: a bar with loss, images/s and time left, or where there is none one line for each logged step.

    Speed is that of the steps that were timed from end to end. A pause hides what is left of the step before it, so that step is
    counted neither as work nor as time. Nor is one that is fetched before the next was launched, as at a checkpoint: where data
    are slow, the end of the step before it was noted too late. The time left is of training alone: what samples, measures and
    saves take comes on top.

    Args:
      start: updates done so far.
      total: updates in the whole run.
      batch: images per update.
    """

    def __init__(self, start: int, total: int, batch: int):
        from tqdm import tqdm

        self._main = jax.process_index() == 0
        self._total, self._batch = total, batch
        self._since: tuple[int, float] | None = None       # (step, clock when it was done) from which on time counts
        self._launched = self._alone = start               # the last that was launched; that on a device with nothing else to do
        self._steps, self._seconds = 0, 0.0                # timed since the last that was shown
        self._step_seconds = 0.05                          # of the last that was timed; a guess before there is one
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, disable=None if self._main else True,
                         bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]")

    def say(self, text: str) -> None:
        """A line or a table on standard output."""
        if self._main:
            self._bar.write(text)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Of work that is not training: samples, measures, saves."""
        begun = time.perf_counter()
        yield
        # Beside a device that works, what takes no longer than a step is no pause at all.
        idle = self._since is not None and self._since[0] == self._launched
        if idle or time.perf_counter() - begun > self._step_seconds:
            self._since = None

    def launched(self, step: int) -> None:
        """The device was given a step, after compilation if there was any."""
        self._launched = step
        if self._since is None:
            self._since, self._alone = (step - 1, time.perf_counter()), step

    def finished(self, step: int, loss: float | None = None) -> float | None:
        """One update more is done.

        Args:
          step: its number.
          loss: where it is shown.

        Returns:
          Images/s since the last shown step; None where no loss is shown, and where no step was timed.
        """
        self._bar.update(step - self._bar.n)
        now = time.perf_counter()
        if step == self._launched != self._alone:
            self._since = None
        elif self._since is not None and step > self._since[0]:
            self._step_seconds = (now - self._since[1]) / (step - self._since[0])
            self._steps += step - self._since[0]
            self._seconds += now - self._since[1]
            self._since = step, now
        if loss is None:
            return None
        speed = self._steps * self._batch / self._seconds if self._steps and self._seconds else None
        self._steps, self._seconds = 0, 0.0
        self._show(step, loss, speed)
        return speed

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()

    def _show(self, step: int, loss: float, speed: float | None) -> None:
        rate = f"{speed:.1f}" if speed else "?"
        left = self._bar.format_interval((self._total - step) * self._batch / speed) if speed else "?"
        self._bar.set_postfix_str(f"loss={loss:.4g}, images/s={rate}, {left} left")
        if self._bar.disable:
            self.say(f"step {step}/{self._total}  loss {loss:.4g}  {rate} images/s  {left} left")


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where it cannot be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
    return step if type(step) is int else float("inf")
