"""Pictures as they arise: a run of a sampler in parts of a few steps, each looked at.

The parts are one compiled program, so that a look costs no more than fetching a picture; what was
embedded and the sampler's memory stay on the devices between them.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from diffusion_jax.diffusion.samplers import Progress, advance, begin, pairs_of
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.recipe import MOST_STEPS, Recipe, Strengths
from diffusion_jax.pipelines.request import check_whole
from diffusion_jax.pipelines.sampling import (
    Embedded,
    Guides,
    Work,
    batch_at,
    begun,
    check,
    guided,
    per_image,
    prepared,
)
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Array, Key, Raw


@functools.partial(jax.jit, static_argnames=("recipe",))
def _begin(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    weak: Model | None,
) -> tuple[Progress, Embedded, Array]:
    """(the run before its first step, what the networks see, a key for each step), the same
    draws as in `draw`."""
    conds, x, k_run = begun(model, recipe, strengths, raw, index, key, weak)
    sampler = recipe.make_sampler(model.task, per_image(index))
    steps = len(recipe.grid(model.task.process)) - 1
    # All keys at once, as `sample` splits them, so that where one looks changes no picture.
    return begin(sampler, x, steps), conds, jax.random.split(k_run, steps)


# Donated: the images and the sampler's memory are not held twice.
@functools.partial(jax.jit, static_argnames=("recipe",), donate_argnames=("progress",))
def _advance(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    progress: Progress,
    steps: tuple[Array, Array],
    index: Array,
    conds: Embedded,
    guides: Guides,
) -> Progress:
    """Some steps: pairs of times [n, 2] and their keys [n]."""
    noise = per_image(index)
    denoise = guided(model, recipe, strengths, conds, noise, guides)
    sampler = recipe.make_sampler(model.task, noise)
    progress, _ = advance(denoise, sampler, progress, *steps, conds.cond)
    return progress


def watched(
    model: Model,
    recipe: Recipe,
    raw: Raw,
    num: int,
    seed: int,
    every: int = 5,
    guides: Guides = Guides(),
) -> Iterator[tuple[int, np.ndarray]]:
    """`generate` of one batch as it arises: (steps done, x0 [num, H, W, C] as it stands) after
    every few steps.

    Args:
      model, recipe, raw, num, seed, guides: as for `generate`.
      every: steps between two looks; what does not divide comes first, so that the last look is at
        the last step.

    Yields:
      x0 as the denoiser took it in the last step that was made, of a second-order sampler at the
      beginning of it, where x is one of the run's own; after the last step the images themselves.

    Raises:
      ConfigError: what `check` refuses, or less than a step between two looks.
    """
    check(model, recipe, raw, guides)
    check_whole("every", every, 1, MOST_STEPS)
    return _watched(prepared(model, recipe, seed, num, guides), raw, num, every)


def _watched(work: Work, raw: Raw, num: int, every: int) -> Iterator[tuple[int, np.ndarray]]:
    batch = batch_at(work, raw, 0, num, num)
    with partition.activations(work.mesh, ()):
        progress, conds, keys = _begin(
            work.model,
            work.recipe,
            work.strengths,
            batch.raw,
            batch.index,
            work.key,
            work.guides.weak,
        )
    pairs = pairs_of(work.recipe.grid(work.model.task.process))
    total = len(pairs)
    done = 0
    # What does not divide comes first, so that the last look is at the last step.
    until = total % every or every
    while done < total:
        steps = pairs[done:until], keys[done:until]
        with partition.activations(work.mesh, ()):
            progress = _advance(
                work.model,
                work.recipe,
                work.strengths,
                progress,
                steps,
                batch.index,
                conds,
                work.guides,
            )
        done = until
        until += every
        # Before the last step x0, the denoiser's estimate, which is clear where x is still noise.
        image = progress.x if done == total else progress.x0
        # A copy, since the next part takes over the buffers of this one.
        yield done, np.array(image)  # [num, H, W, C]
