"""Commands of this package in processes of their own, and one bar over all of them."""
from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
from jax.extend import backend
from tqdm import tqdm

from diffusion_jax.train import stop

POLL = 1.0
"""Seconds between two looks at a process."""
BUSY = "by process"
"""In the error of a folder that another process holds: an orphan may still be saving."""
TRIES, PAUSE = 10, 3.0
"""How often such a folder is tried, and the seconds in between."""


def command(
    arguments: Sequence[str],
    log: Path,
    beat: Callable[[float], None],
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a command of this package to its end.

    Args:
      arguments: of the command line.
      log: what it prints goes to the end of this file.
      beat: gets the seconds so far, every `POLL`.
      environment: of the process; None for this one's own.

    Returns:
      '' where it went well, else its error, or its last line.
    """

    def attempt() -> str:
        start = time.monotonic()
        with Child(arguments, log, environment) as child:
            while child.runs():
                beat(time.monotonic() - start)
        return child.error

    return tried(attempt)


def tried(attempt: Callable[[], str]) -> str:
    """The error of an attempt, which is made again while another process holds its folder."""
    error = ""
    for _ in range(TRIES):
        error = attempt()
        if BUSY not in error:
            break
        time.sleep(PAUSE)
    return error


class Child:
    """A command of this package in a process of its own, which saves and ends when this one is
    stopped. A context manager.

    Args:
      arguments, log, environment: see `command`.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        compiled = jax.config.values["jax_compilation_cache_dir"] or ""
        module = [sys.executable, "-m", "diffusion_jax.lineage.child"]
        self._log = log
        with log.open("ab") as out:
            self._begun = out.tell()
            self._process = subprocess.Popen(
                [*module, *arguments, "--compiled", compiled],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def runs(self) -> bool:
        """Whether it still runs, after `POLL` at the most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(POLL)
        return self._process.returncode is None

    def end(self, within: float) -> None:
        """Waits for its end, and kills it where that takes longer than `within` seconds."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()

    @property
    def error(self) -> str:
        """Of one that has ended: '' where it went well, else the signal that ended it, its error, or
        its last line."""
        code = self._process.returncode
        if code == 0:
            return ""
        if code < 0:
            return f"{signal.Signals(-code).name} ended it"
        return _last(self._log, self._begun) or f"it ended with code {code}"

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # at which it ends, see child.py
        # Not for longer: a signal ends this process in stop.GRACE, and others may have to hear it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(stop.GRACE / 2)


def _last(log: Path, begun: int) -> str:
    """What a failed command said: its error, or else its last line."""
    text = log.read_bytes()[begun:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


@contextlib.contextmanager
def without_accelerators() -> Iterator[None]:
    """Leaves GPUs and TPUs to other processes: what is computed inside is computed on the CPU.

    To be entered before this process has computed anything: an accelerator that it holds it keeps.
    """
    before = jax.config.values["jax_platforms"]
    if before == "cpu":
        yield
        return
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        backend.clear_backends()
        jax.config.update("jax_platforms", before)


class Bar:
    """One bar over several runs, by their sizes, with the time left; none without a terminal.

    What was done before this process does not count for its speed.

    Args:
      sizes: of the runs, in one unit.
    """

    def __init__(self, sizes: Sequence[float]):
        self._sizes = sizes
        self._parts = [0.0] * len(sizes)
        form = "{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
        self._bar = tqdm(
            total=sum(sizes), disable=None, dynamic_ncols=True, smoothing=0.0, bar_format=form
        )

    def at(self, number: int, share: float, name: str = "", before: bool = False) -> None:
        """A run has come so far.

        Args:
          number: its place.
          share: of it that is done, 0 to 1.
          name: that the bar shows.
          before: whether what came on since the last call was not done now.
        """
        grown = self._sizes[number] * share - self._parts[number]
        self._parts[number] += grown
        if before and not self._bar.disable:
            self._bar.initial += grown
        if name:
            self._bar.set_description(f"{name} ", refresh=False)
        self._bar.update(grown)

    def close(self) -> None:
        """Leaves it as it stands."""
        self._bar.close()
