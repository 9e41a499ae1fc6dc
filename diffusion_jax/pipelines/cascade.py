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
from diffusion_jax.pipelines.diffusion import Guide, Weak, conditions, generate
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Params, Raw

STRIDE = 1_000_003      # between the seeds of two stages


class Stage(NamedTuple):
    """One model of a cascade and how it samples."""

    task: Diffusion
    params: Params
    recipe: Recipe


def generate_cascade(
    stages: Sequence[Stage], raw: Raw, num: int, seed: int, batch: int = 100, guide: Guide | None = None,
    weak: Weak | None = None,
) -> Iterator[np.ndarray]:
    """Batches of images of the last stage, [b, H, W, C] in about [-1, 1], `num` in all; those of the others are held in memory.

    Args:
      stages: base first; the others read low_res. One stage is `generate` itself.
      raw: conditions of the base, from `conditions`; its labels and texts go to every stage that reads them.
      num, seed, batch: as in `generate`; each stage has a seed of its own.
      guide: a classifier that guides the base.
      weak: a model that the base is guided away from.

    Raises:
      ConfigError: what `generate` and `conditions` refuse, or a later stage that is no upsampler, all before anything is sampled.
    """
    for before, stage in itertools.pairwise(stages):
        if "low_res" not in stage.task.cond.keys:
            raise ConfigError(f"a model of {stage.task.shape} after one of {before.task.shape} must read low_res: no upsampler")
        known = {"label": np.zeros(1, np.int32)} | {name: value[:1] for name, value in raw.items()}
        conditions(stage.task, 1, given=_given(known, np.zeros((1, *before.task.shape), np.float32)))
        stage.recipe.check(stage.task)
    batches = generate(*stages[0], raw, num, seed, batch, guide, weak)
    return upsampled(stages[1:], batches, raw, num, seed, batch) if len(stages) > 1 else batches


def upsampled(
    stages: Sequence[Stage], batches: Iterator[np.ndarray], raw: Raw, num: int, seed: int, batch: int
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] made larger by one upsampler after the other; see `generate_cascade`."""
    for number, stage in enumerate(stages, 1):
        raw = conditions(stage.task, num, given=_given(raw, np.concatenate(list(batches)), stage.recipe.levels))
        batches = generate(*stage, raw, num, seed + number * STRIDE, batch)
    yield from batches


def _given(raw: Raw, images: np.ndarray, levels: int = 256) -> Raw:
    """What the next stage is given: images as a file would hold them, of 256 levels, or with 0 as they are."""
    return {**raw, "low_res": to_unit(to_uint8(images)) if levels else np.clip(images, -1, 1)}
