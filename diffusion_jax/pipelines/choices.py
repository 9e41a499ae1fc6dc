"""What can be asked of a pipeline: for a page that offers nothing that would be refused."""
from __future__ import annotations

import contextlib
import io
from typing import Any

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.spelling import GRIDS, SAMPLERS

GIVEN = {"label", "tokens", "mask", "known", "inpaint"}
"""Conditions that a class or a text is, or that a blank picture stands for."""


def goes_with(pipe: Pipeline, **changes: Any) -> bool:
    """Whether the recipe of a diffusion model, with other fields, goes with the model.

    Example:
      goes_with(pipe, guidance=2.0)    False of a model without a condition
    """
    try:
        # Warnings are for who chooses it.
        with contextlib.redirect_stderr(io.StringIO()):
            pipe.diffusion.using(**changes).check(pipe.run.task)
    except ConfigError:
        return False
    return True


def samplers_of(pipe: Pipeline) -> list[str]:
    """The names of the samplers that go with a diffusion model; of one over tokens none."""
    names = () if pipe.makes_tokens else SAMPLERS
    return [name for name in names if goes_with(pipe, sampler=name)]


def grids_of(pipe: Pipeline) -> list[str]:
    """The names of the times that go with a diffusion model; of one over tokens none."""
    names = () if pipe.makes_tokens else GRIDS
    return [name for name in names if goes_with(pipe, times=name)]


def classes_of(pipe: Pipeline) -> list[str]:
    """The classes of a model, by their names or else their numbers; of one without none."""
    if "label" not in fields_of(pipe):
        return []
    return list(pipe.run.class_names or map(str, range(pipe.run.task.num_classes)))


def fields_of(pipe: Pipeline) -> set[str]:
    """The fields of a `Request` and of a recipe that can be chosen without naming a file.

    Raises:
      ConfigError: the model reads more than a class or a text: pictures, for example.
    """
    if pipe.makes_tokens:
        return {"prompt", "guidance", "temperature"}
    task = pipe.run.task
    keys = set(task.cond.keys)
    is_unclip = task.embedder is not None
    if keys - GIVEN and not is_unclip:
        needs = ", ".join(sorted(keys - GIVEN))
        raise ConfigError(
            f"{pipe.run.folder} reads {needs}, which cannot be given here: open a model of classes "
            "or texts"
        )
    fields = {"steps", "sampler", "times", "threshold"}
    if "label" in keys:
        fields |= {"label"}
    if "tokens" in keys and not is_unclip:
        fields |= {"prompt", "negative"}
    if is_unclip and pipe.prior is not None:
        fields |= {"prompt"}
    if goes_with(pipe, guidance=2.0):
        fields |= {"guidance", "phi", "interval"}
    if goes_with(pipe, cads="s=0.1"):
        fields |= {"cads"}
    return fields
