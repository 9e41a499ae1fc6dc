"""Cascades: images of one model, made larger by the next (2105.05233 section 6, 2106.15282).

    base -> 64x64 -> upsampler -> 256x256 -> ...
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import to_uint8, to_unit
from diffusion_jax.pipelines.conditions import conditions
from diffusion_jax.pipelines.progress import Meter
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.stream import generated
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Raw

STRIDE = 1_000_003
"""Between the seeds of two stages: with 1 the upsampler of a seed would draw as the base of the
next seed does."""


class Stage(NamedTuple):
    """One model of a cascade and how it samples."""

    model: Model
    recipe: Recipe


def steps_of(stages: Sequence[Stage], num: int, batch: int) -> int:
    """How many steps a cascade makes for `num` images, so many at a time."""
    batches = -(-num // min(batch, num))
    grids = [stage.recipe.grid(stage.model.task.process) for stage in stages]
    return batches * sum(len(grid) - 1 for grid in grids)


def check(stages: Sequence[Stage], raw: Raw) -> None:
    """Refuses a cascade whose stages do not fit each other, before anything is sampled.

    Args:
      stages: base first.
      raw: conditions of the base.

    Raises:
      ConfigError: a later stage that is no upsampler or lacks a condition, or what `Recipe.check`
        refuses.
    """
    for before, (model, recipe) in itertools.pairwise(stages):
        task = model.task
        shape = before.model.task.shape
        if "low_res" not in task.cond.keys:
            raise ConfigError(
                f"a model of {task.shape} after one of {shape} must read low_res: no upsampler"
            )
        # A single row, and of zeros what the stage before is yet to make: names and shapes count.
        # The base may have had no label; an upsampler that reads one takes the classes in turn.
        row = {"label": np.zeros(1, np.int32)} | {name: value[:1] for name, value in raw.items()}
        conditions(task, 1, raw=row | {"low_res": np.zeros((1, *shape), np.float32)})
        recipe.check(task)


def upsampled(
    stages: Sequence[Stage],
    batches: Iterator[np.ndarray],
    raw: Raw,
    num: int,
    seed: int,
    batch: int = 100,
    meter: Meter | None = None,
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] made larger by one upsampler after the other; what lies
    between is held in memory.

    Args:
      stages: the upsamplers, the next larger first; each has a seed of its own.
      batches: of images, `num` in all.
      raw: conditions; labels and texts go to every stage that reads them.
      num, seed, batch: as for `sampling.generate`.
      meter: counts the steps of all stages; None for nobody.
    """
    for number, (model, recipe) in enumerate(stages, 1):
        # All of them, since `generate` picks the rows of its conditions by number.
        small = low_res(np.concatenate(list(batches)), recipe.levels)  # [num, h, w, C]
        raw = conditions(model.task, num, raw={**raw, "low_res": small})
        stage_seed = seed + number * STRIDE
        batches = generated(model, recipe, raw, num, stage_seed, batch, meter=meter)
    yield from batches


def low_res(images: np.ndarray, levels: int = 256) -> np.ndarray:
    """What the next stage sees of images [N, H, W, C] in about [-1, 1]: of 256 levels, as in a
    file, or with `levels` 0 only clipped."""
    # An upsampler was trained on images of files, whose values are rounded.
    return to_unit(to_uint8(images)) if levels else np.clip(images, -1, 1)
