"""Ours against a peer's: two processes that take turns on the same machine.

In one process the idle library's threads and the allocator that both share slow the other down; one after the other, the machine
may have changed in between.
"""
from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

Build = Callable[..., tuple[Callable[[], None], Any]]
"""(ours: bool, *arguments) -> (what is timed, what else is to be told); in a module, so that a process can import it."""


class Times(NamedTuple):
    """Seconds of one call, the median over the rounds, the median of ours over theirs, and what each side told."""

    ours: float
    theirs: float
    ratio: float
    told: tuple[Any, Any]


def compare(build: Build, *arguments: Any, rounds: int, calls: int = 1) -> Times:
    """The times of `calls` calls a turn, after two calls of warm-up."""
    spawn = multiprocessing.get_context("spawn")
    turns, processes = [], []
    for ours in (True, False):
        here, there = spawn.Pipe()
        processes.append(spawn.Process(target=_side, args=(build, ours, arguments, calls, there), daemon=True))
        processes[-1].start()
        turns.append(here)
    told = tuple(turn.recv() for turn in turns)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for turn, found in zip(turns, times, strict=True):
            turn.send(True)
            found.append(turn.recv())
    for turn, process in zip(turns, processes, strict=True):
        turn.send(False)
        process.join()
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return Times(statistics.median(times[0]), statistics.median(times[1]), ratio, told)


def _side(build: Build, ours: bool, arguments: tuple[Any, ...], calls: int, turn: Connection) -> None:
    call, told = build(ours, *arguments)
    for _ in range(2):                                                           # compilation and warm-up
        call()
    turn.send(told)
    while turn.recv():
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        turn.send((time.perf_counter() - begin) / calls)
