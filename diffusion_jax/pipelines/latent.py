"""From latents to images and back: what a diffusion model in a first stage's space is sampled and conditioned through.

    text to image       x_T ~ N(0, 1),                   sampler over all times,         decode                       (1)
    image to image      x_t of encode(image),            sampler over the last times,    decode                       (2)  SDEdit
    known region        as (1), and before every step x <- m x_t(encode(image)) + (1 - m) x                           (3)
    inpainting          as (1), the network seeing [m, encode(image without what m hides)]                            (4)

`strength` s of (2) keeps the last int(s N) of N steps.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import noised
from diffusion_jax.diffusion.samplers import sample, start
from diffusion_jax.nn.resample import shrink
from diffusion_jax.pipelines.diffusion import per_image
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Key, Params, Raw, Sampler

TILE = 96
"""The side of a latent from which on it is decoded in tiles: 768 pixels of Stable Diffusion."""


@functools.partial(jax.jit, static_argnames=("first", "tile"))
def _decode(first: Autoencoder, params: Params, x: Array, tile: int) -> Array:
    return first.decode(params, x, tile)


def decoded(task: Diffusion, frozen: Params, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of a task's samples as images: themselves where it has no first stage.

    Args:
      task: the model.
      frozen: {'first_stage': its parameters}, or None.
      batches: samples [b, h, w, c].

    Raises:
      ConfigError: a first stage whose parameters are not there.
    """
    first = task.first_stage
    if first is None:
        return batches
    if not frozen:
        raise ConfigError("this model makes latents, and its folder has no first stage to decode them: give the run's folder")
    params = jax.device_put(frozen["first_stage"])
    return (np.asarray(_decode(first, params, jnp.asarray(x), TILE if max(x.shape[1:3]) > TILE else 0)) for x in batches)


def masked(task: Diffusion, frozen: Params, images: Array, mask: Array, key: Key) -> Raw:
    """What an inpainting network (4) sees: {'inpaint': [B, h, w, 1 + c]}.

    Args:
      task, frozen: the model and its first stage.
      images: [B, H, W, C] in [-1, 1].
      mask: [B, H, W, 1], 1 where the image is to be made.
      key: draws the latents.
    """
    hole = (mask > 0.5).astype(jnp.float32)
    latents = _encoded(task, frozen, images * (1 - hole), key)
    factor = mask.shape[1] // latents.shape[1]
    return {"inpaint": jnp.concatenate([hole[:, ::factor, ::factor], latents], axis=-1)}


def _encoded(task: Diffusion, frozen: Params, images: Array, key: Key) -> Array:
    return task.first_stage.encode(frozen["first_stage"], images, jax.random.normal(key, (len(images), *task.shape)))


def edit(
    task: Diffusion, params: Params, frozen: Params, recipe: Recipe, raw: Raw, images: Array, seed: int = 0,
    strength: float = 0.8, mask: Array | None = None,
) -> Array:
    """Images from images: (2), with a mask (3).

    Args:
      task, params, frozen: the model and its first stage.
      recipe: how to sample.
      raw: conditions, [B, ...] each.
      images: [B, H, W, C] in [-1, 1].
      seed: image b of a seed does not depend on the others.
      strength: s in (0, 1], 1 keeps nothing of the image but what a mask keeps.
      mask: [B, H, W, 1], 1 where the image is to be made anew; None everywhere.

    Returns:
      [B, H, W, C], about [-1, 1].

    Raises:
      ConfigError: a strength that leaves no step; what `Recipe.check` refuses.
    """
    recipe.check(task)
    times = recipe.grid(task.process)
    kept = int(strength * (len(times) - 1))
    if not 0 < strength <= 1 or kept < 1:
        raise ConfigError(f"a strength of {strength} leaves {kept} of {len(times) - 1} steps: give one in (0, 1], or more steps")
    whole, times = kept == len(times) - 1, times[len(times) - 1 - kept:]
    hole = None if mask is None else shrink((mask > 0.5).astype(jnp.float32), images.shape[1] // task.shape[0]) > 0
    key = jax.random.key(seed)
    static = replace(recipe, guidance=1.0)
    x = _edited(task, static, params, frozen, raw, images, hole, jnp.asarray(times), key, jnp.float32(recipe.guidance),
                recipe.guidance != 1, whole)
    return _decode(task.first_stage, frozen["first_stage"], x, TILE if max(x.shape[1:3]) > TILE else 0)


@functools.partial(jax.jit, static_argnames=("task", "recipe", "guided", "whole"))
def _edited(
    task: Diffusion, recipe: Recipe, params: Params, frozen: Params, raw: Raw, images: Array, hole: Array | None, times: Array,
    key: Key, scale: Array, guided: bool, whole: bool,
) -> Array:
    """The latents of `edit`."""
    k_start, k_run, k_encode, k_known = jax.random.split(key, 4)
    noise = per_image(jnp.arange(len(images)))
    x0 = task.first_stage.encode(frozen["first_stage"], images, noise(k_encode, (len(images), *task.shape)))
    eps = noise(k_start, x0.shape)
    x = start(task.process, times, k_start, x0.shape, noise) if whole else noised(task.process, x0, times[0], eps)
    null = task.embed(params, task.cond.null(raw)) if guided else None
    denoise = recipe.make_guidance(task, scale, null, noise)(task.denoiser(params))
    sampler = recipe.make_sampler(task, noise)
    if hole is not None:
        sampler = keeping(sampler, task, x0, hole, noise(k_known, x0.shape))
    x = sample(denoise, sampler, x, times, task.embed(params, raw), k_run)
    return x if hole is None else jnp.where(hole, x, x0)


def keeping(sampler: Sampler, task: Diffusion, x0: Array, hole: Array, eps: Array) -> Sampler:
    """A sampler before each of whose steps x is x0 with the noise eps outside of `hole`, (3): [B, h, w, 1] bool."""
    def step(denoise, x, state, t, s, key):
        return sampler.step(denoise, jnp.where(hole, x, noised(task.process, x0, t, eps)), state, t, s, key)

    return sampler._replace(step=step)
