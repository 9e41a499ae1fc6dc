"""Ours against a peer's: two processes that take turns on the same machine.

In one process the idle library's threads and the allocator that both share slow the other down; one after the other, the machine
may have changed in between.
"""
from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

Build = Callable[..., tuple[Callable[[], None], Any]]
"""(ours: bool, *arguments) -> (what is timed, what else is to be told); in a module, so that a process can import it."""


class Times(NamedTuple):
    """What was measured.

    Attributes:
      ours, theirs: seconds of one call, the median over the rounds.
      ratio: the median of ours over theirs.
      told: by each side.
      ready: seconds of each side until its first call was done, with everything that it compiles.
      memory: peak of each process in GB, after its warm-up.
    """

    ours: float
    theirs: float
    ratio: float
    told: tuple[Any, Any]
    ready: tuple[float, float]
    memory: tuple[float, float]

    def __str__(self) -> str:
        """The end of a benchmark's line."""
        return (f"ratio {self.ratio:.2f}; ready after {self.ready[0]:.0f} s and {self.ready[1]:.0f} s, peak memory "
                f"{self.memory[0]:.1f} GB and {self.memory[1]:.1f} GB")


def compare(build: Build, *arguments: Any, rounds: int, calls: int = 1) -> Times:
    """The times of `calls` calls a turn, after two calls of warm-up."""
    spawn = multiprocessing.get_context("spawn")
    turns, processes = [], []
    for ours in (True, False):
        here, there = spawn.Pipe()
        processes.append(spawn.Process(target=_side, args=(build, ours, arguments, calls, there), daemon=True))
        processes[-1].start()
        turns.append(here)
    told, ready, memory = zip(*(turn.recv() for turn in turns), strict=True)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for turn, found in zip(turns, times, strict=True):
            turn.send(True)
            found.append(turn.recv())
    for turn, process in zip(turns, processes, strict=True):
        turn.send(False)
        process.join()
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return Times(statistics.median(times[0]), statistics.median(times[1]), ratio, told, ready, memory)


def _side(build: Build, ours: bool, arguments: tuple[Any, ...], calls: int, turn: Connection) -> None:
    start = time.perf_counter()
    call, told = build(ours, *arguments)
    call()
    ready = time.perf_counter() - start
    call()
    turn.send((told, ready, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
    while turn.recv():
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        turn.send((time.perf_counter() - begin) / calls)
