"""Commands of this package in processes of their own, and one bar over all of them."""
from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend import backend
from tqdm import tqdm

POLL = 1.0
"""Seconds between two looks at a process."""
BUSY = "by process"
"""In the error of a folder that another process holds: an orphan may still be saving."""
TRIES, PAUSE = 10, 3.0
"""How often such a folder is tried, and the seconds in between."""


def command(arguments: Sequence[str], log: Path, beat: Callable[[float], None]) -> str:
    """Runs a command of this package to its end.

    Args:
      arguments: of the command line.
      log: what it prints goes to the end of this file.
      beat: gets the seconds so far, every `POLL`.

    Returns:
      '' where it went well, else its error, or its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    compiled = jax.config.values["jax_compilation_cache_dir"] or ""
    line = [sys.executable, "-m", "diffusion_jax.lineage.child", *arguments, "--compiled", compiled]
    error = ""
    for _ in range(TRIES):
        with log.open("ab") as out:
            begun = out.tell()
            code = _waited(line, out, beat)
        error = "" if code == 0 else _last(log, begun) or f"it ended with code {code}"
        if BUSY not in error:
            break
        time.sleep(PAUSE)
    return error


def _waited(line: Sequence[str], out: Any, beat: Callable[[float], None]) -> int:
    """The exit code of a process, which saves and ends when this one is stopped."""
    start = time.monotonic()
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
            beat(time.monotonic() - start)
    finally:
        process.stdin.close()  # at which it ends, see child.py
        process.wait()


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
