"""The parts of unCLIP put together (Ramesh et al. 2022, arXiv 2204.06125).

    text -> prior -> decoder -> upsamplers
    slerp(a, b, v) = (sin((1 - v) w) a + sin(v w) b) / sin(w),    cos(w) = a . b / |a||b|      (1)

With y_i and x_T the embedding of an image and the noise from which DDIM makes it again under that
embedding (sec. 3):

    variations     decode(y_i, x_T) with eta > 0                                               (2)
    interpolation  decode(slerp(y_i, y_j, v), slerp(x_i, x_j, v))                              (3)
    text diffs     decode(slerp(y_i, d, v), x_T),   d along t - t0                             (4)
    components     decode(y_i reduced to its first principal components)                       (5)

t and t0 being the embeddings of what is wanted and of what is there.

Where the embeddings come from that the decoder makes images of (`Prior`):

    a prior's folder    those that it makes of the text; the best of a few
    'text'              the text's own embedding in the place of an image's
    'caption'           none: the decoder sees the caption alone

Without one those of held-out images, or, where the decoder's folder has a folder `prior` as
imported ones do, that one. The upsamplers follow as in any cascade (pipelines/cascade.py).
"""
from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data.rows import filled
from diffusion_jax.models.clip import unit
from diffusion_jax.models.prior_ar import pick
from diffusion_jax.models.unclip import EMPTY, TEXT
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import MOST, check_whole
from diffusion_jax.pipelines.sampling import generate
from diffusion_jax.runs import held_out as data_of_run
from diffusion_jax.runs.first_stage import captioned
from diffusion_jax.runs.folder import Model, Run, holds_run, open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.embedder import DOTS, Embedder
from diffusion_jax.types import Array, Key, Params, Raw

OF_TEXT, OF_CAPTION = WAYS = ("text", "caption")
FOLDER, UPSAMPLER = "prior", "upsampler"
"""Folders in that of an imported decoder."""

PARALLEL = 0.9995
"""Above this cosine (1) divides by nearly 0, and the straight line, which it cannot be told from
there, takes its place."""
BEST = 2
"""Embeddings that are made of each text, of which the nearest to it is used (sec. 2.2)."""


def slerp(
    a: Array | np.ndarray, b: Array | np.ndarray, v: float, channelwise: bool = False
) -> Array:
    """(1), row by row: a at v = 0, b at v = 1.

    Args:
      a, b: [..., D].
      v: where between them.
      channelwise: an angle for every channel, arccos of its own share of the cosine, as diffusers'
        interpolation of unCLIP computes it; for equal numbers only, it is no arc.

    Returns:
      [..., D].
    """
    norms = jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True)
    products = a * b / norms  # [..., D], whose sum is the cosine
    cos = products if channelwise else jnp.sum(products, axis=-1, keepdims=True)
    w = jnp.arccos(jnp.clip(cos, -1, 1))  # rounding may leave [-1, 1]
    line = (1 - v) * a + v * b
    arc = (jnp.sin((1 - v) * w) * a + jnp.sin(v * w) * b) / jnp.sin(w)
    return jnp.where(jnp.abs(cos) > PARALLEL, line, arc)


def slerp_images(a: Array, b: Array, v: float) -> Array:
    """(1) for noise [B, H, W, C], an image being one vector."""
    return slerp(a.reshape(len(a), -1), b.reshape(len(b), -1), v).reshape(a.shape)


def toward(y: Array | np.ndarray, text: Array, base: Array, v: float) -> Array:
    """The embeddings of (4): y [B, F] turned by the share v towards the difference of two texts'
    embeddings [B, F]."""
    away = text - base
    # As long as y, so that v turns it and does not shorten it.
    length = jnp.linalg.norm(y, axis=-1, keepdims=True)
    return slerp(y, away * length / jnp.linalg.norm(away, axis=-1, keepdims=True), v)


class Prior(NamedTuple):
    """A trained prior and how it samples.

    Attributes:
      model: the prior, with the parameters of its CLIP.
      recipe: how it samples: a `Recipe`, or a `Draw` of codes.
      run: the run that it is of, which has its tokenizer.
      best: embeddings that are made of each text, of which the nearest to it is used (sec. 2.2).
    """

    model: Model
    recipe: Recipe | Draw
    run: Run
    best: int = BEST


def prior_of(
    where: str | os.PathLike[str] | Run | None, decoder: Run, best: int = BEST, **changes: object
) -> Prior | str | None:
    """The prior of a decoder.

    Args:
      where: a prior's folder or run, 'text' or 'caption'; None takes the one that came with the
        decoder, if one did.
      decoder: the decoder's run, whose CLIP a prior without one of its own uses.
      best: see `Prior`.
      **changes: fields of the prior's `Recipe` or `Draw`: guidance, steps ...

    Returns:
      A prior, 'text' or 'caption', or None where there is none.

    Raises:
      ConfigError: the decoder reads no embeddings; another kind of model; changes that the prior
        does not have.
    """
    if decoder.task.embedder is None:
        # Nobody asked for one: `pipeline` calls this for every kind of model.
        if where is None and not changes and best == BEST:
            return None
        raise ConfigError(
            "a prior (--prior) is for a decoder of unCLIP: this model reads no embeddings"
        )
    if where is None:
        inner = Path(decoder.folder, FOLDER)
        where = inner if holds_run(inner) else None
    if where is None or (isinstance(where, str) and where in WAYS):
        if changes or best != BEST:
            raise ConfigError(
                "--prior_guidance, --prior_steps and --prior_best are of a prior's folder: give "
                "--prior FOLDER"
            )
        return where
    run = where if isinstance(where, Run) else open_run(where, kinds.Prior, flag="--prior ")
    if run.task.first_stage.features != decoder.task.embedder.features:
        raise ConfigError(
            f"the prior makes embeddings of {run.task.first_stage.features} channels, "
            f"the decoder reads {decoder.task.embedder.features}"
        )
    # Imported priors come without a CLIP: both are of the same one, which the decoder has.
    first = decoder.model.first if run.model.first is None else run.model.first
    return Prior(replace(run.model, first=first), _recipe_of(run, changes), run, best)


def _recipe_of(run: Run, changes: dict[str, object]) -> Recipe | Draw:
    """How a prior samples: as its page says, with changes."""
    if isinstance(run.task, kinds.Denoising):
        return Recipe.of(run.recipe()).using(**changes)
    if "steps" in changes:
        raise ConfigError(
            "--prior_steps is for a diffusion prior: an autoregressive one makes one code after "
            "the other"
        )
    return Draw.of(changes)


def described(prior: Prior | str) -> Any:
    """A prior as a file of pictures names it."""
    if isinstance(prior, str):
        return prior
    return {"run": prior.run.identity, "recipe": asdict(prior.recipe), "best": prior.best}


def restored(
    description: Any, opened: Callable[[Mapping[str, Any]], Run], decoder: Run
) -> Prior | str | None:
    """The prior of `described`; `opened` opens its run."""
    if isinstance(description, str):
        if description not in WAYS:  # it would be a folder, whose weights nobody compared
            raise unknown("prior", description, WAYS)
        return prior_of(description, decoder)
    check_whole("best", description["best"], 1, MOST)
    return prior_of(
        opened(description["run"]), decoder, description["best"], **description["recipe"]
    )


def own_upsampler(decoder: Run) -> list[str]:
    """The folder of the upsampler that came with an imported decoder, if one did."""
    inner = Path(decoder.folder, UPSAMPLER)
    return [str(inner)] if holds_run(inner) else []


def conditions_of(
    decoder: Run,
    prior: Prior | str | None,
    prompts: Sequence[str] | None,
    num: int,
    seed: int = 0,
    truncate: bool = False,
    embedding: np.ndarray | None = None,
) -> Raw:
    """Raw conditions of `num` images of a decoder, as many for each prompt.

    Args:
      decoder: its run.
      prior: where embeddings come from.
      prompts: texts; None takes held-out images, or their captions where there is a prior.
      num: how many, a multiple of the number of prompts.
      seed: of the prior.
      truncate: cut prompts that are too long.
      embedding: [N, F], in place of a prior's; N divides num.

    Raises:
      ConfigError: prompts without a prior, or a decoder that came without what is missing.
    """
    embedder = decoder.task.embedder
    first = decoder.model.first
    if embedding is not None:
        _check_embedding(np.asarray(embedding), embedder.features, num)
        tokens = None if prompts is None else _rows(decoder.tokens(prompts, truncate), num)
        return describe(embedder, first, _rows(embedding, num), tokens)
    if prior is None and prompts:
        raise ConfigError(
            "a decoder makes images of embeddings: give a prior (--prior), its folder or one of "
            f"{', '.join(WAYS)}"
        )
    if prior is None:
        data = decoder.data("give a prompt (--prompt) and a prior (--prior)")
        return held_out(embedder, first, data, num)
    texts = decoder.captions(num) if prompts is None else list(prompts)
    # Captions of the data are cut as in training; a user's prompt only where they say so.
    tokens = _rows(decoder.tokens(texts, truncate or prompts is None), num)  # [num, L]
    raw = describe(embedder, first, np.zeros((num, embedder.features), np.float32), tokens)
    if prior == OF_CAPTION:
        return {**raw, "with_image": np.zeros(num, np.float32)}
    if isinstance(prior, str):
        return {**raw, "clip_image": raw["clip_text"]}
    # The prior has a tokenizer of its own, which need not be the decoder's.
    tokens = _rows(prior.run.tokens(texts, truncate or prompts is None), num)
    return {**raw, "clip_image": _finite(embeddings(prior, tokens, seed))}


def _check_embedding(y: np.ndarray, features: int, num: int) -> None:
    """Raises ConfigError where embeddings [N, F] are not those of a decoder, as many for each of
    `num` images."""
    if y.shape[1] != features or num % len(y):
        raise ConfigError(
            f"embedding has {y.shape}: this decoder reads {features} channels, and {num} images "
            "need a number of rows that divides them"
        )


def _finite(y: np.ndarray) -> np.ndarray:
    """Embeddings as they are; raises ConfigError where a prior made one that is not finite."""
    if not np.isfinite(y).all():
        raise ConfigError(
            "the prior's embeddings are not finite: change --prior_guidance or --prior_steps"
        )
    return y


def _rows(values: np.ndarray, num: int) -> np.ndarray:
    """Each row of [P, ...] repeated, all of the first, then of the second ...: [num, ...]."""
    return np.repeat(np.asarray(values), num // len(values), axis=0)


def held_out(embedder: Embedder, first: Params, data: data_of_run.Data, num: int) -> Raw:
    """Conditions of `num` held-out images and their captions; they come again where there are
    fewer."""
    # Fetched batch by batch: not all images need to fit on the device.
    parts = [
        jax.device_get(_prepare(embedder, first, batch)) for batch in captioned(data, "test", num)
    ]
    raw = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: value[np.arange(num) % len(value)] for name, value in raw.items()}


def embeddings(prior: Prior, tokens: np.ndarray, seed: int, batch: int = 100) -> np.ndarray:
    """Embeddings [N, F] that a prior makes of texts, tokens [N, L].

    Args:
      prior: diffusion or autoregressive.
      tokens: of its own tokenizer.
      seed: text i of a seed has the same embedding whatever N and batch are.
      batch: embeddings at a time.

    Raises:
      ConfigError: what `Recipe.check` refuses.
    """
    model = prior.model
    best = prior.best
    embedder: Embedder = model.task.first_stage
    num = len(tokens) * best  # row i is of text i // best
    repeated = np.repeat(tokens, best, axis=0)  # [num, L]
    raw = jax.device_get(_texts(embedder, model.first, repeated))
    if isinstance(prior.recipe, Draw):
        made = _drawn(model, prior.recipe, raw, num, seed, batch)
    else:
        x = np.concatenate(list(generate(model, prior.recipe, raw, num, seed, batch)))
        made = np.asarray(model.task.embeddings(model.first, x))
    by_text = made.reshape(len(tokens), best, -1)  # [N, best, F]
    # No number is nearest to NaN; the caller refuses it and says what to change.
    if not np.isfinite(made).all():
        return by_text[:, 0]
    cosines = jnp.sum(unit(jnp.asarray(made)) * unit(jnp.asarray(raw["clip_text"])), axis=-1)
    nearest = np.argmax(np.asarray(cosines).reshape(-1, best), axis=1)  # [N]
    return by_text[np.arange(len(tokens)), nearest]


def _drawn(model: Model, recipe: Draw, raw: Raw, num: int, seed: int, batch: int) -> np.ndarray:
    """Embeddings [num, F] by an autoregressive prior."""
    parts = []
    static, scale = recipe.split()
    size = min(batch, num)
    for first in range(0, num, size):
        index = filled(first, size, num)  # [size]: a smaller last batch would compile again
        rows = {name: value[index] for name, value in raw.items()}
        parts.append(np.asarray(_embedded(model, static, rows, index, jax.random.key(seed), scale)))
    return np.concatenate(parts)[:num]  # without the rows that filled the last one up


@functools.partial(jax.jit, static_argnames=("how",))
def _embedded(model: Model, how: Draw, raw: Raw, index: Array, key: Key, guidance: Array) -> Array:
    """Embeddings [B, F] by an autoregressive prior, the dot token drawn from its upper half."""
    task = model.task
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

    def upper(key: Key) -> Array:
        return jax.random.randint(jax.random.fold_in(key, DOTS), (), DOTS // 2, DOTS)

    dot = jax.vmap(upper)(keys)  # [B]: an image that fits its text better than most (sec. 2.2)
    codes = pick(
        task.model,
        model.params["model"],
        {**raw, "clip_dot": dot},
        task.first_stage.components,
        keys,
        guidance,
        how.guides,
        how.temperature,
    )
    return task.embeddings(model.first, codes)


@functools.partial(jax.jit, static_argnames=("embedder",))
def _texts(embedder: Embedder, params: Params, tokens: Array) -> Raw:
    return embedder.texts(params, tokens)


@functools.partial(jax.jit, static_argnames=("embedder",))
def _prepare(embedder: Embedder, params: Params, batch: Raw) -> Raw:
    return embedder.prepare(params, batch)


def describe(
    embedder: Embedder, params: Params, y: np.ndarray | Array, tokens: np.ndarray | None = None
) -> Raw:
    """What a decoder reads: embeddings of images y [N, F] and perhaps texts, tokens [N, L]; the
    empty text without them.

    Args:
      embedder, params: the decoder's CLIP.
      y: [N, F].
      tokens: of the decoder's tokenizer.
    """
    # Without texts any tokens do: `texts` gives the empty text beside each, which is used instead.
    length = embedder.clip.model.text.context
    rows = np.zeros((len(y), length), np.int32) if tokens is None else tokens
    raw = dict(jax.device_get(_texts(embedder, params, jnp.asarray(rows))))
    if tokens is None:
        raw |= {name: raw[null] for name, null in zip(TEXT, EMPTY, strict=True)}
    return {**raw, "clip_image": np.asarray(y)}
