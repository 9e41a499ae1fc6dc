"""Pictures changed through CLIP's embeddings by unCLIP's decoder (Ramesh et al. 2022, sec. 3).

    variations      a row for each eta of DDIM; 0 makes the picture again
    interpolate     between the first and the second picture, the second and the third ...
    text_diff       from what a picture shows towards what another text says
    components      with so many principal components of the embedding

They are (2) to (5) of pipelines/unclip.py. All but `components`, whose noise is that of the seed,
start from the noise that DDIM makes the picture of, without guidance; the recipe's guidance is that
of the way back.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import cascade, latent
from diffusion_jax.pipelines.edit import Inputs, edit, invert
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.unclip import describe, slerp, slerp_images, toward
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array, Params

if TYPE_CHECKING:
    from diffusion_jax.pipelines.pipeline import Pipeline


def rows(
    pipe: Pipeline,
    op: str,
    images: np.ndarray,
    values: Sequence[float],
    seed: int,
    num: int = 1,
    texts: tuple[str, str] | None = None,
) -> list[np.ndarray]:
    """A batch of pictures for each value, [B, H, W, C] in about [-1, 1], made larger where the
    pipeline has upsamplers.

    Args:
      pipe: of a decoder.
      op: variations, interpolate, text_diff or components.
      images: the pictures [N, H, W, C] in [-1, 1].
      values: what is swept.
      seed: of what is drawn.
      num: variations of each picture.
      texts: of text_diff: what the pictures are to show, and what they show.

    Raises:
      ConfigError: another kind of model, a single picture to interpolate, or a value that has no
        meaning.
    """
    task = pipe.run.task
    if task.embedder is None:
        raise ConfigError(f"op {op} is for a decoder of unCLIP: this model reads no embeddings")
    if not len(values):
        raise ConfigError(f"op {op} needs values (--values): numbers, separated by commas")
    recipe = replace(pipe.diffusion, sampler="ddim")
    recipe.check(task)
    images = np.repeat(images, num, axis=0)
    y = np.asarray(_embed(task.embedder, pipe.run.model.first, jnp.asarray(images)))
    if op == "components":
        made = _components(pipe, recipe, y, values, seed)
    else:
        x = _noise_of(pipe, recipe, y, images)
        ways = {
            "variations": _variations,
            "interpolate": _interpolate,
            "text_diff": functools.partial(_text_diff, texts),
        }
        made = ways[op](pipe, recipe, y, x, values, seed)
    pictures = [np.asarray(latent.decode(pipe.run.model, part)) for part in made]
    return [_enlarged(pipe, part, seed) for part in pictures]


def _enlarged(pipe: Pipeline, images: np.ndarray, seed: int) -> np.ndarray:
    stages = pipe.stages[1:]
    return np.concatenate(
        list(cascade.upsampled(stages, iter([images]), {}, len(images), seed, len(images)))
    )


def _noise_of(pipe: Pipeline, recipe: Recipe, y: np.ndarray, images: np.ndarray) -> Array:
    """The noise that DDIM makes the pictures of under their embeddings, without guidance."""
    model = pipe.run.model
    static, strengths = replace(recipe, guidance=1.0, phi=0.0, plus_plus=False).split()
    raw = describe(model.task.embedder, model.first, y)
    x0 = latent.encode(model, jnp.asarray(images))
    return invert(replace(model, first=None), static, strengths, raw, x0)


def _decoded(
    pipe: Pipeline, recipe: Recipe, y: Array | np.ndarray, x: Array | None, seed: int
) -> Array:
    """Pictures [B, h, w, c] of embeddings y [B, F], without a text, from noise x, or from that
    of the seed."""
    model = pipe.run.model
    static, strengths = recipe.split()
    raw = describe(model.task.embedder, model.first, y)
    index = jnp.arange(len(y))
    return edit(
        replace(model, first=None),
        static,
        strengths,
        raw,
        index,
        jax.random.key(seed),
        inputs=Inputs(x=x),
    )


def _variations(
    pipe: Pipeline, recipe: Recipe, y: np.ndarray, x: Array, values: Sequence[float], seed: int
) -> list[Array]:
    return [
        _decoded(pipe, replace(recipe, sampler=f"ddim,eta={value}"), y, x, seed) for value in values
    ]


def _interpolate(
    pipe: Pipeline, recipe: Recipe, y: np.ndarray, x: Array, values: Sequence[float], seed: int
) -> list[Array]:
    if len(y) < 2:
        raise ConfigError(
            "op interpolate needs two pictures or more: give a folder, or an .npz, of them"
        )
    return [
        _decoded(
            pipe, recipe, slerp(y[:-1], y[1:], value), slerp_images(x[:-1], x[1:], value), seed
        )
        for value in values
    ]


def _text_diff(
    texts: tuple[str, str] | None,
    pipe: Pipeline,
    recipe: Recipe,
    y: np.ndarray,
    x: Array,
    values: Sequence[float],
    seed: int,
) -> list[Array]:
    if texts is None:
        raise ConfigError(
            "op text_diff needs a prompt (--prompt), what the picture shows, and another "
            "(--to_prompt)"
        )
    tokens = jnp.asarray(pipe.run.tokens(texts))
    text = pipe.run.task.embedder.embed_text(pipe.run.model.first, tokens)["clip_text"]
    return [
        _decoded(pipe, recipe, toward(y, text[:1], text[1:], value), x, seed) for value in values
    ]


def _components(
    pipe: Pipeline, recipe: Recipe, y: np.ndarray, values: Sequence[float], seed: int
) -> list[Array]:
    embedder, first = pipe.run.task.embedder, pipe.run.model.first
    if not embedder.components:
        raise ConfigError(
            "this model came without principal components: they are taken where a decoder is "
            "trained"
        )
    if any(value < 1 or value > embedder.features or value != int(value) for value in values):
        raise ConfigError(f"--values are numbers of components, 1 ... {embedder.features}")
    return [
        _decoded(pipe, recipe, embedder.reduced(first, y, int(value)), None, seed)
        for value in values
    ]


@functools.partial(jax.jit, static_argnames=("embedder",))
def _embed(embedder: kinds.Embeds, params: Params, images: Array) -> Array:
    return embedder.embed(params, images)
