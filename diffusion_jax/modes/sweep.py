"""Mode `sweep`: one thing changed, everything measured: a table, sweep.csv and sweep.png.

    --over guidance --values 1,2,4                  a sampling option
    --over cads.s --values 0,0.05,0.1               an option of a sampling option
    --over which --values ema,params                the weights; `step` likewise
    --over run --values A,B,C                       runs that lie side by side in the working folder

The other options stay as given, and each value is measured as mode `evaluate` would.
"""
from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.modes import config as page
from diffusion_jax.modes import evaluate
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain

NUMBERS = {field.name: type(field.default) for field in fields(Recipe) if not isinstance(field.default, str)}
NESTED = ("sampler", "times", "schedule", "cads")
COLUMNS = 4                                                                      # of panels
OVER = ("run", "which", "step", "blur", "candidates", *(field.name for field in fields(Recipe)))


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Measures a run, or several, once for each value.

    Args:
      config: not needed: the checkpoints carry their own.
      workdir: the run's folder, or that of the runs' folders.
      options: over and values; out, where the files go without their suffix ('sweep' in the working folder); and those of
        `evaluate.run`, of which metric is 'features' where features is given.

    Raises:
      ConfigError: what is missing or unknown, or what `evaluate.run` refuses.
    """
    options = dict(options)
    missing = [name for name in ("over", "values") if name not in options]
    if missing:
        raise ConfigError(f"mode sweep needs --{missing[0]}")
    over, values = options.pop("over"), options.pop("values")
    if over.partition(".")[0] not in OVER:
        raise unknown("thing to sweep over", over, OVER)
    out = Path(options.pop("out", Path(workdir, "sweep")))
    options.setdefault("metric", "features" if "features" in options else "pixels")
    rows = []
    for value in values:
        report = evaluate.measured(*changed(workdir, options, over, value))
        figures = {name: figure for name, figure in report.items() if isinstance(figure, (int, float))}
        rows.append({over: value} | {name: figure for name, figure in figures.items() if name != over})
        print(f"{over} = {value}\n{evaluate.table(report)}\n", flush=True)
    if jax.process_index() == 0:
        write(out, over, rows)


def changed(workdir: str, options: Mapping[str, Any], over: str, value: str) -> tuple[str, dict[str, Any]]:
    """(folder, options) with one value in its place."""
    name, _, inner = over.partition(".")
    if name == "run":
        return str(Path(workdir, value)), dict(options)
    if inner:
        if name not in NESTED:
            raise ConfigError(f"--over {over}: {name} has no options, as {', '.join(NESTED)} have")
        stored = options.get(name, page.recipe_options(plain(config_of(workdir, options.get("step")))).get(name, ""))
        return workdir, {**options, name: ",".join(part for part in (stored, f"{inner}={value}") if part)}
    kind = {"step": int, "candidates": int, "blur": float}.get(name) or NUMBERS.get(name, str)
    try:
        return workdir, {**options, name: kind(value)}
    except ValueError:
        raise ConfigError(f"--values {value}: {name} takes a number") from None


def write(out: Path, over: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as <out>.csv and, a panel for each figure that varies, as <out>.png."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    out.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{out}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    names = [name for name in rows[0] if name != over and len({row[name] for row in rows}) > 1]
    pairs = [(over, name) for name in names]
    pairs += [(a, b) for a in names for b in names if a.startswith("precision") and b == a.replace("precision", "recall")]
    lines = -(-len(pairs) // COLUMNS) or 1
    figure, axes = pyplot.subplots(lines, COLUMNS, figsize=(3 * COLUMNS, 3 * lines), layout="constrained")
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    for (x, y), axis in zip(pairs, axes.flat, strict=False):
        axis.plot([str(row[x]) if x == over else row[x] for row in rows], [row[y] for row in rows], marker="o")
        axis.set(xlabel=x, title=y)
        for row in rows if x != over else ():                                            # fidelity against diversity
            axis.annotate(str(row[over]), (row[x], row[y]))
    figure.savefig(f"{out}.png", dpi=100)
    pyplot.close(figure)
    print(f"sweep: {out}.csv, {out}.png")
