"""What a run says: metrics.jsonl, TensorBoard, trackers (train/trackers.py) and the terminal, from process 0 only.

metrics.jsonl holds one object per line, {"step": 100, "loss": 0.0123...}, with every float32 written as the shortest decimal that
reads back exactly (Python's repr of its double). So two runs are equal bit for bit when their files are equal. Only what is a
function of the step goes there; speeds go to TensorBoard, trackers and the terminal.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import to_uint8
from diffusion_jax.files import whole
from diffusion_jax.parts import MOST
from diffusion_jax.types import Array

CLOCK = "%H:%M:%S"
"""How lines of the terminal say when they were written."""


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


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error is and says, in at most so many characters."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:most]


def stamped(text: str) -> str:
    """A line of the terminal with the time of day before it, '20:41:07 samples of step 500'."""
    return f"{time.strftime(CLOCK)} {text}"


class Tracker(Protocol):
    """What gets the numbers and pictures of a run: a file, or a program that shows them (train/trackers.py).

    It is made and called on the first process alone, at steps that never fall but in `resume`.
    """

    def resume(self, step: int) -> None:
        """The run goes on after `step`; 0 where it begins. What is there of later steps will come again, the same bit for bit."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that are functions of the step."""
        ...

    def speeds(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that differ from run to run."""
        ...

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Batches of images: name -> [N, H, W, C] in [-1, 1], C 1 or 3."""
        ...

    def close(self) -> None:
        """Writes out what is not yet written, and lets go."""
        ...


class Lines:
    """metrics.jsonl: the numbers that are functions of the step.

    Args:
      workdir: the run's folder, made at the first line.

    Raises:
      ConfigError: from every method: the disk takes no more.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = Path(workdir) / "metrics.jsonl"
        self._file: Any = None

    def resume(self, step: int) -> None:
        """Forgets what was written after `step`, and a last line that a kill tore, in one atomic rename."""
        self.close()
        if self.path.exists():
            with writing("metrics", self.path.parent):
                # By line feeds alone, and whatever bytes: a torn line is left out, not a reason to fail.
                lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
                with whole(self.path) as fresh:
                    fresh.write_text("".join(f"{line}\n" for line in lines if _step(line) <= step), encoding="utf-8")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        with writing("metrics", self.path.parent):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", buffering=1)  # by line: a killed process leaves whole lines
            self._file.write(json.dumps({"step": step} | dict(values)) + "\n")

    def speeds(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: equal runs have equal files."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Nothing: lines hold numbers."""

    def close(self) -> None:
        """Writes out and closes the file."""
        file, self._file = self._file, None
        if file is not None:
            with writing("metrics", self.path.parent):
                file.close()


class Events:
    """TensorBoard's events: all numbers, and grids of images.

    Args:
      workdir: the run's folder; they lie in its folder 'tensorboard', made at the first event.

    Raises:
      ConfigError: from every method: the disk takes no more.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.folder = Path(workdir) / "tensorboard"
        self._file: Any = None
        self._purge: int | None = None

    def resume(self, step: int) -> None:
        """TensorBoard hides older events after `step`."""
        self.close()
        self._purge = step + 1

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A curve for each."""
        from tensorboardX.summary import scalar

        self._write(step, [scalar(name, value) for name, value in values.items()])

    def speeds(self, step: int, values: Mapping[str, float]) -> None:
        """A curve for each."""
        self.scalars(step, values)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """A grid for each."""
        from tensorboardX.summary import image

        for name, batch in images.items():
            pixels = to_uint8(batch)                                                # [N, H, W, C]
            self._write(step, [image(name, np.repeat(pixels, 3 // pixels.shape[-1], -1), dataformats="NHWC")])

    def close(self) -> None:
        """Writes out and closes the file."""
        file, self._file = self._file, None
        if file is not None:
            with writing("metrics", self.folder.parent):
                file.close()

    def _write(self, step: int, summaries: list[Any]) -> None:
        """At once: the thread of tensorboardX's SummaryWriter waits for ever for a disk that is full."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with writing("metrics", self.folder.parent):
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = EventsWriter(str(self.folder / "events"))
                if self._purge is not None:
                    self._file.write_event(Event(step=self._purge, session_log=SessionLog(status=SessionLog.START)))
            for summary in summaries:
                self._file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._file.flush()


class Writer:
    """Writes scalars and images of one run; silent on every process but the first.

    A context manager. Nothing is created before the first call of another method.

    Args:
      workdir: metrics.jsonl is written here, TensorBoard's events in its folder 'tensorboard'.
      trackers: get the same after those.

    Raises:
      ConfigError: from every method: the disk takes no more; what a tracker refuses when it begins.

    Example:
      with Writer(workdir) as writer:
          writer.resume(0)
          writer.scalars(1, {"loss": 0.5})
    """

    def __init__(self, workdir: str | os.PathLike[str], trackers: Iterable[Tracker] = ()):
        self._trackers: list[Tracker] = [Lines(workdir), Events(workdir), *trackers] if jax.process_index() == 0 else []

    def resume(self, step: int) -> None:
        """Forgets what was written after `step`."""
        for tracker in self._trackers:
            tracker.resume(step)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers that are functions of the step; Python, NumPy or JAX scalars."""
        for tracker in self._trackers:
            tracker.scalars(int(step), _floats(values))

    def speeds(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers that differ from run to run, which metrics.jsonl does not get."""
        for tracker in self._trackers:
            tracker.speeds(int(step), _floats(values))

    def images(self, step: int, images: Mapping[str, Array]) -> None:
        """Grids of images: name -> [N, H, W, C] in [-1, 1], C 1 or 3; metrics.jsonl does not get them."""
        for tracker in self._trackers:
            tracker.images(int(step), {name: np.asarray(batch) for name, batch in images.items()})

    def close(self) -> None:
        """Writes out and closes everything."""
        with contextlib.ExitStack() as stack:
            for tracker in reversed(self._trackers):       # the files first: a tracker may wait for its network
                stack.callback(tracker.close)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Trace:
    """A trace of some steps for TensorBoard's profiler, in workdir/tensorboard.

    Args:
      workdir: the run's folder.
      steps: 'first:last', both are traced.
      begun, end: the step that the run is at, and its last one.

    Raises:
      ConfigError: no such steps, or steps that the run will not make.
    """

    def __init__(self, workdir: str | os.PathLike[str], steps: str, begun: int = 0, end: int = MOST):
        found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", steps, re.ASCII)
        self._first, self._last = map(int, found.groups()) if found else (1, 0)
        if not 1 < self._first <= self._last:
            raise ConfigError(f"steps to trace are 'first:last', first at least 2, '10:15' for example, not {steps!r}")
        # The first step after a start compiles: it is not to be among them.
        if not begun + 1 < self._first or self._last > end:
            raise ConfigError(f"steps to trace are among those to come, {begun + 2} ... {end} of this run: got {steps!r}")
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
            print(stamped(f"trace of steps {self._first} to {self._last}: tensorboard --logdir {self._folder}"))


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
            self.say(stamped(f"step {step}/{self._total}  loss {loss:.4g}  {rate} images/s  {left} left"))


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where it cannot be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
    return step if type(step) is int else float("inf")
