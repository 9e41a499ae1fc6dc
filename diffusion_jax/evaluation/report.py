"""What was measured, and where it goes: a table on stdout, report.json, report.html with pictures,
report.png with the samples that are nearest to training pictures.

    write("runs/digits", Measured({"FID[judge]": 3.1}, Gallery(samples), "features-step400"))

All are of the newest measurement; the folder `reports` keeps all of them, under names that
say what was measured, reports/features-step400.json for example.
"""
from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from diffusion_jax.data.pictures import grid, save_png
from diffusion_jax.evaluation import validation
from diffusion_jax.files import rows_that_read, unused, whole, writable

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto }
body { padding: 0 1em; color: #222 } table { border-collapse: collapse }
td, th { padding: .15em .9em .15em 0; text-align: left; border-bottom: 1px solid #ddd }
td.number { text-align: right; font-variant-numeric: tabular-nums }
h2 { margin-top: 2em } img { max-width: 100% }
.warning { background: #fff3cd; padding: .5em 1em } .pixels { image-rendering: pixelated }"""
SIDE = 64
"""Smaller images are enlarged by a whole factor to about this side."""
COLUMNS = 3
"""Panels beside each other."""
PANELS = 60
"""Panels at most: a damaged file of metrics may name anything."""
KEPT = "reports"
"""The folder, in that of the report, of all reports."""
LONGEST = 100
"""Characters of a report's name."""
APART = ("warnings", "classes", "losses")
"""Entries of the figures that are no rows of the table."""
CAPTION = (
    "Left a sample, right of it the images whose features are nearest, with their distances: "
    "copies show here."
)


PAIRS = (
    "Left a sample, right of it the training picture that it is nearest to, in pixels; first those "
    "that are nearer to one picture than to all others."
)


class Gallery(NamedTuple):
    """The pictures of a report.

    Attributes:
      samples: uint8 [N, H, W, C].
      nearest: uint8 [rows, count, H, W, C], the images of the reference nearest to the first
        samples.
      distances: theirs, [rows, count].
      pairs: uint8 [n, 2, H, W, C], samples and the training pictures that they are nearest to.
    """

    samples: np.ndarray | None = None
    nearest: np.ndarray | None = None
    distances: np.ndarray | None = None
    pairs: np.ndarray | None = None


class Measured(NamedTuple):
    """What was measured.

    Attributes:
      figures: by name; 'warnings' are sentences, 'classes' a row for each class.
      gallery: the pictures behind them.
      name: what was measured of what, for the file in which the report is kept.
    """

    figures: dict[str, Any]
    gallery: Gallery = Gallery()
    name: str = "report"

    @property
    def numbers(self) -> dict[str, int | float]:
        """The figures that are numbers."""
        return {
            name: value for name, value in self.figures.items() if isinstance(value, (int, float))
        }


def name_of(metric: str, options: Mapping[str, Any], **which: Any) -> str:
    """A name that says what was measured, fit for a file.

    Args:
      metric: its name.
      options: those that were set, by the names of their flags; of paths the last part is taken.
      **which: of what, step=400 for example; before the options, without a sign between.

    Example:
      >>> name_of("features", {"guidance": 2.0, "features": "runs/judge"}, step=400)
      'features-step400-guidance=2.0-features=judge'
    """
    parts = [metric, *(f"{name}{value}" for name, value in which.items())]
    for name, value in options.items():
        several = value if isinstance(value, tuple) else (value,)
        parts.append(f"{name}={','.join(Path(str(one)).name for one in several)}")
    text = "-".join(re.sub(r"[^A-Za-z0-9_.=+,-]+", "_", part) for part in parts)
    if len(text) <= LONGEST:
        return text
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: LONGEST - 9]}-{mark}"


def check(folder: str | Path) -> None:
    """Raises ConfigError where no report can be written into a folder; for before the work."""
    for name in ("report.json", "report.html", f"{KEPT}/"):
        writable(f"{Path(folder, name)}{'/' if name.endswith('/') else ''}")


def write(folder: str | Path, measured: Measured) -> None:
    """Writes report.json and report.html, keeps a copy of both, and prints the table.

    The table goes to stdout, the warnings to stderr. Of several processes the first alone does.
    """
    if jax.process_index() > 0:
        return
    newest = Path(folder, "report.json")
    measured = measured._replace(figures=with_validation(newest.parent, measured.figures))
    text = json.dumps(measured.figures, indent=2, default=_plain) + "\n"
    history = place_of(Path(folder, KEPT), measured.name, text)
    # First: the figures may have taken hours, and a picture of them can still fail.
    for path in (history, newest):
        save(path, text)
    html_page = page(newest.parent, measured)
    for path in (history, newest):
        save(path.with_suffix(".html"), html_page)
        _save_pairs(path.with_suffix(".png"), measured.gallery.pairs)
    # Names of files may have bytes that are no characters, which a terminal refuses.
    print(table(measured.figures).encode("utf-8", "backslashreplace").decode())
    for warning in measured.figures.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"report: {newest}, {newest.with_suffix('.html')}; kept as {history}")


def with_validation(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Figures, and what metrics.jsonl in a folder says of the run's validation."""
    added = validation.summary(_lines(folder / "metrics.jsonl"))
    warnings = [*figures.get("warnings", ()), *added.get("warnings", ())]
    return figures | added | ({"warnings": warnings} if warnings else {})


def place_of(folder: Path, name: str, text: str) -> Path:
    """<folder>/<name>.json, or with a number behind the name: the first that is free, or that holds
    this text already."""
    path = folder / f"{name}.json"
    # The end of a run is measured again whenever its command is: that is no other report.
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return path
    return unused(path)


def _save_pairs(path: Path, pairs: np.ndarray | None) -> None:
    """A picture of pairs, or none: not that of another measurement."""
    if pairs is None:
        path.unlink(missing_ok=True)
    else:
        save_png(path, pairs_grid(pairs))


def save(path: Path, text: str) -> None:
    """A text file, whole or not there."""
    with whole(path) as unfinished:
        # Names of files may have bytes that are no characters.
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's and JAX's numbers and arrays; of anything else its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def table(figures: Mapping[str, Any]) -> str:
    """The figures as aligned lines."""
    lines = []
    # Sentences and rows of classes have places of their own: stderr, and the page.
    for name, value in figures.items():
        if name in APART:
            continue
        if isinstance(value, Mapping):
            value = "  ".join(f"{key}: {ratio:.2f}" for key, ratio in value.items())
        lines.append(
            f"{name:40s} {value:.4f}" if isinstance(value, float) else f"{name:40s} {value}"
        )
    return "\n".join(lines)


# The page -----------------------------------------------------------------------------------------


def page(folder: Path, measured: Measured) -> str:
    """report.html: the figures, the pictures and the curves of the training run in a folder."""
    figures, gallery, _ = measured
    # Everything is escaped: class names and folders come from elsewhere, and a browser runs this.
    name = html.escape(folder.resolve().name)
    parts = [f"<h1>{name}</h1>"]
    parts += [
        f"<p class=warning>{html.escape(warning)}</p>" for warning in figures.get("warnings", ())
    ]
    parts += [
        "<h2>Figures</h2>",
        _table((key, value) for key, value in figures.items() if key not in APART),
    ]
    if gallery.samples is not None:
        parts += ["<h2>Samples</h2>", _picture(grid(_enlarged(gallery.samples[:100])))]
    samples, nearest, distances, pairs = gallery
    if pairs is not None:
        parts += ["<h2>Nearest training pictures</h2>", f"<p>{PAIRS}</p>"]
        parts.append(_picture(pairs_grid(pairs)))
    if samples is not None and nearest is not None and distances is not None:
        lines = _neighbours(samples, nearest, distances)
        parts += ["<h2>Nearest images of the reference</h2>", f"<p>{CAPTION}</p>", lines]
    if figures.get("classes"):
        parts += ["<h2>Classes</h2>", _classes(figures["classes"])]
    curves = _curves(folder / "metrics.jsonl")
    if curves:
        parts += ["<h2>Training</h2>", curves]
    head = f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{STYLE}</style>"
    return f"{head}{''.join(parts)}\n"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        value = ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    kind = " class=number" if isinstance(value, (int, float)) else ""
    return f"<td{kind}>{html.escape(_text(value))}</td>"


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    cells = ["".join(map(_cell, row)) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><tr>{top}</tr>{body}</table>"


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    head = list(dict.fromkeys(name for row in rows for name in row))
    return _table(([row.get(name, "") for name in head] for row in rows), head)


def pairs_grid(pairs: np.ndarray) -> np.ndarray:
    """uint8 [n, 2, H, W, C] -> one image, the pairs side by side."""
    large = _enlarged(pairs)
    return grid(np.concatenate([large[:, 0], large[:, 1]], axis=2), columns=4)  # of [n, H, 2W, C]


def _enlarged(images: np.ndarray) -> np.ndarray:
    factor = max(1, SIDE // max(images.shape[-3:-1]))
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _neighbours(samples: np.ndarray, nearest: np.ndarray, distances: np.ndarray) -> str:
    """A line for each sample that has neighbours."""
    rows = []
    for sample, pictures, numbers in zip(samples, nearest, distances, strict=False):
        below = ("", *(f"<br>{distance:.2f}" for distance in numbers))
        pictures = [_picture(_enlarged(picture)) for picture in (sample, *pictures)]
        cells = [f"<td>{picture}{text}</td>" for picture, text in zip(pictures, below, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _picture(pixels: np.ndarray) -> str:
    """uint8 [H, W, 1 or 3] inside the page."""
    with io.BytesIO() as file:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
            file, format="PNG"
        )
        return _inline(file.getvalue())


def _inline(png: bytes) -> str:
    # Inside the page, so that a report is one file that can be sent.
    return f'<img class=pixels alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _curves(path: Path) -> str:
    """A panel for each metric of a run; nothing where there are none."""
    lines = _lines(path)
    names = {name for line in lines for name in line} - {"step"}
    return _panels(beside(names)[:PANELS], lines) if names else ""


def beside(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The metrics of each panel: what training and validation have in common is in one, and so are
    the parts of a validation loss.

    Example:
      >>> beside(["loss", "lr", "val_loss", "val_loss[0.0-0.2]", "val_loss[0.2-0.4]"])
      [('loss', 'val_loss'), ('lr',), ('val_loss[0.0-0.2]', 'val_loss[0.2-0.4]')]
    """
    panels: dict[str, list[str]] = {}
    for name in sorted(names):
        key = name.removeprefix("val_")
        # Of validation alone: a figure may name its network in brackets.
        if key != name and "[" in key:
            key = name.partition("[")[0] + "["
        panels.setdefault(key, []).append(name)
    return [tuple(panels[key]) for key in sorted(panels)]


def _lines(path: Path) -> list[dict[str, float]]:
    """The numbers in the lines of metrics.jsonl that have a step; what a kill or a broken disk left
    of others is no reason to lose a report."""
    if not path.is_file():
        return []
    rows = [
        {name: number for name, value in row.items() if (number := _finite(value)) is not None}
        for row in rows_that_read(path)
    ]
    return [row for row in rows if "step" in row]


def _finite(value: Any) -> float | None:
    """A number as one; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    # Matplotlib squares what it draws.
    return number if math.isfinite(number) and abs(number) < 1e100 else None


def _panels(names: Sequence[tuple[str, ...]], lines: Sequence[Mapping[str, Any]]) -> str:
    """A panel for each group of names: their values in the lines against their steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for group, axis in zip(names, axes.flat, strict=False):
        for name in group:
            points = [(line["step"], line[name]) for line in lines if name in line]
            # Few points make no curve: one alone would not show at all.
            axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None)
        axis.set_xlabel("step")
        axis.set_title(group[0][:SIDE], parse_math=False)  # a '$' in a name is no formula
        if len(group) > 1:
            legend = axis.legend([name[:SIDE] for name in group], fontsize="x-small")
            for text in legend.get_texts():
                text.set_parse_math(False)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=90)
        pyplot.close(figure)
        return _inline(file.getvalue())
