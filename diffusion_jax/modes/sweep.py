"""Mode `sweep`: one thing changed, everything measured: a table, sweep.csv and sweep.png.

    --over guidance --values 1,2,4                  a sampling option
    --over cads.s --values 0,0.05,0.1               an option of a sampling option
    --over which --values ema,params                the weights; `step` likewise
    --over run --values A,B,C                       runs that lie side by side in the working folder

The other options stay as given, and each value is measured as mode `evaluate` would. All values are
checked before the first is measured, and the table grows with every value. Without --out the files
of an earlier sweep stay: the next are called sweep-2.
"""
from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from diffusion_jax.build import ConfigError, check_options, number, option, unknown
from diffusion_jax.evaluation import compare, metrics, report, series
from diffusion_jax.evaluation import options as measurement
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.files import unused, writable
from diffusion_jax.modes.options import Measuring, Weights
from diffusion_jax.pipelines import lora
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.runs import page
from diffusion_jax.runs.folder import Run
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain

NUMBERS = {
    leaf.name: type(leaf.default)
    for leaf in fields(Recipe)
    if isinstance(leaf.default, int | float)
}
"""The fields of a recipe that are numbers, and of which kind."""
WORDS = {"0": False, "false": False, "1": True, "true": True}
"""Values of fields that are either true or false."""
NESTED = ("sampler", "times", "schedule", "cads")
"""Fields of a recipe that are followed by options."""
OF_FOLDER = ("run", "which", "step")
OVER = (*OF_FOLDER, "blur", "candidates", *(leaf.name for leaf in fields(Recipe)))


@dataclass(frozen=True)
class Options(Measuring):
    """What is changed, and what is measured."""

    over: str = option(
        "",
        "What to change: an option of sampling, 'cads.s' for example, or which, step, run, blur, "
        "candidates",
    )
    values: str = option(
        "", "Its values: 1,2,4; one that has commas of its own in double quotes"
    )
    out: str | None = option(
        None, "Where the files go, without a suffix; sweep in the working folder by default"
    )

    def __post_init__(self):
        check_options(self)
        for name in ("over", "values"):
            if not getattr(self, name):
                raise ConfigError(f"mode sweep needs --{name}")
        name, _, inner = self.over.partition(".")
        if name not in OVER:
            raise unknown("thing to sweep over", self.over, OVER)
        if inner and name not in NESTED:
            raise ConfigError(
                f"--over {self.over}: {name} has no options, as {', '.join(NESTED)} have"
            )
        if self.measure.images is not None and name in OF_FOLDER:
            raise ConfigError(f"--over {name} is of a run: --images are measured as they are")
        # An option of an option is put behind what is there; all else is replaced by each value.
        if not inner and self._is_set(name):
            raise ConfigError(f"--over {name} takes its own from --values: leave --{name} out")

    def _is_set(self, name: str) -> bool:
        """Whether what is to be swept has a value of its own."""
        if name in ("which", "step"):
            return getattr(self.weights, name) != getattr(Weights(), name)
        others = {"blur": self.measure.blur, "candidates": self.helpers.candidates}
        return name in self.sampling.changes or others.get(name) is not None


class Point(NamedTuple):
    """One value in its place.

    Attributes:
      value: itself, as it was written.
      folder: of the run, or what images are measured in.
      which, step: the weights.
      options: what is measured.
      loras: merged into the weights.
    """

    value: str
    folder: str
    which: str
    step: int | None
    options: measurement.Options
    loras: Mapping[str, float] = MappingProxyType({})

    @property
    def weights(self) -> tuple[Any, ...]:
        """What tells one run from another."""
        return self.folder, self.which, self.step


def run(options: Options, workdir: str) -> None:
    """Measures a run, or several, once for each value.

    Args:
      options: what to change, and what to measure.
      workdir: the run's folder, or that of the runs' folders.

    Raises:
      ConfigError: what mode `evaluate` would refuse of any value, before one is measured.
    """
    points = points_of(options, workdir)
    opened = checked(points)
    out = place_of(options.out, workdir)
    rows: list[Mapping[str, Any]] = []
    # The table is written after every value: a sweep takes hours, and may be ended half-way.
    for point in points:
        measured = measured_at(point, opened)
        numbers = {
            name: figure for name, figure in measured.numbers.items() if name != options.over
        }
        rows.append({options.over: point.value} | numbers)
        if jax.process_index() == 0:
            series.write_table(out, rows)
        print(f"{options.over} = {point.value}\n{report.table(measured.figures)}\n", flush=True)
    if jax.process_index() == 0:
        series.write(out, options.over, rows)


def place_of(out: str | None, workdir: str) -> Path:
    """Where the files of a sweep go, without their suffix; tried, before anything is measured.

    Raises:
      ConfigError: nothing can be written there.
    """
    # A sweep that was ended half-way has a table and no picture yet.
    free = unused(Path(workdir, "sweep.csv")).with_suffix("")
    if out is not None and (not Path(out).name or out.endswith("/")):
        raise ConfigError(f"--out {out}: is a folder: give the name of the files, {out}sweep")
    place = free if out is None else Path(out).expanduser()
    for suffix in (".csv", ".png"):
        writable(f"{place}{suffix}")
    table = Path(f"{place}.csv")
    if table.exists():
        rows = table.read_text(encoding="utf-8", errors="replace").count("\n") - 1
        print(f"{table} holds {rows} values of an earlier sweep: replaced by the first of this one")
    return place


def checked(points: list[Point]) -> Run | None:
    """Goes through all values without measuring; returns the run, opened once, where all have one.

    Raises:
      ConfigError: what `metrics.check`, or of images `compare.check_images`, refuses of one.
    """
    if points[0].options.measure.images is not None:
        for point in points:
            compare.check_images(point.options)
        return None
    # One run is opened once. Of several each is opened when it is measured: not all fit in memory.
    several = len({point.weights for point in points}) > 1
    run = None
    for point in points:
        if run is None or several:
            run = _opened(point)
        metrics.check(run, point.options)
    return None if several else run


def measured_at(point: Point, opened: Run | None) -> Measured:
    """What is measured of one value."""
    if point.options.measure.images is not None:
        return compare.of_images(point.folder, point.options)
    return metrics.measured(opened or _opened(point), point.options)


def _opened(point: Point) -> Run:
    """The run of one value."""
    return lora.opened(point.folder, None, point.which, point.step, point.loras)


def points_of(options: Options, workdir: str) -> list[Point]:
    """One for each value.

    Raises:
      ConfigError: a value that is no number where a number belongs, or one that comes again.
    """
    weights = options.weights
    # What is swept may change nothing at one of its values, guidance at 1 for example: no mistake.
    swept = options.over.partition(".")[0]
    measured = options.for_evaluation(swept)
    base = Point("", workdir, weights.which, weights.step, measured, weights.loras)
    points = [changed(base._replace(value=value), options.over) for value in split(options.values)]
    check_different(points)
    return points


def check_different(points: list[Point]) -> None:
    """Raises ConfigError for a value that is measured already, perhaps in another spelling."""
    values: dict[str, Point] = {}
    for point in points:
        place = point._replace(value="")
        again = next((value for value, earlier in values.items() if earlier == place), None)
        if again is not None:
            raise ConfigError(
                f"--values has {again} twice, the second as {point.value}: give each value once"
            )
        values[point.value] = place


def split(values: str) -> list[str]:
    """'1,2' -> ['1', '2']; a value that has commas of its own stands in double quotes, and one comma
    may end the list.

    Raises:
      ConfigError: an empty value, or a quote that does not end.
    """
    # Read as a row of CSV, which is what 'sampler' needs: '"ddim,eta=0.5",plms'.
    try:
        (parts,) = csv.reader([values], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise ConfigError(f"--values {values!r}: {error}") from None
    parts = [part.strip() for part in parts]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    for place, part in enumerate(parts, 1):
        if not part:
            raise ConfigError(f"--values {values!r}: value {place} is empty")
    return parts


def changed(point: Point, over: str) -> Point:
    """The point with its value where it belongs.

    Raises:
      ConfigError: a value that is no number where a number belongs.
    """
    name, _, inner = over.partition(".")
    options = point.options
    if name == "run":
        return point._replace(folder=str(Path(point.folder, point.value)))
    if name == "which":
        return point._replace(which=point.value)
    if name == "step":
        return point._replace(step=_number(name, int, point.value, least=0))
    if name == "blur":
        measure = replace(options.measure, blur=_number(name, float, point.value))
        return point._replace(options=replace(options, measure=measure))
    if name == "candidates":
        helpers = replace(options.helpers, candidates=_number(name, int, point.value, least=1))
        return point._replace(options=replace(options, helpers=helpers))
    if inner:
        value: Any = _with(_written(point, name), f"{inner}={point.value}")
    else:
        value = _number(name, NUMBERS[name], point.value) if name in NUMBERS else point.value
    return point._replace(options=replace(options, changes={**options.changes, name: value}))


def _written(point: Point, name: str) -> str:
    """A field of the recipe as it was given, or as the page has it."""
    if name in point.options.changes:
        return point.options.changes[name]
    return page.recipe_fields(plain(config_of(point.folder, point.step))).get(name, "")


def _with(text: str, option: str) -> str:
    # Behind what is there: of an option that is written twice the last holds.
    return f"{text},{option}" if text else option


def _number(name: str, kind: type, value: str, least: float | None = None) -> Any:
    if name == "steps":
        return value  # may be a respacing, 'ddim50' for example; `Recipe` reads it
    if kind is bool:
        if value not in WORDS:
            raise ConfigError(f"--values {value}: {name} is true or false")
        return WORDS[value]
    return number(f"{name} (--values)", value, least=least, integer=kind is int)
