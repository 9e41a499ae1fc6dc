"""From a trained diffusion task to images.

    x_T ~ N(0, 1) per image  ->  sampler over times, guided denoiser  ->  images in [-1, 1]

Image i of a seed is the same whatever the batch it is made in: every draw comes from fold_in(key, i). The guidance scales are
traced values, so a sweep over scales compiles once.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.guidance import Gradient
from diffusion_jax.diffusion.process import carried
from diffusion_jax.diffusion.samplers import sample, start
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train import shard
from diffusion_jax.types import Array, Cond, Denoiser, Key, Noise, Params, Prediction, Process, Raw

FLAGS = {"tokens": "prompt"}
"""Raw conditions that the command line takes under another name."""


class Guide(NamedTuple):
    """A trained classifier that guides towards raw['label'] (2105.05233), or a CLIP towards raw['clip_text'] (2112.10741)."""

    task: NoisyClassifier | Contrastive
    params: Params


class Weak(NamedTuple):
    """A smaller, less trained or unconditional model of the same images, away from which another is guided (2406.02507)."""

    task: Diffusion
    params: Params


def per_image(index: Array) -> Noise:
    """Noise whose row for image number index[b] depends on that number only. index: [B] int."""

    def noise(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape[1:], dtype))(index)

    return noise


@functools.partial(jax.jit, static_argnames=("task", "recipe", "guided", "classifier", "weak"))
def draw(
    task: Diffusion, recipe: Recipe, params: Params, raw: Raw, index: Array, key: Key, scales: tuple[Array, Array],
    guided: bool = True, classifier: NoisyClassifier | Contrastive | None = None, classifier_params: Params = None,
    weak: Diffusion | None = None, weak_params: Params = None,
) -> Array:
    """One batch of images.

    Args:
      task: what was trained; static, as is the recipe.
      recipe: how to sample; its guidance scales are not read here, so that all scales share one program.
      params: the task's parameters.
      raw: conditions, [B, ...] each.
      index: the images' numbers, [B].
      key: the seed's key.
      scales: those of classifier-free and of classifier guidance.
      guided: whether to guide without a classifier at all (twice the cost).
      classifier, classifier_params: what guides towards its target in `raw`, None for nothing.
      weak, weak_params: what to guide away from, None for the task's own null condition.

    Returns:
      [B, H, W, C], about [-1, 1] but not clipped.
    """
    noise = per_image(index)
    k_start, k_run, k_cond = jax.random.split(key, 3)
    times = recipe.grid(task.process)
    raw = task.cond.prepare(raw, k_cond, noise, recipe.augment)
    cond = task.embed(params, raw)
    null = task.embed(params, task.away(raw)) if guided and weak is None else None
    away = weak_denoiser(weak, weak_params, raw, task.process) if guided and weak is not None else None

    def log_prob(x: Array, t: Array, cond: Cond) -> Array:
        return classifier.log_prob(classifier_params, x, t, raw[classifier.target], task.process)

    pull = Gradient(log_prob, scales[1]) if classifier else None
    denoise = recipe.make_guidance(task, scales[0], null, noise, pull, away)(task.denoiser(params))
    x = recipe.temperature * start(task.process, times, k_start, (len(index), *task.shape), noise)
    return sample(denoise, recipe.make_sampler(task, noise), x, times, cond, k_run)


def weak_denoiser(task: Diffusion, params: Params, raw: Raw, process: Process) -> Denoiser:
    """The denoiser of a weak model for x_t of `process`, with its own embedding of `raw`; an unconditional one ignores it."""
    denoise, own = task.denoiser(params), task.embed(params, raw)

    def weak(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
        return Prediction(denoise(*carried(process, task.process, x, t), own, key).x0)

    return weak


def conditions(task: Diffusion, num: int, label: int | None = None, given: Raw | None = None, guide: Guide | None = None) -> Raw:
    """Raw conditions for `num` images.

    Args:
      task: the model.
      num: how many.
      label: that of all images; None takes the classes in turn.
      given: conditions that cannot be made up, low_res for example, each at least [num, ...]; labels among them are used, and
        so is 'negative', a text to guide away from.
      guide: a classifier, which needs labels too, or a CLIP, whose texts are among those given.

    Raises:
      ConfigError: a label that does not exist, or one asked of a model that takes none; a condition that is missing or too short.
    """
    texts = (guide.task.target,) if guide and isinstance(guide.task, Contrastive) else ()
    if texts and texts[0] not in (given or {}):
        raise ConfigError("a CLIP guides towards a text: give a --prompt")
    negative = ("negative",) if "tokens" in task.cond.keys else ()
    known = (*task.cond.keys, *task.cond.droppable, *texts, *negative)
    raw = {name: value[:num] for name, value in (given or {}).items() if name in known}
    classes = task.num_classes or (guide.task.num_classes if guide else 0)
    if guide and not texts and classes != guide.task.num_classes:
        raise ConfigError(f"the classifier knows {guide.task.num_classes} classes, the model {classes}: they must be the same")
    if not classes and label is not None:
        raise ConfigError("this model takes no label: leave --label out")
    if classes and (label is not None or "label" not in raw):
        raw["label"] = (np.arange(num) % classes if label is None else np.full(num, label)).astype(np.int32)
    for name in task.cond.keys:
        if name not in raw:
            raise ConfigError(f"this model is conditioned on {name!r}: give it (--{FLAGS.get(name, name)})")
        if len(raw[name]) < num:
            raise ConfigError(f"{num} images need as many of {name!r}, there are {len(raw[name])}: lower --num")
    for name, want in derived(task).items():
        if raw[name].shape[1:] != want:
            raise ConfigError(f"this model was trained on {name} of {want}, not {raw[name].shape[1:]}: give it such images")
    if label is not None and not 0 <= label < classes:
        raise ConfigError(f"label {label} is outside 0 ... {classes - 1}")
    task.cond.check(raw)
    return raw


def derived(task: Diffusion) -> dict[str, tuple[int, ...]]:
    """The shape [h, w, C] of every condition that training makes of an image."""
    image = jax.ShapeDtypeStruct((1, *task.shape), jnp.float32)
    raw = jax.eval_shape(lambda image: task.cond.prepare({"image": image}, jax.random.key(0)), image)
    return {name: raw[name].shape[1:] for name in task.cond.derived}


def generate(
    task: Diffusion, params: Params, recipe: Recipe, raw: Raw, num: int, seed: int, batch: int = 100, guide: Guide | None = None,
    weak: Weak | None = None, starts: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] in about [-1, 1], `num` in all, in order; the last may be smaller.

    Args:
      task, params: a trained model.
      recipe: how to sample.
      raw: conditions [num, ...] each, from `conditions`.
      num: how many.
      seed: image i of a seed does not depend on `num` or `batch`.
      batch: images at a time; split over the devices where it divides.
      guide: a classifier that guides towards raw['label'].
      weak: a model to guide away from, at the scale of classifier-free guidance and in its place.
      starts: the number of the first image of each batch to make; all of them by default.

    Raises:
      ConfigError: the recipe does not go with the task, see `Recipe.check`, or the classifier or the weak model with its images.
    """
    recipe.check(task, weak is not None)
    if weak and (weak.task.shape != task.shape or not set(weak.task.cond.keys) <= set(raw)):
        seen = f"{weak.task.shape} under {list(weak.task.cond.keys)}"
        raise ConfigError(f"the weak model makes images of {seen}, this one {task.shape} under {list(raw)}: choose another")
    if guide and guide.task.shape != task.shape:
        raise ConfigError(f"the classifier sees images of {guide.task.shape}, this model makes {task.shape}: choose another")
    batch = min(batch, num)
    key = jax.random.key(seed)
    static = replace(recipe, guidance=1.0, classifier_scale=1.0)
    scales = jnp.float32(recipe.guidance), jnp.float32(recipe.classifier_scale)
    devices = jax.local_devices()
    mesh = shard.make_mesh(devices=devices if batch % len(devices) == 0 else devices[:1])
    rows, everywhere = shard.batch_sharding(mesh), shard.replicated(mesh)
    params = jax.device_put(params, everywhere)
    helpers = [(helper.task, jax.device_put(helper.params, everywhere)) if helper else (None, None) for helper in (guide, weak)]

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, num, batch) if starts is None else starts:
            index = np.minimum(np.arange(first, first + batch), num - 1)          # the last batch is filled up: one program
            part, where = jax.device_put(({name: value[index] for name, value in raw.items()}, index), rows)
            with partition.activations(mesh, ()):                                     # kernels ask it how images are split
                images = draw(task, static, params, part, where, key, scales, recipe.guidance != 1, *helpers[0], *helpers[1])
            yield np.asarray(images)[: num - first]

    return batches()
