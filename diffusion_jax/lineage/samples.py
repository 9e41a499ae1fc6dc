"""The pictures of a system that are measured: made under the same conditions for all systems, and kept.

    <workdir>/<key>/lineage/<mark>.npz      the pictures: arr_0, arr_1 their classes, meta

The mark stands for all that pictures depend on (weights, recipe, request, seed, helpers), so that
a comparison that was ended goes on, and whatever has changed is made anew.
"""
from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data.pictures import read_batch, save_npz
from diffusion_jax.lineage.stages import Lineage, Stage
from diffusion_jax.lineage.train import digest
from diffusion_jax.pipelines.helpers import helped
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.request import Helpers, Request
from diffusion_jax.pipelines.samples import meta_of

FOLDER = "lineage"
"""In the folder of a system: its pictures and their figures."""
BATCH = 100
"""Pictures at a time, about."""
FLAGS = {
    "classifier": "classifier",
    "judge": "rerank",
    "prior": "prior",
    "upsampler": "upsampler",
    "weak": "weak",
}
"""Role of what helps a stage to sample -> the flag that names its folder."""
HELPERS = tuple(leaf.name for leaf in fields(Helpers))
WEIGHTS = ("which", "step")


class Conditions(NamedTuple):
    """What the pictures of a system are made under, alike for all systems.

    Attributes:
      request: one row for each class or prompt.
      num: pictures of each row.
      labels: the class of each picture, int [rows num]; None without classes.
      prompts: the text of each picture; None without.
    """

    request: Request
    num: int
    labels: np.ndarray | None
    prompts: tuple[str, ...] | None

    @property
    def total(self) -> int:
        """Pictures."""
        return self.num * self.rows

    @property
    def rows(self) -> int:
        """Classes or prompts; 1 where a system makes what it likes."""
        return self.request.rows

    @property
    def batch(self) -> int:
        """Pictures at a time: as many of each row."""
        return self.rows * max(1, BATCH // self.rows)


def conditions_of(stage: Stage, lineage: Lineage, num: int) -> Conditions:
    """At least `num` pictures of a system, as many of each class or prompt."""
    by_label = stage.ask == "label"
    rows = len(lineage.classes if by_label else lineage.prompts) or 1
    each = -(-num // rows)
    prompts = None
    if lineage.prompts and rows == len(lineage.prompts):
        prompts = tuple(prompt for prompt in lineage.prompts for _ in range(each))
    # A prompt is of the class of its number, where there is one for each.
    labels = np.repeat(np.arange(rows), each) if rows == len(lineage.classes) else None
    request = Request(prompt=lineage.prompts or None, truncate=True)
    if by_label:
        request = Request(label=tuple(range(rows)) if lineage.classes else None)
    return Conditions(request, each, labels, prompts)


# Pipelines ----------------------------------------------------------------------------------------


def pipeline_of(
    stage: Stage, folder: str, folders: Mapping[str, str], step: int | None = None
) -> Pipeline:
    """A system that samples as its stage says.

    Args:
      stage: which.
      folder: of its run.
      folders: of what it needs, by role.
      step: of the checkpoint; the newest by default.

    Raises:
      ConfigError: what `helped` and `Pipeline.using` refuse.
    """
    flags = {name: value for name, value in stage.sample.items() if name in HELPERS}
    flags |= {flag: folders[role] for role, flag in FLAGS.items() if role in folders}
    if "upsampler" in flags:
        flags["upsampler"] = (flags["upsampler"],)
    which = {name: stage.sample[name] for name in WEIGHTS if name in stage.sample}
    if step is not None:
        which["step"] = step
    others = (*HELPERS, *WEIGHTS)
    changes = {name: value for name, value in stage.sample.items() if name not in others}
    return helped(folder, Helpers(**flags), **which).using(**changes)


def at(pipe: Pipeline, name: str, value: float) -> Pipeline:
    """A pipeline at another strength of one of `stages.STRENGTHS`.

    Raises:
      ConfigError: a value out of bounds, or a recipe without that field.
    """
    if name == "candidates":
        return replace(pipe, candidates=int(value))
    changes: dict[str, Any] = {name: float(value)}
    if name == "cads.s":
        # Behind what is there: of an option that is written twice the last holds.
        changes = {"cads": ",".join(filter(None, (pipe.diffusion.cads, f"s={value:g}")))}
    # Not by `Pipeline.using`: one value of a curve may be that which changes nothing.
    return replace(pipe, recipe=pipe.recipe.using(**changes))


def used(pipe: Pipeline) -> Pipeline:
    """A pipeline without what has nothing to do: a judge of one candidate, a weaker model at the
    scale 1."""
    judge = None if pipe.candidates == 1 else pipe.judge
    weak = pipe.weak if pipe.recipe.guides else None
    return replace(pipe, judge=judge, weak=weak)


# Pictures -----------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """Pictures in their file.

    Attributes:
      file: an .npz.
      meta: all that they were made from.
    """

    file: Path
    meta: Mapping[str, Any]

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, H, W, C]."""
        return read_batch(str(self.file))[0]


def sampled(pipe: Pipeline, conditions: Conditions, seed: int, folder: Path) -> Sampled:
    """The pictures of a pipeline; those that are there already are not made again.

    Args:
      pipe: makes them.
      conditions: what they are made under.
      seed: of the draws.
      folder: where they are kept.

    Raises:
      ConfigError: what `Pipeline.start` refuses, or pictures that are not finite.
    """
    job = used(pipe).start(conditions.request, conditions.num, seed, conditions.batch)
    meta = meta_of(job.origin)
    file = folder / f"{digest(meta)}.npz"
    if not file.exists():
        images = np.concatenate(list(job.batches()))
        save_npz(file, images, conditions.labels, meta)
    return Sampled(file, meta)


def seconds(pipe: Pipeline, conditions: Conditions, seed: int) -> float:
    """For a picture: of a batch, after one of the same size has compiled all programs."""
    pipe = used(pipe)
    each = conditions.batch // conditions.rows
    for _ in range(2):
        began = time.perf_counter()
        pipe(conditions.request, each, seed, conditions.batch)
    return (time.perf_counter() - began) / (each * conditions.rows)
