"""A `Comparison` as files: the page that shows it, its tables, its figures.

    lineage.html        all of it in one file that needs no other, and no network
    lineage.csv         a row for each system: means and deviations over the seeds
    lineage.json        everything but the pictures, curves and statements too
    figures/            PNG and SVG

The page has no script: what it says is there when it opens. Whatever is put into it is escaped, for
names and errors come from elsewhere. lineage.csv has no times of a clock, so that the same command
gives the same file wherever it was stopped on its way.
"""
from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from diffusion_jax.data.image import to_pillow
from diffusion_jax.data.pictures import grid, save_png
from diffusion_jax.files import whole
from diffusion_jax.lineage import claims, figures
from diffusion_jax.lineage.diagram import HEIGHT, WIDTH, Diagram, diagram
from diffusion_jax.lineage.ideas import IDEAS, Idea
from diffusion_jax.lineage.results import BETTER, CLOCK, Comparison, Point, System
from diffusion_jax.lineage.samples import FLAGS
from diffusion_jax.lineage.stages import Lineage, Stage

NAME = "lineage"
"""Of the files, before their suffixes."""
FOLDER = "figures"
TEMPLATE = "page.html.jinja"
LETTERS = {
    name: f"&{name};" for name in ("alpha", "sigma", "gamma", "theta")
} | {"eps": "&epsilon;", "phi": "&phi;", "sqrt": "&radic;", "prod": "&prod;", "sum": "&sum;"}
"""Words of a formula that have a letter."""


class Section(NamedTuple):
    """What a page shows of a system.

    Attributes:
      system: what was measured.
      idea: its texts; None of a system that has none.
      solved, left_open: statements that the spread supports.
      parts: its diagram; None where its page did not read.
      picture: the first pictures, as a part of the page; "" without.
      strip: the first row of them.
      along: pictures as its strength rises; "" without.
      curve: its figure; "" without.
      commands: that train it and sample from it.
    """

    system: System
    idea: Idea | None
    solved: tuple[str, ...]
    left_open: tuple[str, ...]
    parts: Diagram | None
    picture: str
    strip: str
    along: str
    curve: str
    commands: tuple[str, ...]


def write(comparison: Comparison, workdir: str) -> str:
    """Writes everything.

    Args:
      comparison: what was measured.
      workdir: the lineage's folder.

    Returns:
      Where the page is.
    """
    folder = Path(workdir)
    plots = figures.draw(comparison, folder / FOLDER)
    for system in comparison.systems:
        if system.pictures is not None:
            pictures = sheet(system.pictures, system.columns)
            save_png(folder / FOLDER / f"{system.stage.key}.png", pictures)
    for name, text in (
        (f"{NAME}.csv", table(comparison)),
        (f"{NAME}.json", json.dumps(plain(comparison), indent=1, ensure_ascii=False)),
        (f"{NAME}.html", page(comparison, workdir, plots)),
    ):
        with whole(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return str(folder / f"{NAME}.html")


# Tables -------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> str:
    """The text of lineage.csv."""
    names = [name for name in columns(comparison) if name != CLOCK]
    head = ["key", "system", "year", "seeds", "error"]
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *(f"{name}{what}" for name in names for what in ("", " deviation"))])
        for system in comparison.systems:
            stage = system.stage
            cells: list[Any] = [stage.key, stage.name, stage.year, system.seeds, system.error]
            for name in names:
                figure = system.figures.get(name)
                cells += ["", ""] if figure is None else [figure.mean, figure.deviation]
            writer.writerow(cells)
        return file.getvalue()


def columns(comparison: Comparison) -> list[str]:
    """The figures that at least one system has."""
    present = {name for system in comparison.systems for name in system.figures}
    return [name for name in BETTER if name in present]


def plain(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON; all values of each figure, one for each seed."""
    lineage = comparison.lineage
    return {
        "data": lineage.data,
        "seeds": lineage.seeds,
        "samples": comparison.samples,
        "budget": lineage.budget._asdict(),
        "held-out pictures": dict(comparison.real),
        "notes": list(comparison.notes),
        "systems": [_system(comparison, system) for system in comparison.systems],
        "claims": [
            {**verdict.claim._asdict(), "outcome": verdict.outcome, "evidence": verdict.evidence}
            for verdict in claims.verdicts(comparison)
        ],
    }


def _system(comparison: Comparison, system: System) -> dict[str, Any]:
    stage = system.stage
    return {
        "key": stage.key,
        "name": stage.name,
        "year": stage.year,
        "page": stage.page,
        "error": system.error,
        "figures": _figures(Point(0.0, system.figures)),
        "strength": None if stage.strength is None else stage.strength.name,
        "curve": [{"value": point.value} | _figures(point) for point in system.curve],
        "training": [{"FLOPs": point.value} | _figures(point) for point in system.training],
        "better than before": list(claims.solved(comparison, stage.key)),
        "worse than before": list(claims.left_open(comparison, stage.key)),
    }


def _figures(point: Point) -> dict[str, Any]:
    return {name: list(figure.values) for name, figure in point.figures.items()}


# The page -----------------------------------------------------------------------------------------


def page(comparison: Comparison, workdir: str, plots: Mapping[str, str]) -> str:
    """The text of lineage.html.

    Args:
      comparison: what was measured.
      workdir: the folder that its commands name.
      plots: name -> figure, from `figures.draw`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["formula"] = formula
    environment.filters["power"] = power
    sections = [section(comparison, system, workdir, plots) for system in comparison.systems]
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        lineage=comparison.lineage,
        sections=sections,
        plots=plots,
        columns=columns(comparison),
        better=BETTER,
        caution=claims.caution(comparison),
        verdicts=claims.verdicts(comparison),
        box=(WIDTH, HEIGHT),
    )


def section(
    comparison: Comparison, system: System, workdir: str, plots: Mapping[str, str]
) -> Section:
    """What the page shows of a system."""
    stage = system.stage
    stages = {each.key: each for each in comparison.lineage.stages}
    picture = strip = along = ""
    if system.pictures is not None:
        picture = png(sheet(system.pictures, system.columns))
        strip = png(sheet(system.pictures[: system.columns], system.columns))
    if system.along is not None:
        along = png(sheet(system.along, system.columns))
    return Section(
        system,
        IDEAS.get(stage.key),
        claims.solved(comparison, stage.key),
        claims.left_open(comparison, stage.key),
        diagram(stage, stages, comparison.pages),
        picture,
        strip,
        along,
        plots.get(f"curve_{stage.key}", ""),
        tuple(commands(stage, comparison.lineage, workdir)),
    )


def sheet(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures uint8 [N, H, W, C] as one, uint8 [h, w, C]; small ones are enlarged."""
    return grid(figures.enlarged(pictures), columns)


def png(pixels: np.ndarray) -> str:
    """uint8 [h, w, C] as a part of a page."""
    with io.BytesIO() as file:
        to_pillow(pixels).save(file, format="PNG")
        return figures.uri("image/png", file.getvalue())


def commands(stage: Stage, lineage: Lineage, workdir: str) -> Iterator[str]:
    """What trains a system, and what samples from it, as the first seed was."""
    folder = f"{workdir}/{stage.needs.get('run', stage.key)}"
    if stage.page:
        yield command({"config": f"{workdir}/pages/{stage.key}.py", "workdir": folder})
    needs = stage.needs.items()
    helpers = {FLAGS[role]: f"{workdir}/{key}" for role, key in needs if role in FLAGS}
    if "candidates" not in stage.sample:
        helpers.pop("rerank", None)
    request: dict[str, Any] = {}
    if stage.ask == "label" and lineage.classes:
        request = {"label": 0}
    if stage.ask == "prompt" and lineage.prompts:
        request = {"prompt": lineage.prompts[0]}
    yield command({"workdir": folder, "mode": "sample", **request, **helpers, **stage.sample})


def command(flags: Mapping[str, Any]) -> str:
    """A command line with flags."""
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()]
    return " ".join(["python -m diffusion_jax.main", *words])


def formula(text: str) -> Markup:
    """A formula of ideas.py as HTML: Greek letters, and what stands behind _ and ^ below and above
    the line."""
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"\b([xW])([01-9])\b", r"\1<sub>\2</sub>", escaped)
    escaped = re.sub(r"_(&lt;)?(\w+)", r"<sub>\1\2</sub>", escaped)
    escaped = re.sub(r"\^(\w+)", r"<sup>\1</sup>", escaped)
    return Markup(re.sub(r"\b[a-z]+\b", lambda word: LETTERS.get(word[0], word[0]), escaped))


def power(number: float) -> Markup:
    """4e12 -> 4 x 10^12, as HTML."""
    digits, exponent = f"{number:.3g}".partition("e")[::2]
    if not exponent:
        return Markup(digits)
    return Markup(f"{digits} &times; 10<sup>{int(exponent)}</sup>")
