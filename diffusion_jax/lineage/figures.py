"""The figures of a lineage, each as PNG and as SVG: quality against diversity, FLOPs against FID, and
the curve of each system.

    tradeoff    accuracy (of texts own captions that are found, precision where nothing is asked)
                against recall, a curve for each system along which its own strength rises and the
                markers grow
    fidelity    FID against coverage, the same curves
    compute     FID against the FLOPs of training
    curve_dit   figures of one system against its strength

The same figures give the same files, byte for byte.
"""
from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.files import whole
from diffusion_jax.lineage.claims import place
from diffusion_jax.lineage.results import AS_ASKED, Comparison, Point, Spread, System

MARKERS = "os^vDPX*ph<>"
SIZE = (4.6, 3.6)
"""Inches: letters stay readable on a phone."""
WIDE = 20.0
"""Ratio of largest and smallest from which on an axis is logarithmic."""
SETTINGS: Any = {
    "svg.hashsalt": "lineage",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.4,
}
"""Of matplotlib: equal names in equal drawings, and letters as text."""
STYLE = (
    "<style>:root{color:#222}text{fill:currentColor}"
    "@media(prefers-color-scheme:dark){:root{color:#e4e4e4}}</style>"
)
"""Inside an SVG that a page shows: black becomes what is read on its ground."""


def draw(comparison: Comparison, folder: Path) -> dict[str, str]:
    """Writes all figures into a folder.

    Returns:
      name -> its SVG as a data URI that suits light and dark pages; without figures for which
      nothing was measured.
    """
    quality = next((name for name in AS_ASKED if _has(comparison, name)), "precision")
    plots = {
        "tradeoff": _curves(comparison, "recall", quality, folder / "tradeoff"),
        "fidelity": _curves(comparison, "coverage", "FID", folder / "fidelity"),
        "compute": _compute(comparison, folder / "compute"),
    }
    for system in comparison.systems:
        name = f"curve_{system.stage.key}"
        plots[name] = _of_system(system, folder / name)
    return {name: uri for name, uri in plots.items() if uri}


def _has(comparison: Comparison, name: str) -> bool:
    return any(name in system.figures for system in comparison.systems)


def points_of(system: System, names: Sequence[str]) -> list[Point]:
    """The points of a system's curve that have some figures; without a curve its figures alone."""
    points = system.curve or (Point(0.0, system.figures),)
    return [point for point in points if set(names) <= set(point.figures)]


# Figures ------------------------------------------------------------------------------------------


def _curves(comparison: Comparison, x: str, y: str, out: Path) -> str:
    """One figure against another along the strength of each system; '' without any."""
    lines = []
    for system in comparison.systems:
        points = points_of(system, (x, y))
        spreads = [(point.figures[x], point.figures[y]) for point in points]
        lines.append((system.stage.name, spreads))
    real = comparison.real
    held_out = (real[x], real[y]) if x in real and y in real else None
    return _plot(lines, x, y, out, held_out)


def _compute(comparison: Comparison, out: Path) -> str:
    """FID against the FLOPs of training, at the checkpoints; '' without any."""
    lines = []
    for system in comparison.systems:
        points = [point for point in system.training if "FID" in point.figures]
        lines.append(
            (system.stage.name, [(Spread((point.value,)), point.figures["FID"]) for point in points])
        )
    return _plot(lines, "training FLOPs", "FID", out)


def _plot(
    lines: Sequence[tuple[str, Sequence[tuple[Spread, Spread]]]],
    x: str,
    y: str,
    out: Path,
    held_out: tuple[float, float] | None = None,
) -> str:
    """Curves of spreads, markers growing along each; '' where there are no points at all."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not any(points for _, points in lines):
        return ""
    with rc_context(SETTINGS):
        figure = Figure(figsize=SIZE, layout="constrained")
        axis = figure.add_subplot()
        for number, (name, points) in enumerate(lines):
            if points:
                _mark(axis, number, name, points)
        if held_out is not None:
            axis.scatter(*held_out, marker="+", s=90, color="#808080", label="held-out pictures")
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        _scale(axis, lines)
        _legend(figure)
        return save(figure, out)


def _mark(axis: Any, number: int, name: str, points: Sequence[tuple[Spread, Spread]]) -> None:
    """One curve: deviations as bars, markers that grow, in the colour of its number."""
    across, up = zip(*points, strict=True)
    xs, ys = ([one.mean for one in several] for several in (across, up))
    color = f"C{number % 10}"
    axis.errorbar(
        xs,
        ys,
        xerr=[one.deviation or 0 for one in across],
        yerr=[one.deviation or 0 for one in up],
        color=color,
        elinewidth=0.6,
        linewidth=1,
    )
    axis.scatter(
        xs,
        ys,
        s=np.linspace(12, 60, len(points)) if len(points) > 1 else 30,
        marker=MARKERS[number % len(MARKERS)],
        color=color,
        label=name,
        zorder=3,
    )


def _scale(axis: Any, lines: Iterable[tuple[str, Sequence[tuple[Spread, Spread]]]]) -> None:
    """Logarithmic axes where figures are positive and far apart."""
    points = [point for _, several in lines for point in several]
    for name, values in zip("xy", zip(*points, strict=True), strict=True):
        means = [one.mean for one in values]
        if min(means) > 0 and max(means) / min(means) > WIDE:
            getattr(axis, f"set_{name}scale")("log")


def _legend(figure: Any) -> None:
    """Below the axes; names are no formulas."""
    legend = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _of_system(system: System, out: Path) -> str:
    """The figures of one system against its strength; '' without a curve."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    strength = system.stage.strength
    if strength is None or len(system.curve) < 2:
        return ""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(SIZE[0], 2.6), layout="constrained")
        shares, distance = figure.subplots(1, 2)
        for name in (*AS_ASKED, "precision", "recall", "coverage"):
            _line(shares, system.curve, name)
        shares.set_ylim(0, 1.02)
        _line(distance, system.curve, "FID")
        distance.set_ylim(bottom=0)
        for axis in (shares, distance):
            axis.set_xlabel(place(strength.name, system.curve[0]).rpartition(" ")[0])
            axis.legend(fontsize=7, frameon=False)
        return save(figure, out)


def _line(axis: Any, points: Sequence[Point], name: str) -> None:
    """A figure against the strength, with its deviation."""
    there = [point for point in points if name in point.figures]
    if not there:
        return
    spreads = [point.figures[name] for point in there]
    axis.errorbar(
        [point.value for point in there],
        [one.mean for one in spreads],
        yerr=[one.deviation or 0 for one in spreads],
        marker="o",
        markersize=3,
        linewidth=1,
        label=name,
    )


# Files --------------------------------------------------------------------------------------------


def save(figure: Any, out: Path) -> str:
    """Writes <out>.png and <out>.svg; returns the SVG as a data URI, see `themed`."""
    with whole(f"{out}.png") as unfinished:
        figure.savefig(unfinished, dpi=150)
    with whole(f"{out}.svg") as unfinished:
        # A date would make another file of the same figures.
        figure.savefig(unfinished, metadata={"Date": None})
    with io.StringIO() as file:
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return uri("image/svg+xml", themed(file.getvalue()).encode())


def themed(svg: str) -> str:
    """An SVG of matplotlib whose black follows the scheme of the page that shows it."""
    svg = svg.replace("#000000", "currentColor")
    return re.sub(r"(<svg\b[^>]*>)", rf"\1{STYLE}", svg, count=1)


def uri(kind: str, content: bytes) -> str:
    """A file as part of a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def enlarged(images: np.ndarray, side: int = 32) -> np.ndarray:
    """Pictures [N, H, W, C], small ones by a whole factor to about a side."""
    factor = max(1, math.ceil(side / max(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)
