"""How far a job of sampling is: what counts its steps, and a bar that shows them.

Who calls a pipeline in Python sees nothing of this unless they give it a meter:

    with bar(50, "step") as meter:
        replace(pipe, meter=meter)(3, num=4)
"""
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import jax


class Meter(Protocol):
    """Counts what was made: a bar of tqdm, for example."""

    def update(self, n: float | None = 1, /) -> Any:
        """So many more are made."""
        ...


def counted(x: Any, meter: Meter | None) -> Any:
    """Arrays that a program makes, counted as one when they are made, not when it was launched."""
    if meter is not None:
        jax.block_until_ready(x)
        meter.update(1)
    return x


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
