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


def first_line(error: Exception) -> str:
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
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            fresh = self.path.with_suffix(".tmp")
            with self._writing():
                fresh.write_text("".join(f"{line}\n" for line in kept))
                os.replace(fresh, self.path)

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

    Args:
      start: updates done so far.
      total: updates in the whole run.
      batch: images per update.
    """

    def __init__(self, start: int, total: int, batch: int):
        from tqdm import tqdm

        self._main = jax.process_index() == 0
        self._total, self._batch = total, batch
        self._mark: tuple[int, float] | None = None        # (step, clock) of the last that was shown
        self._idle = self._left = 0.0
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, disable=None if self._main else True)

    def say(self, text: str) -> None:
        """A line or a table on standard output."""
        if self._main:
            self._bar.write(text)

    def leave(self) -> None:
        """Stops the clock: the caller's own work (samples, evaluation) is not training speed."""
        self._left = time.perf_counter()

    def enter(self) -> None:
        """Starts the clock again."""
        self._idle += time.perf_counter() - self._left

    def clock(self) -> float:
        """Seconds of training, from an arbitrary start."""
        return time.perf_counter() - self._idle

    def advance(self, step: int, launched: float, loss: float | None = None) -> float | None:
        """One update more.

        Args:
          step: its number.
          launched: the clock when the device was given it, after compilation if there was any.
          loss: where it is shown.

        Returns:
          Images/s since the last shown step; None where no loss is shown, and at the first step.
        """
        self._bar.update(step - self._bar.n)
        before, since = self._mark or (step, launched)
        if self._mark is None or loss is not None:
            self._mark = (step, launched)
        speed = (step - before) * self._batch / (launched - since) if step > before else None
        if loss is None:
            return None
        self._show(step, loss, speed)
        return speed

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()

    def _show(self, step: int, loss: float, speed: float | None) -> None:
        rate = f"{speed:.1f}" if speed else "?"
        self._bar.set_postfix_str(f"loss={loss:.4g}, images/s={rate}")
        if self._bar.disable:
            left = self._bar.format_interval((self._total - step) * self._batch / speed) if speed else "?"
            self.say(f"step {step}/{self._total}  loss {loss:.4g}  {rate} images/s  {left} left")


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where it cannot be read."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
