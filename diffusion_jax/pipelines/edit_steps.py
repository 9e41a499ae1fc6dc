"""Edits as they are made: in one program each, or in parts, whose steps a meter counts.

The parts of an edit, and those of an inversion, are two programs, one that begins and one of some
steps, for all values of a sweep and parts of all lengths. They make the same pictures as `edit` and
`invert`, bit for bit; the long sums of DPM-Solver++ alone may be rounded in another order, in the
last digit.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.samplers import Progress, begin, pairs_of
from diffusion_jax.pipelines import cascade
from diffusion_jax.pipelines.edit import (
    LAST,
    Change,
    Course,
    Inputs,
    begun,
    edit,
    invert,
    means,
    pasted,
    upwards,
)
from diffusion_jax.pipelines.progress import Pace
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.stream import advance_part
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Array, Key, Raw, Sampler

INVERTED = ("invert", "variations", "interpolate", "text_diff")
"""Ops that come back by DDIM from the noise that DDIM found."""


def steps_of(stages: Sequence[cascade.Stage], op: str, rows: int) -> int:
    """How many steps an op of `pipe.edit` makes.

    Args:
      stages: the model, and the upsamplers that follow each row: `pipe.stages`.
      op: its name.
      rows: how many values it sweeps over; 0 of an op that sweeps over nothing.
    """
    upwards = stages[:1] if op in INVERTED else ()
    return max(rows, 1) * cascade.steps_of(stages, 1, 1) + cascade.steps_of(upwards, 1, 1)


def edited(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    change: Change = Change(),
    inputs: Inputs = Inputs(),
    pace: Pace | None = None,
) -> Array:
    """`edit` in parts at a pace, whose meter counts the steps: the same pictures. In one program
    where there is none."""
    if pace is None:
        return edit(model, recipe, strengths, raw, index, key, change, inputs)
    progress, course = _begin(model, recipe, strengths, raw, index, key, change, inputs)
    x = _counted(model, recipe, strengths, progress, course, index, inputs, pace)
    return pasted(x, inputs)


def inverted(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    image: Array,
    pace: Pace | None = None,
) -> Array:
    """`invert` in parts at a pace, whose meter counts the steps: the same noise. In one program
    where there is none."""
    if pace is None:
        return invert(model, recipe, strengths, raw, image)
    progress, course = _begin_upwards(model, recipe, strengths, raw, image)
    return _counted(model, recipe, strengths, progress, course, None, Inputs(), pace)


def _counted(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    progress: Progress,
    course: Course,
    index: Array | None,
    inputs: Inputs,
    pace: Pace,
) -> Array:
    """x [B, h, w, c] after all steps of an edit, or of an inversion, that has begun."""

    def step(progress: Progress, first: int, last: int) -> Progress:
        return _advance(model, recipe, strengths, progress, course, index, inputs, first, last)

    return pace.made(step, progress, len(course.times) - 1).x


@functools.partial(jax.jit, static_argnames=("recipe",))
def _begin(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    change: Change,
    inputs: Inputs,
) -> tuple[Progress, Course]:
    x, course = begun(model, recipe, strengths, raw, index, key, change, inputs)
    _, sampler, _ = means(model, recipe, strengths, course, index, inputs)
    return _before_first(sampler, x, course), course


@functools.partial(jax.jit, static_argnames=("recipe",))
def _begin_upwards(
    model: Model, recipe: Recipe, strengths: Strengths, raw: Raw, image: Array
) -> tuple[Progress, Course]:
    course = upwards(model, recipe, strengths, raw)
    _, sampler, _ = means(model, recipe, strengths, course, None, Inputs())
    return _before_first(sampler, image, course), course


def _before_first(sampler: Sampler, x: Array, course: Course) -> Progress:
    """A run from x, before the first of its steps."""
    # A copy: the parts take over its buffer, and an x that a caller gave stays the caller's.
    return begin(sampler, jnp.copy(x), len(course.times) - 1)


# Donated: the images and the sampler's memory are not held twice.
@functools.partial(jax.jit, static_argnames=("recipe",), donate_argnames=("progress",))
def _advance(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    progress: Progress,
    course: Course,
    index: Array | None,
    inputs: Inputs,
    first: int,
    last: int,
) -> Progress:
    """Steps `first` ... `last` - 1 of an edit, of an inversion where there is no `index`."""
    denoise, sampler, cond = means(model, recipe, strengths, course, index, inputs)
    pairs = pairs_of(course.times)
    keys = jax.random.split(course.key, len(pairs))  # as `sample` splits them
    return advance_part(denoise, sampler, progress, pairs, keys, cond, first, last)


def sweep(
    model: Model,
    recipe: Recipe,
    raw: Raw,
    seed: int,
    over: str,
    values: Sequence[float],
    inputs: Inputs = Inputs(),
    pace: Pace | None = None,
) -> list[Array]:
    """`edit` for each value of 'guidance', 'phi' or a field of `Change`, x [B, h, w, c] each; the
    same noise for all, and a pace for all, where there is one.

    Raises:
      ConfigError: the recipe does not go with the task, or a value has no meaning.
    """
    check_values(over, values)
    if over == "phi" and not recipe.guides:
        raise ConfigError(
            "op phi rescales guidance, which is 1 here, none: give guidance (--guidance) too"
        )
    # Any scale but 1, which would leave guidance out of the program; each value takes its place.
    scaled = replace(recipe, guidance=2.0) if over == "guidance" else recipe
    scaled.check(model.task)
    static, strengths = scaled.split()
    count = len(jax.tree.leaves((dict(raw), inputs.image))[0])
    index = jnp.arange(count)
    key = jax.random.key(seed)
    rows = []
    # Arrays, not Python numbers, so that the types of all calls agree and one program serves them.
    none = Change(jnp.int32(LAST), jnp.float32(0), jnp.float32(1))
    for value in values:
        change = none
        number = jnp.int32(value) if over == "switch" else jnp.float32(value)
        if over in strengths._fields:
            strengths = strengths._replace(**{over: number})
        else:
            change = none._replace(**{over: number})
        rows.append(edited(model, static, strengths, raw, index, key, change, inputs, pace))
    return rows


def check_values(over: str, values: Sequence[float]) -> None:
    """Raises ConfigError for values of a sweep that have no meaning."""
    if not len(values):
        raise ConfigError(f"op {over} needs values (--values): numbers, separated by commas")
    if not np.isfinite(np.asarray(values, float)).all():
        raise ConfigError(f"values of {over} are finite numbers: got {', '.join(map(str, values))}")
    if over == "switch" and any(value != int(value) or value < 0 for value in values):
        raise ConfigError(
            f"values of switch are numbers of steps, from 0 on: got {', '.join(map(str, values))}"
        )
    if over in ("strength", "mix") and any(not 0 <= value <= 1 for value in values):
        raise ConfigError(f"values of {over} lie in 0 ... 1: got {', '.join(map(str, values))}")
