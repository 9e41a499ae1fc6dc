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

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import cascade, latent
from diffusion_jax.pipelines.edit import Change, Inputs, Maker
from diffusion_jax.pipelines.edit_steps import edited, inverted
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.unclip import describe, slerp, slerp_images, toward
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array, Params


def rows(
    maker: Maker,
    op: str,
    images: np.ndarray,
    values: Sequence[float],
    seed: int,
    num: int = 1,
    texts: tuple[str, str] | None = None,
) -> list[np.ndarray]:
    """A batch of pictures for each value, [B, H, W, C] in about [-1, 1], made larger where
    there are upsamplers.

    Args:
      maker: of a decoder.
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
    task = maker.run.task
    if task.embedder is None:
        raise ConfigError(f"op {op} is for a decoder of unCLIP: this model reads no embeddings")
    if not len(values):
        raise ConfigError(f"op {op} needs values (--values): numbers, separated by commas")
    # What `invert` finds is undone by DDIM alone; components start from the seed's noise.
    recipe = maker.recipe if op == "components" else replace(maker.recipe, sampler="ddim")
    recipe.check(task)
    draws = op == "components" or maker.larger or (op == "variations" and any(values))
    if seed and not draws:
        raise ConfigError(f"op {op} draws nothing here: leave seed (--seed) at 0")
    images = np.repeat(images, num, axis=0)  # [N num, H, W, C]
    y = np.asarray(_embed(task.embedder, maker.run.model.first, jnp.asarray(images)))  # [N num, F]
    ways = {
        "variations": _variations,
        "interpolate": _interpolate,
        "text_diff": functools.partial(_text_diff, texts),
        "components": _components,
    }
    made = ways[op](maker, recipe, y, images, values, seed)
    pictures = [np.asarray(latent.decode(maker.run.model, part)) for part in made]
    return [_enlarged(maker, part, seed) for part in pictures]


def _enlarged(maker: Maker, images: np.ndarray, seed: int) -> np.ndarray:
    """Pictures [B, h, w, C] through the upsamplers, if there are any: [B, H, W, C]."""
    num = len(images)
    large = cascade.upsampled(maker.larger, iter([images]), {}, num, seed, num, maker.meter)
    return np.concatenate(list(large))


def _noise_of(maker: Maker, recipe: Recipe, y: np.ndarray, images: np.ndarray) -> Array:
    """The noise that DDIM makes the pictures of under their embeddings, without guidance."""
    model = maker.run.model
    # Guided, the way up does not lead to Gaussian noise, and the way down from there not back.
    static, strengths = replace(recipe, guidance=1.0, phi=0.0, plus_plus=False).split()
    raw = describe(model.task.embedder, model.first, y)
    x0 = latent.encode(model, jnp.asarray(images))  # [B, h, w, c]
    return inverted(replace(model, first=None), static, strengths, raw, x0, maker.pace)


def _decoded(
    maker: Maker, recipe: Recipe, y: Array | np.ndarray, x: Array | None, seed: int
) -> Array:
    """Pictures [B, h, w, c] of embeddings y [B, F], without a text, from noise x, or from that
    of the seed."""
    model = maker.run.model
    static, strengths = recipe.split()
    raw = describe(model.task.embedder, model.first, y)
    index = jnp.arange(len(y))
    key = jax.random.key(seed)
    # The first stage is not sampled from; it would be sent along as an argument of the program.
    model = replace(model, first=None)
    inputs = Inputs(x=x)
    return edited(model, static, strengths, raw, index, key, Change(), inputs, maker.pace)


def _variations(
    maker: Maker,
    recipe: Recipe,
    y: np.ndarray,
    images: np.ndarray,
    values: Sequence[float],
    seed: int,
) -> list[Array]:
    x = _noise_of(maker, recipe, y, images)
    # eta is part of the static recipe: a program for each value, of which there are few.
    return [
        _decoded(maker, replace(recipe, sampler=f"ddim,eta={value}"), y, x, seed)
        for value in values
    ]


def _interpolate(
    maker: Maker,
    recipe: Recipe,
    y: np.ndarray,
    images: np.ndarray,
    values: Sequence[float],
    seed: int,
) -> list[Array]:
    # Before the first step: what is refused is one line, without the beginning of a bar over it.
    if len(y) < 2:
        raise ConfigError(
            "op interpolate needs two pictures or more: give a folder, or an .npz, of them"
        )
    x = _noise_of(maker, recipe, y, images)
    rows = []
    for value in values:
        between = slerp(y[:-1], y[1:], value)  # [B - 1, F]
        # On the sphere too: a line between two noises leaves the shell where Gaussian noise lies.
        noise = slerp_images(x[:-1], x[1:], value)  # [B - 1, h, w, c]
        rows.append(_decoded(maker, recipe, between, noise, seed))
    return rows


def _text_diff(
    texts: tuple[str, str] | None,
    maker: Maker,
    recipe: Recipe,
    y: np.ndarray,
    images: np.ndarray,
    values: Sequence[float],
    seed: int,
) -> list[Array]:
    if texts is None:
        raise ConfigError(
            "op text_diff needs a prompt (--prompt), what the picture shows, and another "
            "(--to_prompt)"
        )
    tokens = jnp.asarray(maker.run.tokens(texts))  # [2, L]: what is wanted, what is there
    text = maker.run.task.embedder.embed_text(maker.run.model.first, tokens)["clip_text"]  # [2, F]
    x = _noise_of(maker, recipe, y, images)
    return [
        _decoded(maker, recipe, toward(y, text[:1], text[1:], value), x, seed) for value in values
    ]


def _components(
    maker: Maker,
    recipe: Recipe,
    y: np.ndarray,
    _: np.ndarray,
    values: Sequence[float],
    seed: int,
) -> list[Array]:
    embedder = maker.run.task.embedder
    first = maker.run.model.first
    if not embedder.components:
        raise ConfigError(
            "this model came without principal components: they are taken where a decoder is "
            "trained"
        )
    if any(value < 1 or value > embedder.features or value != int(value) for value in values):
        raise ConfigError(f"--values are numbers of components, 1 ... {embedder.features}")
    # One noise for all, not that of the pictures, which would bring back what the embedding lost.
    return [
        _decoded(maker, recipe, embedder.reduced(first, y, int(value)), None, seed)
        for value in values
    ]


@functools.partial(jax.jit, static_argnames=("embedder",))
def _embed(embedder: kinds.Embeds, params: Params, images: Array) -> Array:
    return embedder.embed(params, images)
