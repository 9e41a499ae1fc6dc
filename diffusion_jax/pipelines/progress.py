"""How far a job of sampling is: what counts its steps as they are made, and a bar that shows them.

Who calls a pipeline in Python sees nothing of this unless they give it a meter:

    with bar(50, "step") as meter:
        replace(pipe, meter=meter)(3, num=4)
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import jax

PAUSE = 0.2
"""Seconds, about, between two counts of a meter: often enough to be seen moving, and so seldom that
what it takes to launch a part is nothing beside it."""
State = TypeVar("State")


class Meter(Protocol):
    """Counts what was made: a bar of tqdm, for example."""

    def update(self, n: float | None = 1, /) -> Any:
        """So many more are made."""
        ...


class Pace:
    """Makes runs of many steps in parts of some, and counts each when it is made, not when it was
    launched.

    A part has as many steps as take about a `PAUSE`, those of the next run too.
    """

    def __init__(self, meter: Meter):
        self._meter = meter
        # A step at a time at first, of which the first compiles: nobody knows how long one takes.
        self._length = 1

    def made(self, step: Callable[[State, int, int], State], state: State, total: int) -> State:
        """Arrays after `total` steps.

        Args:
          step: (arrays, first, last) -> what steps `first` ... `last` - 1 make of them.
          state: the arrays before the first step; not read again.
          total: steps of this run.
        """
        done = 0
        while done < total:
            clock = time.perf_counter()
            until = min(done + self._length, total)
            state = jax.block_until_ready(step(state, done, until))
            self._meter.update(until - done)
            done = until
            self._length = paced(self._length, time.perf_counter() - clock)
        return state


def paced(length: int, seconds: float) -> int:
    """How many steps the next part has, after one of `length` that took so long: twice as many
    until it takes about a `PAUSE`, and half as many where it takes more than two."""
    if seconds < PAUSE / 2:
        return 2 * length
    return max(1, length // 2) if seconds > 2 * PAUSE else length


def is_watched() -> bool:
    """Whether somebody sees a bar: the first process, on a terminal."""
    return jax.process_index() == 0 and sys.stderr.isatty()


@contextmanager
def bar(total: int, unit: str) -> Iterator[Any]:
    """A bar of `total` units on stderr, that of the first process alone; 0 for no bar.

    It is seen from its first `update` or `refresh` on: what is refused before is one line.
    """
    from tqdm import tqdm  # here: `--help` needs no bar, and is to be quick

    hidden = total == 0 or jax.process_index() > 0
    with tqdm(total=total, unit=unit, disable=hidden, delay=1e-3) as meter:
        yield meter


@contextmanager
def bar_of_steps(total: int) -> Iterator[Meter | None]:
    """A bar of `total` steps on stderr; None where nobody sees it, so that nothing is made in
    parts."""
    total = total if is_watched() else 0
    with bar(total, "step") as meter:
        yield meter if total else None
