"""Changing pictures with a trained diffusion model, and conditions half-way.

    strength    a picture noised to the time t with u(t) = strength, and sampled from there (SDEdit, 2108.01073)      (1)
    inversion   DDIM from the picture up to noise, which DDIM brings back (2010.02502; 2105.05233, app. F)            (2)
    switch      the first k steps under one condition, the rest under another                                         (3)
    mix         a condition between two: (1 - m) embed(a) + m embed(b)                                                (4)
    inpainting  what is known pasted into x0 at every step where the network sees it (2112.10741), else into x_t      (5)

Pictures are what the network sees: latents, where there is a first stage (pipelines/latent.py goes between).

All are one program for one batch: what is swept, the numbers of `How`, is traced, so a sweep compiles once.
"""
from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.guidance import Known
from diffusion_jax.diffusion.process import noised
from diffusion_jax.diffusion.samplers import ddim_inversion, sample, start, with_known
from diffusion_jax.pipelines.diffusion import per_image
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Cond, Denoiser, Guidance, Key, Params, Prediction, Process, Raw, Sampler


class How(NamedTuple):
    """The numbers of an edit.

    Attributes:
      guidance: scale of classifier-free guidance.
      phi: its rescaled phi.
      switch: k of (3), the steps under the first condition; as many as there are by default.
      mix: m of (4).
      strength: of (1), in [0, 1]: 0 is the picture, 1 a new one.
    """

    guidance: float | Array = 1.0
    phi: float | Array = 0.0
    switch: int | Array = 10**6
    mix: float | Array = 0.0
    strength: float | Array = 1.0


def Switch(second: Cond, after: Array) -> Guidance:
    """(3): the condition `second` at times up to `after`."""

    def guide(denoise: Denoiser) -> Denoiser:
        def guided(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            chosen = jax.tree.map(lambda a, b: jnp.where(t > after, a, b), dict(cond), dict(second))
            return denoise(x, t, chosen, key)

        return guided

    return guide


def held(sampler: Sampler, process: Process, image: Array, eps: Array, strength: Array) -> Sampler:
    """(1): `sampler`, but until the clock has passed `strength`, x_s is the noised image [B, H, W, C] itself."""

    def step(denoise, x, state, t, s, key):
        x, state = sampler.step(denoise, x, state, t, s, key)
        return jnp.where(jnp.maximum(process.unit(s), 0) >= strength, noised(process, image, s, eps), x), state

    return Sampler(sampler.init, step)


def interpolated(a: Cond, b: Cond, share: Array) -> Cond:
    """(4) of what is a number; masks are those of either."""
    between = {name: (1 - share) * a[name] + share * b[name] for name in a if jnp.issubdtype(a[name].dtype, jnp.floating)}
    return {name: between[name] if name in between else a[name] | b[name] for name in a}


@functools.partial(jax.jit, static_argnames=("task", "recipe", "guided"))
def edit(
    task: Diffusion, recipe: Recipe, params: Params, raw: Raw, index: Array, key: Key, how: How, guided: bool = True,
    second: Raw | None = None, image: Array | None = None, mask: Array | None = None, x: Array | None = None,
) -> Array:
    """One batch of edited pictures, [B, H, W, C].

    Args:
      task: what was trained; static, as is the recipe, whose guidance and phi are not read.
      recipe: how to sample.
      params: the task's parameters.
      raw: conditions, [B, ...] each.
      index: the numbers of the images, [B]; their noise depends on nothing else.
      key: the seed's key.
      how: the numbers.
      guided: whether to guide without a classifier at all (twice the cost).
      second: the other condition of (3) and (4), for which `how.switch` or `how.mix` says when.
      image: the picture of (1) and (5), in [-1, 1].
      mask: [B, H, W, 1], 1 where the picture is known, for (5). A network of latents that inpaints sees it in raw['inpaint'].
      x: where to start, in place of noise: what `invert` found.
    """
    noise = per_image(index)
    k_start, k_run, k_cond = jax.random.split(key, 3)
    times, process = recipe.grid(task.process), task.process
    if mask is not None:
        raw = {**raw, "mask": mask, "known": image}
    raw = task.cond.prepare(raw, k_cond, noise, recipe.augment)
    cond, null = task.embed(params, raw), task.embed(params, task.away(raw)) if guided else None
    recipe = replace(recipe, phi=how.phi)
    denoise = recipe.make_guidance(task, how.guidance, null, noise)(task.denoiser(params))
    if second is not None:
        other = task.embed(params, task.cond.prepare({**raw, **second}, k_cond, noise, recipe.augment))
        cond = interpolated(cond, other, how.mix)
        after = jnp.asarray(times)[jnp.minimum(how.switch, len(times) - 1)]
        denoise = Switch(other, after)(denoise)
    sampler = recipe.make_sampler(task, noise)
    eps = start(process, times, k_start, (len(index), *task.shape), noise)
    x = eps if x is None else x
    if image is not None:
        sampler = held(sampler, process, image, noise(k_start, eps.shape), how.strength)
        first = noised(process, image, jnp.asarray(times)[0], noise(k_start, eps.shape))
        x = jnp.where(process.unit(jnp.asarray(times)[0]) > how.strength, first, x)
    if mask is not None:
        denoise = Known(image, mask)(denoise) if "mask" in task.cond.keys else denoise
        sees = {"mask", "inpaint"} & set(task.cond.keys)
        sampler = sampler if sees else with_known(sampler, process, image, mask, noise)
    made = sample(denoise, sampler, x, times, cond, k_run)
    return made if mask is None else mask * image + (1 - mask) * made


@functools.partial(jax.jit, static_argnames=("task", "recipe", "guided"))
def invert(
    task: Diffusion, recipe: Recipe, params: Params, raw: Raw, image: Array, how: How, guided: bool = False
) -> Array:
    """(2): the noise [B, H, W, C] from which `edit` with 'ddim' makes the picture again.

    The network is asked at the time stepped to (samplers.ddim_inversion), so that the picture itself is the start.
    """
    key = jax.random.key(0)
    raw = task.cond.prepare(raw, key, level=recipe.augment)
    cond, null = task.embed(params, raw), task.embed(params, task.away(raw)) if guided else None
    denoise = replace(recipe, phi=how.phi).make_guidance(task, how.guidance, null, jax.random.normal)(task.denoiser(params))
    return sample(denoise, ddim_inversion(task.process), image, recipe.grid(task.process)[::-1], cond, key)


def swept(
    task: Diffusion, params: Params, recipe: Recipe, raw: Raw, seed: int, how: How, over: str, values: list[float],
    second: Raw | None = None, image: Array | None = None, x: Array | None = None,
) -> np.ndarray:
    """`edit` for each value of a field of `How`: [values, B, H, W, C]; the same noise for all.

    Raises:
      ConfigError: the recipe does not go with the task.
    """
    guided = over in ("guidance", "phi") or float(how.guidance) != 1
    check(task, replace(recipe, guidance=2.0 if guided else 1.0))
    static, count = replace(recipe, guidance=1.0, phi=0.0), len(next(iter(raw.values()))) if raw else len(image)
    index, key, images = jnp.arange(count), jax.random.key(seed), []
    kind = jnp.int32 if over == "switch" else jnp.float32
    numbers = How(*(jnp.int32(value) if name == "switch" else jnp.float32(value) for name, value in how._asdict().items()))
    for value in values:
        now = numbers._replace(**{over: kind(value)})
        images.append(np.asarray(edit(task, static, params, raw, index, key, now, guided, second, image, None, x)))
    return np.stack(images)


def check(task: Diffusion, recipe: Recipe) -> None:
    """Raises ConfigError where a recipe does not go with a task."""
    recipe.check(task)
    if isinstance(recipe.phi, float) and recipe.phi and not task.cond.droppable:
        raise ConfigError("phi rescales guidance, and this model has no condition that could guide it")


def rectangles(shape: tuple[int, ...], rects: list[list[int]]) -> np.ndarray:
    """A mask [1, H, W, 1] for images of `shape` (H, W, C): 0 inside rectangles (top, left, bottom, right), 1 elsewhere.

    Raises:
      ConfigError: a rectangle that is empty or leaves the image.
    """
    mask = np.ones((1, *shape[:2], 1), np.float32)
    for rect in rects:
        if len(rect) != 4 or not (0 <= rect[0] < rect[2] <= shape[0] and 0 <= rect[1] < rect[3] <= shape[1]):
            raise ConfigError(f"rectangle {rect} is not top,left,bottom,right inside {shape[0]}x{shape[1]} pixels")
        mask[:, rect[0] : rect[2], rect[1] : rect[3]] = 0
    return mask
