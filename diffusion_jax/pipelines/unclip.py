"""The parts of unCLIP put together (Ramesh et al. 2022, arXiv 2204.06125): text -> prior -> decoder -> upsamplers.

    slerp(a, b, v) = (sin((1 - v) w) a + sin(v w) b) / sin(w),      cos(w) = a . b / |a||b|                  (1)

With y_i and x_T the embedding of an image and the noise from which DDIM makes it again under that embedding (sec. 3):

    variations     decode(y_i, x_T) with eta > 0                                                             (2)
    interpolation  decode(slerp(y_i, y_j, v), slerp(x_i, x_j, v))                                            (3)
    text diffs     decode(slerp(y_i, d, v), x_T),   d along t - t0, texts of what is wanted and of what is   (4)
    components     decode(y_i reduced to its first principal components)                                     (5)

The upsamplers follow as in any cascade (pipelines/cascade.py).
"""
from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.clip import unit
from diffusion_jax.models.prior_ar import pick
from diffusion_jax.models.unclip import EMPTY, TEXT
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.diffusion import generate
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.embedder import DOTS, Embedder
from diffusion_jax.types import Array, Params, Raw

PARALLEL = 0.9995
"""Above this cosine, (1) is the straight line, which it then cannot be told from."""
BEST = 2
"""Embeddings of which the nearer to the text is kept (sec. 2.2)."""


def slerp(a: Array, b: Array, v: float, channelwise: bool = False) -> Array:
    """(1), row by row: a at v = 0, b at v = 1.

    Args:
      a, b: [..., D].
      v: where between them.
      channelwise: an angle for every channel, arccos of its own share of the cosine, as diffusers' interpolation of unCLIP
        computes it; for equal numbers only, it is no arc.

    Returns:
      [..., D].
    """
    products = a * b / (jnp.linalg.norm(a, axis=-1, keepdims=True) * jnp.linalg.norm(b, axis=-1, keepdims=True))
    cos = products if channelwise else jnp.sum(products, axis=-1, keepdims=True)
    w = jnp.arccos(jnp.clip(cos, -1, 1))
    line, arc = (1 - v) * a + v * b, (jnp.sin((1 - v) * w) * a + jnp.sin(v * w) * b) / jnp.sin(w)
    return jnp.where(jnp.abs(cos) > PARALLEL, line, arc)


def slerp_images(a: Array, b: Array, v: float) -> Array:
    """(1) for noise [B, H, W, C], an image being one vector."""
    return slerp(a.reshape(len(a), -1), b.reshape(len(b), -1), v).reshape(a.shape)


def toward(y: Array, text: Array, base: Array, v: float) -> Array:
    """The embeddings of (4): y [B, F] turned by the share v towards the difference of two texts' embeddings [B, F]."""
    away = text - base
    return slerp(y, away * jnp.linalg.norm(y, axis=-1, keepdims=True) / jnp.linalg.norm(away, axis=-1, keepdims=True), v)


class Prior(NamedTuple):
    """A trained prior and how it samples.

    Attributes:
      task: `Diffusion` with the shape of an embedding, or `Autoregressive` with an `Embedder`.
      params: its parameters.
      first: those of its CLIP, task.first_stage.
      how: a `Recipe`, or a `Draw` of codes.
    """

    task: Diffusion | Autoregressive
    params: Params
    first: Params
    how: Recipe | Draw


def embeddings(prior: Prior, tokens: np.ndarray, seed: int, best: int = BEST, batch: int = 100) -> np.ndarray:
    """Embeddings [N, F] that a prior makes of texts, tokens [N, L].

    Args:
      prior: diffusion or autoregressive.
      tokens: of its own tokenizer.
      seed: text i of a seed has the same embedding whatever N and batch are.
      best: how many are made of each text; the one with the largest dot product with the text's embedding is kept.
      batch: embeddings at a time.

    Raises:
      ConfigError: what `Recipe.check` refuses.
    """
    num, first = len(tokens) * best, prior.task.first_stage
    raw = jax.device_get(jax.jit(first.texts)(prior.first, jnp.asarray(np.repeat(tokens, best, axis=0))))
    if isinstance(prior.how, Draw):
        rows = [np.minimum(np.arange(i, i + min(batch, num)), num - 1) for i in range(0, num, batch)]      # one program
        parts = [_codes(prior.task, prior.how, prior.params, prior.first, {name: value[row] for name, value in raw.items()},
                        row, jax.random.key(seed)) for row in rows]
        made = np.concatenate([np.asarray(part) for part in parts])[:num]
    else:
        x = np.concatenate(list(generate(prior.task, prior.params, prior.how, raw, num, seed, batch)))
        made = np.asarray(first.restored(prior.first, x))
    if not np.isfinite(made).all():
        return made.reshape(-1, best, made.shape[-1])[:, 0]
    scores = np.asarray(jnp.sum(unit(jnp.asarray(made)) * unit(jnp.asarray(raw["clip_text"])), axis=-1)).reshape(-1, best)
    return made.reshape(len(tokens), best, -1)[np.arange(len(tokens)), np.argmax(scores, axis=1)]


@functools.partial(jax.jit, static_argnames=("task", "how"))
def _codes(task: Autoregressive, how: Draw, params: Params, first: Params, raw: Raw, index: Array, key: Array) -> Array:
    """Embeddings [B, F] by an autoregressive prior, the dot token drawn from its upper half."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    dot = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, DOTS), (), DOTS // 2, DOTS))(keys)
    codes = pick(task.model, params["model"], {**raw, "clip_dot": dot}, task.first_stage.components, keys, how.guidance,
                 how.guidance != 1, how.temperature)
    return task.first_stage.decode(first, codes)


def seen(first: Embedder, params: Params, y: np.ndarray | Array, tokens: np.ndarray | None = None) -> Raw:
    """What a decoder reads: embeddings of images y [N, F] and perhaps texts, tokens [N, L]; the empty text without them.

    Args:
      first, params: the decoder's CLIP.
      y: [N, F].
      tokens: of the decoder's tokenizer.
    """
    row = jnp.zeros((len(y), first.clip.model.text.context), jnp.int32) if tokens is None else jnp.asarray(tokens)
    raw = dict(jax.device_get(jax.jit(first.texts)(params, row)))
    if tokens is None:
        raw |= {own: raw[null] for own, null in zip(TEXT, EMPTY, strict=True)}
    return {**raw, "clip_image": np.asarray(y)}
