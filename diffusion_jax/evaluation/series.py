"""One thing changed, everything measured: rows of figures as a table, x.csv, and panels, x.png."""
from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.files import whole

COLUMNS = 4
"""Panels beside each other."""

Rows = Sequence[Mapping[str, Any]]


def write(out: Path, over: str, rows: Rows) -> None:
    """The rows as <out>.csv and, a panel for each figure that varies, as <out>.png.

    Args:
      out: where the files go, without their suffix.
      over: the column of what was changed.
      rows: a row of figures for each value.
    """
    write_table(out, rows)
    draw(out, over, rows)
    print(f"sweep: {out}.csv, {out}.png")


def write_table(out: Path, rows: Rows) -> None:
    """<out>.csv, whole or as it was: also while there are more rows to come."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    # Rows may have other figures, so the head is known when all are.
    with (
        whole(f"{out}.csv") as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def draw(out: Path, over: str, rows: Rows) -> None:
    """<out>.png: each figure that varies against what was changed, and precision against recall."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    # What is the same for all values is no result; the table has it.
    pairs = panels(over, rows)
    lines = -(-len(pairs) // COLUMNS) or 1
    figure, axes = pyplot.subplots(
        lines, COLUMNS, figsize=(3 * COLUMNS, 3 * lines), layout="constrained"
    )
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    for (x, y), axis in zip(pairs, axes.flat, strict=False):
        points = [row for row in rows if x in row and y in row]
        axis.plot(
            [str(row[x]) if x == over else row[x] for row in points],
            [row[y] for row in points],
            marker="o",
        )
        axis.set_xlabel(x, parse_math=False)  # a '$' in a name is no formula
        axis.set_title(y, parse_math=False)
        if x != over:  # fidelity against diversity
            for row in points:
                axis.annotate(str(row[over]), (row[x], row[y]), parse_math=False)
    with whole(f"{out}.png") as unfinished:
        figure.savefig(unfinished, dpi=100)
    pyplot.close(figure)


def panels(over: str, rows: Rows) -> list[tuple[str, str]]:
    """(x, y) of each panel: what was changed and what varies; precision and recall of a network."""
    names = [name for name in rows[0] if name != over and len({row.get(name) for row in rows}) > 1]
    pairs = [(over, name) for name in names]
    for name in names:
        recall = name.replace("precision", "recall")
        if name.startswith("precision") and recall in names:
            pairs.append((name, recall))
    return pairs
