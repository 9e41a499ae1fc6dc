"""What a comparison found: each system's figures over its seeds, as plain values.

    mean = sum_i v_i / n
    deviation^2 = sum_i (v_i - mean)^2 / (n - 1)                                               (1)
    error = deviation / sqrt(n)                                                                (2)

One seed has no deviation, so that nothing can be said of what another one would have given.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.lineage.stages import Lineage, Stage

BETTER = {
    "FID": -1,
    "precision": 1,
    "recall": 1,
    "density": 1,
    "coverage": 1,
    "accuracy": 1,
    "CLIP score": 1,
    "own caption first of 10": 1,
    "bits/dim": -1,
    "bits per image token": -1,
    "network calls": -1,
    "seconds per picture": -1,
    "parameters": -1,
    "training FLOPs": -1,
    "pictures seen": -1,
}
"""The figures in the order of the table, and the direction in which each is better."""
THOUSANDS, MANY = 1e4, 1e8
"""From where on a number is spelt with commas, and with an exponent."""
AS_ASKED = ("accuracy", "own caption first of 10")
"""Figures of what was asked for, in a classifier's eyes and, of texts, in a CLIP's."""
CLOCK = "seconds per picture"
"""The one figure that another run of the same command does not repeat."""


class Spread(NamedTuple):
    """A figure over the seeds.

    Attributes:
      values: one for each seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def deviation(self) -> float | None:
        """(1); None of one seed."""
        if len(self.values) < 2:
            return None
        squares = sum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / (len(self.values) - 1))

    @property
    def error(self) -> float | None:
        """(2); None of one seed."""
        deviation = self.deviation
        return None if deviation is None else deviation / math.sqrt(len(self.values))

    def __str__(self) -> str:
        """'3.12 ± 0.14', to the second digit of the deviation; '3.12' of one seed, or of equal
        ones; of large numbers the mean alone, '30,954' or '4.00e12'."""
        deviation = self.deviation
        if abs(self.mean) >= MANY:
            return f"{self.mean:.2e}".replace("e+", "e")
        if abs(self.mean) >= THOUSANDS:
            return f"{self.mean:,.0f}"
        if not deviation:
            return f"{self.mean:.4g}"
        digits = 1 - math.floor(math.log10(float(f"{deviation:.1e}")))
        digits = min(4, max(0, digits))
        return f"{self.mean:.{digits}f} ± {deviation:.{digits}f}"


class Point(NamedTuple):
    """Figures at one place of a curve.

    Attributes:
      value: of the strength; of a curve of training the FLOPs until then.
      figures: by name.
    """

    value: float
    figures: Mapping[str, Spread]


class System(NamedTuple):
    """A system of the lineage and what was measured of it.

    Attributes:
      stage: its row of the page of stages.
      seeds: those that were measured.
      error: why it, or one of its seeds, was not; "" where all went well.
      figures: by name, those of `BETTER` that there are.
      curve: figures as its own strength rises.
      training: figures as its training goes on, at the checkpoints that are left.
      pictures: uint8 [N, H, W, C] of the first seed, a column for each class or prompt; None
        without.
      along: the first of each class or prompt as its own strength rises, a row for each value;
        None without a curve.
      columns: of both.
    """

    stage: Stage
    seeds: int
    error: str
    figures: Mapping[str, Spread]
    curve: tuple[Point, ...] = ()
    training: tuple[Point, ...] = ()
    pictures: np.ndarray | None = None
    along: np.ndarray | None = None
    columns: int = 1


class Comparison(NamedTuple):
    """A whole lineage, measured.

    Attributes:
      lineage: what was compared.
      systems: in its order.
      real: figures of held-out pictures, against the same reference: what a perfect system has.
      samples: pictures of each system and seed that were measured.
      pages: the page of each stage, helpers too, by key; without those that do not read.
      notes: how helpers that several systems need were shared out.
    """

    lineage: Lineage
    systems: tuple[System, ...]
    real: Mapping[str, float]
    samples: int
    pages: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def system(self, key: str) -> System | None:
        """The system of a key; None where there is none."""
        return next((system for system in self.systems if system.stage.key == key), None)


def spread(rows: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """The figures that all of some rows have, a row for each seed, in the order of `BETTER`."""
    rows = list(rows)
    if not rows:
        return {}
    common = set.intersection(*(set(row) for row in rows))
    names = [name for name in BETTER if name in common]
    return {name: Spread(tuple(float(row[name]) for row in rows)) for name in names}
