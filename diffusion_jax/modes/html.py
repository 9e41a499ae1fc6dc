"""report.html: one file that shows what report.json says, and the pictures behind it."""
from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.data import image

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .15em .9em .15em 0; text-align: left; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums } h2 { margin-top: 2em } img { max-width: 100% }
.warning { background: #fff3cd; padding: .5em 1em } .pixels { image-rendering: pixelated }"""
SIDE = 64
"""Smaller images are enlarged by a whole factor to about this side."""


class Shown(NamedTuple):
    """What a report shows beside its figures.

    Attributes:
      samples: uint8 [N, H, W, C].
      nearest: uint8 [rows, count, H, W, C], the images of the reference nearest to the first samples.
      distances: theirs, [rows, count].
    """

    samples: np.ndarray | None = None
    nearest: np.ndarray | None = None
    distances: np.ndarray | None = None


def write(path: Path, workdir: Path, report: Mapping[str, Any], shown: Shown) -> None:
    """Writes the page."""
    parts = [f"<h1>{html.escape(workdir.resolve().name)}</h1>"]
    parts += [f"<p class=warning>{html.escape(said)}</p>" for said in report.get("warnings", ())]
    parts += ["<h2>Figures</h2>", _table((name, value) for name, value in report.items() if name not in ("warnings", "classes"))]
    if shown.samples is not None:
        parts += ["<h2>Samples</h2>", _picture(image.grid(_enlarged(shown.samples[:100])))]
    if shown.nearest is not None and shown.samples is not None:
        said = "Left a sample, right of it the images whose features are nearest, with their distances: copies show here."
        parts += ["<h2>Nearest images of the reference</h2>", f"<p>{said}</p>", _neighbours(shown)]
    if report.get("classes"):
        parts += ["<h2>Classes</h2>", _classes(report["classes"])]
    curves = _curves(workdir / "metrics.jsonl")
    parts += ["<h2>Training</h2>", curves] if curves else []
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(workdir.name)}</title><style>{STYLE}</style>"
    path.write_text(f"{head}{''.join(parts)}\n")


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    return f"<td{' class=number' if isinstance(value, (int, float)) else ''}>{html.escape(_text(value))}</td>"


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><tr>{top}</tr>{''.join('<tr>' + ''.join(map(_cell, row)) + '</tr>' for row in rows)}</table>"


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    head = list(dict.fromkeys(name for row in rows for name in row))
    return _table(([row.get(name, "") for name in head] for row in rows), head)


def _enlarged(images: np.ndarray) -> np.ndarray:
    factor = max(1, SIDE // max(images.shape[-3:-1]))
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _neighbours(shown: Shown) -> str:
    rows = []
    for sample, nearest, distances in zip(shown.samples, shown.nearest, shown.distances, strict=False):
        below = "", *(f"<br>{distance:.2f}" for distance in distances)
        pictures = (_picture(_enlarged(picture)) for picture in (sample, *nearest))
        cells = [f"<td>{picture}{said}</td>" for picture, said in zip(pictures, below, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _picture(pixels: np.ndarray) -> str:
    """uint8 [H, W, 1 or 3] inside the page."""
    with io.BytesIO() as file:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
        return _inline(file.getvalue())


def _inline(png: bytes) -> str:
    return f'<img class=pixels alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _curves(path: Path) -> str:
    """A panel for each metric of a run; nothing where there are none."""
    if not path.exists():
        return ""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = sorted({name for line in lines for name in line} - {"step"})
    if not names:
        return ""
    columns = min(3, len(names))
    figure, axes = pyplot.subplots(-(-len(names) // columns), columns, figsize=(3.4 * columns, 2.6 * -(-len(names) // columns)),
                                   layout="constrained", squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for name, axis in zip(names, axes.flat, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None)
        axis.set(title=name, xlabel="step")
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=90)
        pyplot.close(figure)
        return _inline(file.getvalue())
