"""From a trained diffusion task to images.

    x_T ~ N(0, 1) per image  ->  sampler over times, guided denoiser  ->  images in [-1, 1]

Image i of a seed is the same whatever the batch it is made in: every draw comes from fold_in(key,
i). The strengths of guidance are traced values, so a sweep over them compiles once, and so do two
checkpoints of one kind.
"""
from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import to_uint8
from diffusion_jax.data.rows import filled
from diffusion_jax.diffusion.guidance import Gradient
from diffusion_jax.diffusion.process import carried
from diffusion_jax.diffusion.samplers import sample, start
from diffusion_jax.models.guidance_weight import reads_weight
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.guidance_input import with_weight
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.skipping import check_blocks, skip_guidance
from diffusion_jax.pipelines.spelling import skip_of
from diffusion_jax.runs.folder import Model
from diffusion_jax.train import shard
from diffusion_jax.types import (
    Array,
    Cond,
    Denoiser,
    Guidance,
    Key,
    Noise,
    Prediction,
    Process,
    Raw,
)

FAR = 1.5
"""Guidance and decoders go beyond 1 by a tenth or two."""
FEW = 0.05
"""Of the values of a picture: of pure noise 13 % lie beyond `FAR`."""


class Guides(NamedTuple):
    """What guides a model beside its own conditions.

    Attributes:
      guide: a noisy classifier, towards raw['label'] (2105.05233), or a CLIP, towards
        raw['clip_text'] (2112.10741).
      weak: a smaller, less trained or unconditional model of the same images, to guide away from
        (2406.02507).
    """

    guide: Model | None = None
    weak: Model | None = None


class Embedded(NamedTuple):
    """What is embedded once for an image, and read at every step.

    Attributes:
      raw: the conditions as they were prepared; a classifier reads its target there.
      cond: what the network sees.
      null: what it sees of the null condition; None without guidance by it.
      weak: what the weaker model sees; None without one.
    """

    raw: Raw
    cond: Cond
    null: Cond | None
    weak: Cond | None


def per_image(index: Array) -> Noise:
    """Noise whose row for image number index[b] depends on that number only. index: [B] int."""

    def of_image(i: Array, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jax.random.normal(jax.random.fold_in(key, i), shape, dtype)

    def noise(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        # Without the size of the batch, which a single draw of [B, ...] would depend on.
        return jax.vmap(lambda i: of_image(i, key, shape[1:], dtype))(index)  # [B, ...]

    return noise


@functools.partial(jax.jit, static_argnames=("recipe",))
def draw(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    guide: Model | None = None,
    weak: Model | None = None,
) -> Array:
    """One batch of images.

    Args:
      model: what was trained, without its first stage.
      recipe: how to sample, without its scales: static.
      strengths: how strongly to guide.
      raw: conditions, [B, ...] each.
      index: the images' numbers, [B].
      key: the seed's key.
      guide, weak: see `Guides`.

    Returns:
      [B, H, W, C], about [-1, 1] but not clipped.
    """
    noise = per_image(index)
    conds, x, k_run = begun(model, recipe, strengths, raw, index, key, weak)
    denoise = guided(model, recipe, strengths, conds, noise, Guides(guide, weak))
    sampler = recipe.make_sampler(model.task, noise)
    return sample(denoise, sampler, x, recipe.grid(model.task.process), conds.cond, k_run)


def begun(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    index: Array,
    key: Key,
    weak: Model | None = None,
) -> tuple[Embedded, Array, Key]:
    """A batch before its first step; arguments as in `draw`.

    Returns:
      (what the networks see, x [B, H, W, C] at the first time, the key of the steps).
    """
    noise = per_image(index)
    # In this order for ever: another would change the picture of every seed.
    k_start, k_run, k_cond = jax.random.split(key, 3)
    conds = embedded(model, recipe, strengths, raw, k_cond, noise, weak)
    process = model.task.process
    shape = (len(index), *model.task.shape)
    x = start(process, recipe.grid(process), k_start, shape, noise)  # [B, H, W, C]
    conds, x = shard.shared((conds, recipe.temperature * x), len(index), partition.mesh())
    return conds, x, k_run


def embedded(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    raw: Raw,
    key: Key,
    noise: Noise,
    weak: Model | None = None,
) -> Embedded:
    """Conditions [B, ...] as the networks see them; the key and the noise are those of
    conditioning augmentation."""
    task = model.task
    raw = with_weight(task, raw, strengths.guidance)
    raw = task.cond.prepare(raw, key, noise, recipe.augment)
    guides = strengths.guidance is not None and not reads_weight(task.cond)
    # Guidance leads away from one of both: the null condition, or the weaker model's prediction
    # under the same condition.
    null = task.embed(model.params, task.away(raw)) if guides and weak is None else None
    of_weak = weak.task.embed(weak.params, raw) if guides and weak is not None else None
    return Embedded(raw, task.embed(model.params, raw), null, of_weak)


def guided(
    model: Model,
    recipe: Recipe,
    strengths: Strengths,
    conds: Embedded,
    noise: Noise,
    guides: Guides,
) -> Denoiser:
    """The model's denoiser under all guidance of a recipe."""
    process = model.task.process
    gradient = None
    if guides.guide is not None:
        # Towards a raw condition, a label or a text's features: of what this network makes of
        # them it knows nothing.
        gradient = classifier_gradient(guides.guide, strengths.classifier, conds.raw, process)
    weak = None
    if guides.weak is not None and conds.weak is not None:
        weak = weak_denoiser(guides.weak, conds.weak, process)
    away = conds.null is not None or weak is not None
    skip = skip_guidance(recipe, strengths, model, away)
    guidance = recipe.make_guidance(model.task, strengths, conds.null, noise, gradient, weak, skip)
    return guidance(model.task.denoiser(model.params))


def classifier_gradient(guide: Model, scale: Array | float, raw: Raw, process: Process) -> Guidance:
    """Guidance by the gradient of a classifier or of a CLIP for x_t of `process`, towards its
    target in `raw`."""

    def log_prob(x: Array, t: Array, cond: Cond) -> Array:
        return guide.task.log_prob(guide.params, x, t, raw[guide.task.target], process)

    return Gradient(log_prob, scale)


def weak_denoiser(weak: Model, cond: Cond, process: Process) -> Denoiser:
    """The denoiser of a weaker model for x_t of `process`, under its own embedded condition."""
    denoise = weak.task.denoiser(weak.params)

    def of_other_process(x: Array, t: Array, _: Cond, key: Key) -> Prediction:
        # At the same ratio of signal to noise of its own process, which may be another one. Of what
        # it predicts x0 alone means the same here; a variance is of its own process.
        return Prediction(denoise(*carried(process, weak.task.process, x, t), cond, key).x0)

    return of_other_process


def check(model: Model, recipe: Recipe, raw: Raw, guides: Guides = Guides()) -> None:
    """Raises ConfigError where a recipe, a classifier or a weaker model does not go with a model
    and its conditions."""
    task = model.task
    recipe.check(task, guides.weak is not None)
    skip = skip_of(recipe.skip)
    if skip is not None:
        check_blocks(task, skip.layers)
    if guides.weak:
        other = guides.weak.task
        # It may read less, an unconditional one nothing, but the same images.
        if other.shape != task.shape or not set(other.cond.keys) <= set(raw):
            of_weak = f"{other.shape} under {list(other.cond.keys)}"
            raise ConfigError(
                f"the weak model makes images of {of_weak}, this one {task.shape} under "
                f"{list(raw)}: choose another"
            )
        if not recipe.guides:
            raise ConfigError(
                "a weak model (--weak) is what guidance leads away from, and guidance is 1, none: "
                "give guidance too"
            )
    if guides.guide and guides.guide.task.shape != task.shape:
        raise ConfigError(
            f"the classifier sees images of {guides.guide.task.shape}, this model makes "
            f"{task.shape}: choose another"
        )


class Batch(NamedTuple):
    """A batch of images to be made, on the devices that share it.

    Attributes:
      raw: conditions, [B, ...] each.
      index: the images' numbers, [B].
      size: how many of them are wanted; the others fill up the batch.
    """

    raw: Raw
    index: Array
    size: int


class Work(NamedTuple):
    """What is the same for all batches, where the devices find it."""

    model: Model
    recipe: Recipe
    strengths: Strengths
    key: Key
    guides: Guides
    mesh: jax.sharding.Mesh


def prepared(model: Model, recipe: Recipe, seed: int, batch: int, guides: Guides) -> Work:
    """Puts the weights on every device that shares a batch: on all where it divides among them,
    else on one."""
    devices = jax.local_devices()
    # An array is split into equal parts only.
    mesh = shard.make_mesh(devices=devices if batch % len(devices) == 0 else devices[:1])
    everywhere = shard.replicated(mesh)
    static, strengths = recipe.split()
    return Work(
        _placed(model, everywhere),
        static,
        strengths,
        jax.random.key(seed),
        Guides(*(None if part is None else _placed(part, everywhere) for part in guides)),
        mesh,
    )


def _placed(model: Model, sharding: jax.sharding.Sharding) -> Model:
    """A model with what samplers use of it, its own weights, on the devices of a sharding."""
    return jax.device_put(replace(model, first=None, teacher=None), sharding)


def batch_at(work: Work, raw: Raw, first: int, size: int, num: int) -> Batch:
    """The batch of images from number `first` on, of `num` in all."""
    index = filled(first, size, num)  # [B], the last one again where a batch is short
    rows = {name: value[index] for name, value in raw.items()}  # [B, ...]
    rows, index = jax.device_put((rows, index), shard.batch_sharding(work.mesh))
    return Batch(rows, index, min(size, num - first))


def generate(
    model: Model,
    recipe: Recipe,
    raw: Raw,
    num: int,
    seed: int,
    batch: int = 100,
    guides: Guides = Guides(),
    starts: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] in about [-1, 1], `num` in all, in order; the last may be
    smaller.

    Args:
      model: what was trained; its first stage is not used, so that a model of latents makes
        latents.
      recipe: how to sample.
      raw: conditions [num, ...] each, from `conditions.conditions`.
      num: how many.
      seed: image i of a seed does not depend on `num` or `batch`.
      batch: images at a time; split over the devices where it divides.
      guides: what guides it.
      starts: the number of the first image of each batch to make; all of them by default.

    Raises:
      ConfigError: what `check` refuses, at once.
    """
    parts = batches_of(model, recipe, raw, num, seed, batch, guides, starts)
    return (_drawn(work, part) for work, part in parts)


def batches_of(
    model: Model,
    recipe: Recipe,
    raw: Raw,
    num: int,
    seed: int,
    batch: int,
    guides: Guides,
    starts: Sequence[int] | None,
) -> Iterator[tuple[Work, Batch]]:
    """What `generate` makes, batch by batch, before it is made; arguments and errors are its."""
    check(model, recipe, raw, guides)
    size = min(batch, num)
    work = prepared(model, recipe, seed, size, guides)
    firsts = range(0, num, size) if starts is None else starts
    # No `yield` in this function: `check` refuses at the call, not at the first batch.
    return ((work, batch_at(work, raw, first, size, num)) for first in firsts)


def _drawn(work: Work, batch: Batch) -> np.ndarray:
    with partition.activations(work.mesh, ()):  # kernels ask it how images are split
        images = draw(
            work.model, work.recipe, work.strengths, batch.raw, batch.index, work.key, *work.guides
        )
    return np.asarray(images)[: batch.size]  # [b, H, W, C]: without those that filled it up


def remarked(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of pictures [b, H, W, C] in about [-1, 1] as they come; says once, on stderr, that
    pictures leave that range by far: rounded they may look like anything."""
    is_said = False
    for batch in batches:
        beyond = np.mean(np.abs(batch) > FAR, axis=tuple(range(1, batch.ndim)))  # [b]
        count = int(np.sum(beyond > FEW))
        if count and not is_said:
            print(
                f"warning: {count} of {len(batch)} pictures leave [-1, 1] by far, and are not what "
                "the model learned: give more --steps, another --sampler or --times, or less "
                "--guidance",
                file=sys.stderr,
            )
            is_said = True
        yield batch


def to_pixels(images: np.ndarray, rounding: str = "nearest") -> np.ndarray:
    """Images in about [-1, 1] as uint8.

    Args:
      images: any shape.
      rounding: nearest, or down as ADM's sampler does it.

    Raises:
      ConfigError: one that is not finite, which would look like a black one.
    """
    if not np.isfinite(images).all():
        raise ConfigError(
            "the samples are not finite: change the sampler's options, or the weights (--which, "
            "--step)"
        )
    return to_uint8(images, down=rounding == "down")
