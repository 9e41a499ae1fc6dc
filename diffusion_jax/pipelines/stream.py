"""Pictures as they arise: a run of a sampler in parts of some steps, looked at, walked or counted.

The parts are one compiled program, whatever their length, so that a look costs no more than
fetching a picture; what was embedded and the sampler's memory stay on the devices between them.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.samplers import Conds, Progress, advance, begin, pairs_of
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.progress import Meter, Pace
from diffusion_jax.pipelines.recipe import MOST_STEPS, Recipe, Strengths
from diffusion_jax.pipelines.request import check_whole
from diffusion_jax.pipelines.sampling import (
    Batch,
    Embedded,
    Guides,
    Work,
    batches_of,
    begun,
    generate,
    guided,
    per_image,
)
from diffusion_jax.runs.folder import Model
from diffusion_jax.train import shard
from diffusion_jax.types import Array, Denoiser, Key, Process, Raw, Sampler


class Begun(NamedTuple):
    """A batch on its way.

    Attributes:
      progress: where its run is.
      conds: what the networks see.
      keys: a key for each step, [N].
    """

    progress: Progress
    conds: Embedded
    keys: Key


@functools.partial(jax.jit, static_argnames=("recipe",))
def _begin(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    weak: Model | None,
) -> Begun:
    """A batch before its first step, the same draws as in `draw`."""
    conds, x, k_run = begun(model, recipe, strengths, raw, index, key, weak)
    sampler = recipe.make_sampler(model.task, per_image(index))
    steps = len(recipe.grid(model.task.process)) - 1
    # All keys at once, as `sample` splits them, so that where one looks changes no picture.
    keys = jax.random.split(k_run, steps)
    progress = shard.shared(begin(sampler, x, steps), len(index), partition.mesh())
    return Begun(progress, conds, keys)


def advance_part(
    denoise: Denoiser,
    sampler: Sampler,
    progress: Progress,
    pairs: Array,
    keys: Key,
    cond: Conds,
    first: Array | int,
    last: Array | int,
    looks: bool = False,
) -> Progress:
    """`samplers.advance` by some of the steps alone.

    Args:
      denoise, sampler, progress, cond: as there.
      pairs: all steps (t, s) of the run, [N, 2].
      keys: a key for each, [N].
      first, last: steps `first` ... `last` - 1 are made; both are traced, so that parts of all
        lengths are one program.
      looks: whether somebody looks at x0. Else it stays as it was: a program that puts it out
        rounds in another order than one of all steps, which does not.
    """

    def step(i: Array, progress: Progress) -> Progress:
        pair, key = (jax.lax.dynamic_slice_in_dim(each, i, 1) for each in (pairs, keys))
        after, _ = advance(denoise, sampler, progress, pair, key, cond)
        return after if looks else after._replace(x0=progress.x0)

    return jax.lax.fori_loop(first, last, step, progress)


# Donated: the images and the sampler's memory are not held twice.
@functools.partial(jax.jit, static_argnames=("recipe", "looks"), donate_argnames=("progress",))
def _advance(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    progress: Progress,
    rest: tuple[Embedded, Key],
    index: Array,
    guides: Guides,
    first: int,
    last: int,
    looks: bool,
) -> Progress:
    """Steps `first` ... `last` - 1; `rest` is what a `Begun` has beside its progress."""
    conds, keys = rest
    noise = per_image(index)
    denoise = guided(model, recipe, strengths, conds, noise, guides)
    sampler = recipe.make_sampler(model.task, noise)
    pairs = pairs_of(recipe.grid(model.task.process))
    progress = advance_part(
        denoise, sampler, progress, pairs, keys, conds.cond, first, last, looks
    )
    return shard.shared(progress, len(index), partition.mesh())


def _started(work: Work, batch: Batch) -> Begun:
    with partition.activations(work.mesh, ()):
        return _begin(
            work.model,
            work.recipe,
            work.strengths,
            batch.raw,
            batch.index,
            work.key,
            work.guides.weak,
        )


def _moved(work: Work, batch: Batch, begun: Begun, first: int, last: int, looks: bool) -> Begun:
    """The same after steps `first` ... `last` - 1, with x0 where somebody looks at it."""
    progress, *rest = begun
    with partition.activations(work.mesh, ()):
        progress = _advance(
            work.model,
            work.recipe,
            work.strengths,
            progress,
            tuple(rest),
            batch.index,
            work.guides,
            first,
            last,
            looks,
        )
    return begun._replace(progress=progress)


# Looks --------------------------------------------------------------------------------------------


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
      ConfigError: what `generate` refuses, or less than a step between two looks.
    """
    parts = batches_of(model, recipe, raw, num, seed, num, guides, None)
    check_whole("every", every, 1, MOST_STEPS)
    return _watched(*next(parts), every)


def _watched(work: Work, batch: Batch, every: int) -> Iterator[tuple[int, np.ndarray]]:
    begun = _started(work, batch)
    total = len(begun.keys)
    done = 0
    # What does not divide comes first, so that the last look is at the last step.
    until = total % every or every
    while done < total:
        begun = _moved(work, batch, begun, done, until, looks=True)
        done = until
        until += every
        # Before the last step x0, the denoiser's estimate, which is clear where x is still noise.
        image = begun.progress.x if done == total else begun.progress.x0
        # A copy, since the next part takes over the buffers of this one.
        yield done, np.array(image)  # [num, H, W, C]


# Paths --------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a batch is on its way.

    Attributes:
      step: steps done.
      t: the time, at which the next step begins.
      alpha, sigma: how much of the images and of noise there is.
      x: the images under noise, [num, H, W, C], as the sampler has them.
      x0: the images as the next step's first call of the denoiser takes them; at the end x itself.
    """

    step: int
    t: float
    alpha: float
    sigma: float
    x: np.ndarray
    x0: np.ndarray


def walked(
    model: Model,
    recipe: Recipe,
    raw: Raw,
    num: int,
    seed: int,
    every: int = 1,
    guides: Guides = Guides(),
) -> Iterator[Place]:
    """`generate` of one batch, whose places are looked at: before the first step, after every few
    steps and at the end, where x is what `generate` makes, bit for bit.

    Args:
      model, recipe, raw, num, seed, guides: as for `generate`.
      every: steps between two places; the last may have less.

    Raises:
      ConfigError: what `generate` refuses, or less than a step between two places.
    """
    parts = batches_of(model, recipe, raw, num, seed, num, guides, None)
    check_whole("every", every, 1, MOST_STEPS)
    return _walked(*next(parts), every)


def _walked(work: Work, batch: Batch, every: int) -> Iterator[Place]:
    process = work.model.task.process
    times = work.recipe.grid(process)
    begun = _started(work, batch)
    total = len(begun.keys)
    for done in range(0, total, every):
        # A copy is sent ahead by a step for its x0: x is to come out of the program without looks.
        ahead = begun._replace(progress=jax.tree.map(jnp.copy, begun.progress))
        ahead = _moved(work, batch, ahead, done, done + 1, looks=True)
        x = np.array(begun.progress.x)  # [num, H, W, C]
        yield _place(process, done, times[done], x, np.array(ahead.progress.x0))
        begun = _moved(work, batch, begun, done, min(done + every, total), looks=False)
    x = np.array(begun.progress.x)
    yield _place(process, total, times[-1], x, x)


def _place(process: Process, step: int, t: np.ndarray, x: np.ndarray, x0: np.ndarray) -> Place:
    here = jnp.asarray(t)
    return Place(step, float(t), float(process.alpha(here)), float(process.sigma(here)), x, x0)


# Counts -------------------------------------------------------------------------------------------


def generated(
    model: Model,
    recipe: Recipe,
    raw: Raw,
    num: int,
    seed: int,
    batch: int = 100,
    guides: Guides = Guides(),
    starts: Sequence[int] | None = None,
    meter: Meter | None = None,
) -> Iterator[np.ndarray]:
    """`generate`, whose steps a meter counts as they are made: the same images.

    Args:
      model, recipe, raw, num, seed, batch, guides, starts: as for `generate`.
      meter: None where nobody counts; then a batch is one program.

    Raises:
      ConfigError: what `generate` refuses, at once.
    """
    if meter is None:
        return generate(model, recipe, raw, num, seed, batch, guides, starts)
    return _counted(batches_of(model, recipe, raw, num, seed, batch, guides, starts), meter)


def _counted(parts: Iterator[tuple[Work, Batch]], meter: Meter) -> Iterator[np.ndarray]:
    pace = Pace(meter)
    for work, batch in parts:
        step = functools.partial(_moved, work, batch, looks=False)
        begun = _started(work, batch)
        begun = pace.made(step, begun, len(begun.keys))
        yield np.asarray(begun.progress.x)[: batch.size]  # [b, H, W, C]
