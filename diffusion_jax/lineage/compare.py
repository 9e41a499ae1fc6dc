"""A trained lineage -> a `Comparison`: every system asked alike, every figure from evaluation/.

    training FLOPs = own + sum over helpers of theirs / systems that need them                     (1)

All that takes time is kept in the systems' folders: a comparison that was ended goes on, and gives
the same figures.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import rows
from diffusion_jax.lineage import bench as benches
from diffusion_jax.lineage import samples
from diffusion_jax.lineage.bench import Bench, folder_of, row_of
from diffusion_jax.lineage.budget import page_of, users_of
from diffusion_jax.lineage.results import CLOCK, Comparison, Point, System, spread
from diffusion_jax.lineage.stages import Lineage, Stage, Trained, helpers_of
from diffusion_jax.lineage.train import key_of
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.train.checkpoint import available
from diffusion_jax.train.state import plain

NUM = 300
"""Pictures of each system, seed and strength."""
EARLIER = 3
"""Checkpoints before the last at most that are measured for the curve of training."""
COLUMNS, ROWS = 10, 4
"""Pictures of a system that are shown: so many classes or prompts, so many of each."""


class Course(NamedTuple):
    """What is compared, and with what.

    Attributes:
      lineage: the page of stages.
      trained: every stage and seed.
      num: pictures of each system, seed and strength.
      bench: what measures.
    """

    lineage: Lineage
    trained: Sequence[Trained]
    num: int
    bench: Bench


class Measured(NamedTuple):
    """What was measured of one seed of a system.

    Attributes:
      figures: by name.
      curve: by the value of its strength.
      training: by the FLOPs until then.
      pictures, along: as of a `System`.
    """

    figures: Mapping[str, float]
    curve: Mapping[float, Mapping[str, float]]
    training: Mapping[float, Mapping[str, float]]
    pictures: np.ndarray
    along: np.ndarray | None


def compare(
    lineage: Lineage,
    trained: Sequence[Trained],
    workdir: str,
    tell: Callable[[str], None] = print,
    num: int = NUM,
) -> Comparison:
    """Samples and measures every system of a trained lineage.

    Args:
      lineage: the page of stages.
      trained: every stage and seed.
      workdir: the lineage's folder.
      tell: says what is being done.
      num: pictures of each system, seed and strength.

    Raises:
      ConfigError: the classifier that measures, or the CLIP that judges, is not there. A system
        that fails is a `System` with its error.
    """
    bench = benches.bench_of(lineage, trained, workdir)
    course = Course(lineage, trained, num, bench)
    real = benches.of_held_out(bench, num)
    systems = []
    for stage in lineage.stages:
        if not stage.helper:
            tell(f"comparing {stage.name}")
            systems.append(system_of(course, stage))
    notes = tuple(shared(lineage))
    return Comparison(lineage, tuple(systems), real, num, pages_of(lineage), notes)


def pages_of(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """The page of each stage, helpers too; without those that do not read."""
    read = {}
    for stage in lineage.stages:
        try:
            read[stage.key] = plain(page_of(stage)) if stage.page else {}
        except ConfigError:  # the stage was not trained, and its error says why
            continue
    return read


# One system ---------------------------------------------------------------------------------------


def system_of(course: Course, stage: Stage) -> System:
    """A system over its seeds; those that fail are named in its error."""
    seeds = course.lineage.seeds
    results: list[Measured] = []
    errors = []
    for seed in range(seeds):
        try:
            results.append(measured(course, stage, seed))
        except (ConfigError, RuntimeError, OSError) as error:  # out of memory, a broken file
            line = str(error).partition("\n")[0]
            errors.append(line if seeds == 1 else f"seed {seed}: {line}")
    first = results[0] if results else None
    return System(
        stage,
        len(results),
        "; ".join(errors),
        spread(result.figures for result in results),
        points(result.curve for result in results),
        points(result.training for result in results),
        None if first is None else first.pictures,
        None if first is None else first.along,
        columns_of(samples.conditions_of(stage, course.lineage, course.num)),
    )


def points(curves: Iterable[Mapping[float, Mapping[str, float]]]) -> tuple[Point, ...]:
    """The places that the curves of all seeds have, rising."""
    curves = list(curves)
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return tuple(Point(value, spread(curve[value] for curve in curves)) for value in sorted(common))


def columns_of(conditions: samples.Conditions) -> int:
    """Columns in which pictures are shown."""
    return min(COLUMNS, conditions.rows) if conditions.rows > 1 else COLUMNS


def gallery(images: np.ndarray, conditions: samples.Conditions, rows: int = ROWS) -> np.ndarray:
    """The first pictures of the first classes, a column for each: uint8 [n, H, W, C]."""
    columns = columns_of(conditions)
    if conditions.rows == 1:
        return images[: columns * rows]
    table = images.reshape(conditions.rows, conditions.num, *images.shape[1:])[:columns, :rows]
    return np.swapaxes(table, 0, 1).reshape(-1, *images.shape[1:])


def measured(course: Course, stage: Stage, seed: int) -> Measured:
    """One seed of a system.

    Raises:
      ConfigError: it, or a helper that it needs, was not trained, or what sampling refuses.
    """
    row = row_of(course.trained, stage.key, seed)
    if row.error:
        raise ConfigError(row.error)
    folders = folders_of(course, stage, seed)
    folder = Path(course.bench.workdir, key_of(stage.key, seed), samples.FOLDER)
    conditions = samples.conditions_of(stage, course.lineage, course.num)

    def of(pipe: Pipeline) -> tuple[dict[str, float], samples.Sampled]:
        made = samples.sampled(pipe, conditions, seed, folder)
        return benches.of_pictures(course.bench, made.file, conditions.prompts), made

    pipe = samples.pipeline_of(stage, row.folder, folders)
    figures, base = of(pipe)
    flops = charged(course, stage, seed)
    training = {flops: figures}
    for step in earlier(stage, row):
        spent = flops - row.flops * (1 - step / row.steps)
        training[spent], _ = of(samples.pipeline_of(stage, row.folder, folders, step))
    curve = {}
    along = []
    name, values = stage.strength or ("", ())
    for value in values:
        curve[value], made = of(samples.at(pipe, name, value))
        along.append(gallery(made.images, conditions, rows=1))
    clock = base.file.with_name(f"{base.file.stem}-seconds.json")
    figures = {
        **figures,
        **benches.of_pipeline(samples.used(pipe), folder),
        **benches.cached(clock, lambda: {CLOCK: samples.seconds(pipe, conditions, seed)}),
        "training FLOPs": flops,
        "pictures seen": float(row.pictures),
    }
    pictures = gallery(base.images, conditions)
    return Measured(figures, curve, training, pictures, np.concatenate(along) if along else None)


def folders_of(course: Course, stage: Stage, seed: int) -> dict[str, str]:
    """The folders of what a stage needs, by role.

    Raises:
      ConfigError: one of these was not trained, or not to a good end.
    """
    return {role: folder_of(course.trained, key, seed) for role, key in stage.needs.items()}


def earlier(stage: Stage, row: Trained) -> list[int]:
    """Steps of checkpoints before the last, at most `EARLIER`, spread over them; of a stage that
    samples the run of another none, since they are that one's."""
    if "step" in stage.sample or not stage.page:
        return []
    steps = [step for step in available(row.folder) if 0 < step < row.steps]
    return [steps[i] for i in rows.spread(len(steps), EARLIER)]


# What training took -------------------------------------------------------------------------------


def charged(course: Course, stage: Stage, seed: int) -> float:
    """(1); of a stage that samples the run of another, that one's."""
    stages = {each.key: each for each in course.lineage.stages}
    stage = stages[stage.needs.get("run", stage.key)]
    users = users_of(course.lineage.stages)
    total = row_of(course.trained, stage.key, seed).flops
    for key in helpers_of(stage, course.lineage.stages):
        total += row_of(course.trained, key, seed).flops / len(users[key])
    return total


def shared(lineage: Lineage) -> Iterator[str]:
    """A sentence for each helper that several systems need."""
    users = users_of(lineage.stages)
    for helper in lineage.stages:
        names = [stage.name for stage in lineage.stages if stage.key in users.get(helper.key, ())]
        if len(names) > 1:
            yield f"What {helper.name} took is divided equally among {', '.join(names)}."
