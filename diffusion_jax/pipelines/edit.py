"""Changing pictures with a trained diffusion model, and conditions half-way.

    strength    a picture noised to the time t with u(t) = strength, and sampled from there    (1)
                (SDEdit, 2108.01073)
    inversion   DDIM from the picture up to noise, which DDIM brings back                      (2)
                (2010.02502; 2105.05233, app. F)
    switch      the first k steps under one condition, the rest under another, all calls       (3)
                of a step under the same
    mix         a condition between two: (1 - m) embed(a) + m embed(b)                         (4)
    inpainting  what is known pasted into x0 at every step where the network sees it           (5)
                (2112.10741), else into x_t

What is changed is what the network sees: latents, where there is a first stage (pipelines/latent.py
goes between).

All are one program for one batch: what is swept, the numbers of `Change` and `Strengths`, is
traced, so a sweep compiles once. pipelines/edit_steps.py makes them in parts, whose steps a meter
counts.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.guidance import Known
from diffusion_jax.diffusion.process import DDPM, noised
from diffusion_jax.diffusion.samplers import Conds, ddim_inversion, sample, start, with_known
from diffusion_jax.pipelines.cascade import Stage
from diffusion_jax.pipelines.progress import Meter, Pace
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.sampling import embedded, per_image
from diffusion_jax.pipelines.skipping import skip_guidance
from diffusion_jax.pipelines.unclip import Prior
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.types import Array, Cond, Denoiser, Key, Process, Raw, Sampler

LAST = 10**6
"""A step that no run reaches: a number and not None, so that all edits share one program."""


class Change(NamedTuple):
    """The numbers of an edit.

    Attributes:
      switch: k of (3), the steps under the first condition; as many as there are by default.
      mix: m of (4).
      strength: of (1), in [0, 1]: 0 is the picture, 1 a new one.
    """

    switch: Array | int = LAST
    mix: Array | float = 0.0
    strength: Array | float = 1.0


class Maker(NamedTuple):
    """What makes the pictures that are edited: the parts of a `Pipeline` that edits use.

    Attributes:
      run: of a diffusion model.
      recipe: how to sample.
      prior: where the embeddings of unCLIP's decoder come from.
      larger: upsamplers, for edits of unCLIP's decoder.
      meter: counts steps of samplers as they are made, of inversion too; None for nobody.
      pace: one for all rows, as `paced` has it; None where nobody counts.
    """

    run: Run
    recipe: Recipe
    prior: Prior | str | None = None
    larger: Sequence[Stage] = ()
    meter: Meter | None = None
    pace: Pace | None = None

    def paced(self) -> Maker:
        """The same with a pace for its meter."""
        return self._replace(pace=None if self.meter is None else Pace(self.meter))


class Inputs(NamedTuple):
    """The arrays of an edit, each None where the edit has none.

    Attributes:
      second: the other condition of (3) and (4), raw.
      image: x of the picture of (1) and (5), [B, h, w, c].
      mask: 1 where the picture is known, [B, h, w, 1], for (5). A network of latents that inpaints
        sees it in raw['inpaint'].
      x: where to start, in place of noise: what `invert` returns, [B, h, w, c].
    """

    second: Raw | None = None
    image: Array | None = None
    mask: Array | None = None
    x: Array | None = None


def switched(first: Cond, second: Cond, after: Array) -> Conds:
    """(3): the condition of a step that begins at t, `second` from the time `after` on."""

    def cond(t: Array) -> Cond:
        # A choice of arrays, not of programs: `after` is traced.
        return jax.tree.map(lambda a, b: jnp.where(t > after, a, b), dict(first), dict(second))

    return cond


def time_of(process: Process, strength: Array | float, dtype: jnp.dtype) -> Array:
    """The t with u(t) = strength, of a grid's type: where times are whole the nearest of them. At
    strength 0 it is clean, as not every process has u = 0 there."""
    # `at` of a table rounds down to where training drew from.
    t = strength * process.steps if isinstance(process, DDPM) else process.at(jnp.asarray(strength))
    if jnp.issubdtype(dtype, jnp.integer):
        t = jnp.round(t)
    t = jnp.where(strength > 0, jnp.minimum(t, process.t_max), process.t_clean)
    return t.astype(dtype)


def from_strength(process: Process, times: Array, strength: Array | float) -> Array:
    """(1): a grid that begins at u(t) = strength, as long as `times` [N + 1], so that all strengths
    share a program. Steps above it have length zero, which samplers leave out."""
    t = time_of(process, strength, times.dtype)
    # The first time itself: the grid may begin below it.
    return jnp.minimum(times, t).at[0].set(t)


def interpolated(a: Cond, b: Cond, share: Array | float) -> Cond:
    """(4) of what is a number; masks are those of either."""
    between = {
        name: (1 - share) * a[name] + share * b[name]
        for name in a
        if jnp.issubdtype(a[name].dtype, jnp.floating)
    }
    return {name: between[name] if name in between else a[name] | b[name] for name in a}


@functools.partial(jax.jit, static_argnames=("recipe",))
def edit(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    change: Change = Change(),
    inputs: Inputs = Inputs(),
) -> Array:
    """One batch of edited pictures, x [B, h, w, c].

    Args:
      model: what was trained, without its first stage.
      recipe: how to sample, without its scales: static.
      strengths: how strongly to guide.
      raw: conditions, [B, ...] each.
      index: the numbers of the images, [B]; their noise depends on nothing else.
      key: the seed's key.
      change, inputs: what the edit is.
    """
    x, course = begun(model, recipe, strengths, raw, index, key, change, inputs)
    denoise, sampler, cond = means(model, recipe, strengths, course, index, inputs)
    return pasted(sample(denoise, sampler, x, course.times, cond, course.key), inputs)


@functools.partial(jax.jit, static_argnames=("recipe",))
def invert(model: Model, recipe: Recipe, strengths: Strengths, raw: Raw, image: Array) -> Array:
    """(2): the noise [B, h, w, c] from which `edit` with 'ddim' makes x of a picture [B, h, w, c]
    again.

    The network is asked at the time stepped to (samplers.ddim_inversion), so that the picture
    itself is the start.
    """
    course = upwards(model, recipe, strengths, raw)
    denoise, sampler, cond = means(model, recipe, strengths, course, None, Inputs())
    return sample(denoise, sampler, image, course.times, cond, course.key)


# What both are made of ----------------------------------------------------------------------------


class Course(NamedTuple):
    """What is embedded and drawn once for an edit or an inversion, and read at every step.

    Attributes:
      times: its grid, [N + 1].
      cond: what the network sees.
      null: what it sees of the null condition; None without guidance.
      second: what it sees from the time `after` on, (3); both None without another condition.
      after: a time of the grid.
      key: of the steps.
    """

    times: Array
    cond: Cond
    null: Cond | None
    second: Cond | None
    after: Array | None
    key: Key


def begun(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    change: Change,
    inputs: Inputs,
) -> tuple[Array, Course]:
    """(x [B, h, w, c] before the first step, what the steps read); arguments as in `edit`."""
    task = model.task
    process = task.process
    noise = per_image(index)
    k_start, k_run, k_cond = jax.random.split(key, 3)  # as `sampling.begun` does
    times = jnp.asarray(recipe.grid(process))
    image = inputs.image
    if inputs.mask is not None and image is not None:
        raw = {**raw, "mask": inputs.mask, "known": image}
    conds = embedded(model, recipe, strengths, raw, k_cond, noise)
    cond, second, after = conds.cond, None, None
    if inputs.second is not None:
        # The noise of both conditions' augmentation is the same, so nothing but them differs.
        raw = {**conds.raw, **inputs.second}
        second = embedded(model, recipe, Strengths(), raw, k_cond, noise).cond
        cond = interpolated(conds.cond, second, change.mix)
        after = times[jnp.minimum(change.switch, len(times) - 1)]
    x = start(process, times, k_start, (len(index), *task.shape), noise)  # [B, h, w, c]
    x = recipe.temperature * x
    if inputs.x is not None:
        x = inputs.x
    if image is not None:
        # At strength 1 nothing of the picture is left, and x is noise alone.
        is_new = jnp.asarray(change.strength) >= 1
        times = jnp.where(is_new, times, from_strength(process, times, change.strength))
        # One for all strengths, so that they lie on one path; as warm as a start from noise alone.
        eps = recipe.temperature * noise(k_start, x.shape)
        x = jnp.where(is_new, x, noised(process, image, times[0], eps))
    return x, Course(times, cond, conds.null, second, after, k_run)


def upwards(model: Model, recipe: Recipe, strengths: Strengths, raw: Raw) -> Course:
    """What the steps of an inversion read; arguments as in `invert`."""
    key = jax.random.key(0)  # DDIM draws nothing; only an augmented condition would read it
    conds = embedded(model, recipe, strengths, raw, key, jax.random.normal)
    times = jnp.asarray(recipe.grid(model.task.process)[::-1])
    return Course(times, conds.cond, conds.null, None, None, key)


def means(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    course: Course,
    index: Array | None,
    inputs: Inputs,
) -> tuple[Denoiser, Sampler, Conds]:
    """What the steps of an edit are made with, of an inversion where there is no `index`; the
    other arguments as in `edit`."""
    task = model.task
    process = task.process
    noise = jax.random.normal if index is None else per_image(index)
    skip = skip_guidance(recipe, strengths, model, away=course.null is not None)
    guidance = recipe.make_guidance(task, strengths, course.null, noise, skip=skip)
    denoise = guidance(task.denoiser(model.params))
    if index is None:
        return denoise, ddim_inversion(process), course.cond
    cond: Conds = course.cond
    if course.second is not None and course.after is not None:
        cond = switched(course.cond, course.second, course.after)
    sampler = recipe.make_sampler(task, noise)
    image, mask = inputs.image, inputs.mask
    if mask is None or image is None:
        return denoise, sampler, cond
    if "mask" in task.cond.keys:
        denoise = Known(image, mask)(denoise)
    elif "inpaint" not in task.cond.keys:
        sampler = with_known(sampler, process, image, mask, noise)
    return denoise, sampler, cond


def pasted(x: Array, inputs: Inputs) -> Array:
    """x [B, h, w, c] with what is known of a picture, if anything is, in its place."""
    if inputs.mask is None or inputs.image is None:
        return x
    # Once more at the end: what is known is to come back exactly, whatever the last step did.
    return inputs.mask * inputs.image + (1 - inputs.mask) * x


def rectangles(shape: tuple[int, ...], rects: Sequence[Sequence[int]]) -> np.ndarray:
    """A mask [1, H, W, 1] for images of `shape` (H, W, C): 0 inside rectangles (top, left, bottom,
    right), 1 elsewhere.

    Raises:
      ConfigError: a rectangle that is empty or leaves the image.
    """
    mask = np.ones((1, *shape[:2], 1), np.float32)
    for rect in rects:
        if not _is_inside(rect, shape):
            raise ConfigError(
                f"rectangle {rect} is not top,left,bottom,right inside {shape[0]}x{shape[1]} pixels"
            )
        top, left, bottom, right = rect
        mask[:, top:bottom, left:right] = 0
    return mask


def _is_inside(rect: Sequence[int], shape: tuple[int, ...]) -> bool:
    """Whether (top, left, bottom, right) holds a pixel, and none outside of (H, W, C)."""
    if len(rect) != 4:
        return False
    top, left, bottom, right = rect
    return 0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]
