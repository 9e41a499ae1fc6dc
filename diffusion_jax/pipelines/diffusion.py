"""From a trained diffusion task to images.

    x_T ~ N(0, 1) per image  ->  sampler over times, guided denoiser  ->  images in [-1, 1]

Image i of a seed is the same whatever the batch it is made in: every draw comes from fold_in(key, i). The guidance scale is a
traced value, so a sweep over scales compiles once.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.samplers import sample, start
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Key, Noise, Params, Raw


def per_image(index: Array) -> Noise:
    """Noise whose row for image number index[b] depends on that number only. index: [B] int."""

    def noise(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape[1:], dtype))(index)

    return noise


@functools.partial(jax.jit, static_argnames=("task", "recipe", "guided"))
def draw(
    task: Diffusion, recipe: Recipe, params: Params, raw: Raw, index: Array, key: Key, scale: Array, guided: bool = True
) -> Array:
    """One batch of images.

    Args:
      task: what was trained; static, as is the recipe.
      recipe: how to sample; its guidance scale is not read here, so that all scales share one program.
      params: the task's parameters.
      raw: conditions, [B, ...] each.
      index: the images' numbers, [B].
      key: the seed's key.
      scale: guidance scale.
      guided: whether to guide at all (twice the cost).

    Returns:
      [B, H, W, C], about [-1, 1] but not clipped.
    """
    noise = per_image(index)
    k_start, k_run = jax.random.split(key)
    times = recipe.grid(task.process)
    cond = task.embed(params, raw)
    null = task.embed(params, task.cond.null(raw)) if guided else None
    denoise = recipe.make_guidance(task, scale, null, noise)(task.denoiser(params))
    x = start(task.process, times, k_start, (len(index), *task.shape), noise)
    return sample(denoise, recipe.make_sampler(task, noise), x, times, cond, k_run)


def conditions(task: Diffusion, num: int, label: int | None = None) -> Raw:
    """Raw conditions for `num` images: all of one label, or the classes in turn; {} for an unconditional task.

    Raises:
      ConfigError: a label that does not exist, or one asked of a task that takes none.
    """
    if "label" not in task.cond.keys:
        if label is not None:
            raise ConfigError("this model takes no label: leave --label out")
        return {}
    labels = np.arange(num) % task.cond.num_classes if label is None else np.full(num, label)
    raw = {"label": labels.astype(np.int32)}
    task.cond.check(raw)
    return raw


def generate(
    task: Diffusion, params: Params, recipe: Recipe, raw: Raw, num: int, seed: int, batch: int = 100
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] in about [-1, 1], `num` in all, in order; the last may be smaller.

    Args:
      task, params: a trained model.
      recipe: how to sample.
      raw: conditions [num, ...] each, from `conditions`.
      num: how many.
      seed: image i of a seed does not depend on `num` or `batch`.
      batch: images at a time; split over the devices where it divides.

    Raises:
      ConfigError: the recipe does not go with the task, see `Recipe.check`.
    """
    recipe.check(task)
    batch = min(batch, num)
    key = jax.random.key(seed)
    static = replace(recipe, guidance=1.0)
    guided = recipe.guidance != 1
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices if batch % len(devices) == 0 else devices[:1]), ("data",))
    rows, everywhere = (jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ()))
    params = jax.device_put(params, everywhere)

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, num, batch):
            index = np.minimum(np.arange(first, first + batch), num - 1)          # the last batch is filled up: one program
            part, where = jax.device_put(({name: value[index] for name, value in raw.items()}, index), rows)
            images = draw(task, static, params, part, where, key, jnp.float32(recipe.guidance), guided)
            yield np.asarray(images)[: num - first]

    return batches()
