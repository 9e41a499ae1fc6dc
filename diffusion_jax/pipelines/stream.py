"""Pictures as they arise: a run of a sampler in parts of a few steps, each looked at.

The parts are one compiled program, so that a look costs no more than fetching a picture; what was
embedded and the sampler's memory stay on the devices between them.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.samplers import Progress, advance, begin, pairs_of, start
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.sampling import (
    Embedded,
    Guides,
    Work,
    batch_at,
    check,
    embedded,
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
    noise = per_image(index)
    k_start, k_run, k_cond = jax.random.split(key, 3)
    seen = embedded(model, recipe, strengths, raw, k_cond, noise, weak)
    times = recipe.grid(model.task.process)
    x = recipe.temperature * start(
        model.task.process, times, k_start, (len(index), *model.task.shape), noise
    )
    steps = len(times) - 1
    return (
        begin(recipe.make_sampler(model.task, noise), x, steps),
        seen,
        jax.random.split(k_run, steps),
    )


@functools.partial(jax.jit, static_argnames=("recipe",), donate_argnames=("progress",))
def _advance(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    progress: Progress,
    steps: tuple[Array, Array],
    index: Array,
    seen: Embedded,
    guides: Guides,
) -> Progress:
    """Some steps: pairs of times [n, 2] and their keys [n]."""
    noise = per_image(index)
    denoise = guided(model, recipe, strengths, seen, noise, guides)
    return advance(denoise, recipe.make_sampler(model.task, noise), progress, *steps, seen.cond)[0]


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
      x0 as the denoiser saw it in the last step that was made; after the last step the images
      themselves.

    Raises:
      ConfigError: what `check` refuses, or less than a step between two looks.
    """
    check(model, recipe, raw, guides)
    if every < 1:
        raise ConfigError(f"every is a number of steps, at least 1: got {every}")
    return _watched(prepared(model, recipe, seed, num, guides), raw, num, every)


def _watched(work: Work, raw: Raw, num: int, every: int) -> Iterator[tuple[int, np.ndarray]]:
    batch = batch_at(work, raw, 0, num, num)
    with partition.activations(work.mesh, ()):
        progress, seen, keys = _begin(
            work.model,
            work.recipe,
            work.strengths,
            batch.raw,
            batch.index,
            work.key,
            work.guides.weak,
        )
    pairs = pairs_of(work.recipe.grid(work.model.task.process))
    done, total = 0, len(pairs)
    while done < total:
        until = done + (total % every or every if done == 0 else every)
        steps = pairs[done:until], keys[done:until]
        with partition.activations(work.mesh, ()):
            progress = _advance(
                work.model,
                work.recipe,
                work.strengths,
                progress,
                steps,
                batch.index,
                seen,
                work.guides,
            )
        done = until
        yield (
            done,
            np.array(progress.x if done == total else progress.x0),
        )  # a copy: the buffer is donated
