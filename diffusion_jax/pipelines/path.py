"""The path of pictures from noise: x_t and x0 over the steps of a sampler, beside the noise level.

    for point in path(pipe, 3, every=10): ...

x_t is shown as

    z = x / (alpha + sigma)    (1)

which has about the spread of a picture at all noise levels of every process, and is the picture
itself at the end.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import latent, stream
from diffusion_jax.pipelines.conditions import request_of
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.request import check_numbers
from diffusion_jax.pipelines.sampling import to_pixels


class Point(NamedTuple):
    """A point on the way of pictures.

    Attributes:
      step: steps done.
      t: the time there.
      level: sigma / alpha, the noise level; infinite where nothing is left of the pictures.
      noisy: x_t, uint8 [N, H, W, C], as (1).
      clean: x0, uint8 [N, H, W, C], as the denoiser, under all guidance, takes it from x_t.
    """

    step: int
    t: float
    level: float
    noisy: np.ndarray
    clean: np.ndarray


def path(
    pipe: Pipeline, request: Any = None, num: int = 1, seed: int = 0, every: int = 1
) -> Iterator[Point]:
    """The way of the pictures of a call of a pipeline, which are both parts of the last point.

    Args:
      pipe: a diffusion model; what it makes of latents is decoded by its first stage.
      request, num, seed: as for its call; the pictures are one batch.
      every: steps between two points; the last may have less.

    Yields:
      A point before the first step, one after every few steps, one at the end.

    Raises:
      ConfigError: what the call refuses, a transformer over tokens, or upsamplers and a judge,
        which come after those steps.
    """
    recipe = pipe.diffusion
    if pipe.upsamplers or pipe.judge is not None:
        raise ConfigError(
            "a path is that of one model: open the run without upsamplers and without a judge"
        )
    request = request_of(request, pipe.run, pipe.guide)
    check_numbers(num, seed)
    total = num * request.rows
    raw = pipe.conditions(request, total, seed)
    model = pipe.texts.network(pipe.run.model)
    places = stream.walked(model, recipe, raw, total, seed, every, pipe.guides)
    # No `yield`, so that what is refused is refused at the call.
    return (_shown(pipe, place) for place in places)


def _shown(pipe: Pipeline, place: stream.Place) -> Point:
    level = place.sigma / place.alpha if place.alpha else math.inf
    clean = _pictures(pipe, place.x0)
    noisy = clean
    if place.x is not place.x0:
        noisy = _pictures(pipe, place.x / (place.alpha + place.sigma))  # (1)
    return Point(place.step, place.t, level, noisy, clean)


def _pictures(pipe: Pipeline, x: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] of what the network sees, x [N, h, w, c]."""
    return to_pixels(np.asarray(latent.decode(pipe.run.model, x)))
