"""From prompts to images: text tokens -> image tokens, one after the other -> the first stage's decoder -> the best of N.

    code_i ~ softmax(cut(logits_i / temperature)),   logits_i = null_i + w (cond_i - null_i)         (1)

The keys and values of all layers are kept, and one `lax.scan` over the tokens that are not given fills them. Image number i of a
seed is the same whatever the batch it is made in: its draws come from fold_in(fold_in(key, i), place).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.nn.tokens import choose, filtered
from diffusion_jax.tasks.autoregressive import FIRST, Autoregressive
from diffusion_jax.types import Array, Key, Params

Score = Callable[[np.ndarray], np.ndarray]
"""Images uint8 [N, H, W, C] -> how well each fits its prompt, [N]; larger is better."""


@dataclass(frozen=True)
class Draw:
    """How image tokens are drawn.

    Attributes:
      temperature: the softmax's.
      top_k: how many of the most likely tokens are drawn from; 0 is all.
      top_p: the share of probability that is drawn from; 0 is all.
      guidance: w of (1); 1 is none.

    Raises:
      ConfigError: values that have no meaning.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    guidance: float = 1.0

    def __post_init__(self):
        if self.temperature <= 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
            got = f"{self.temperature}, {self.top_k} and {self.top_p}"
            raise ConfigError(f"temperature is positive, top_k 0 or more, top_p 0 ... 1: got {got}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Draw:
        """From a config's section `sample`.

        Raises:
          ConfigError: an unknown key; the message names the nearest known one.
        """
        known = [field.name for field in fields(cls)]
        for key in options:
            if key not in known:
                raise unknown("sampling option", key, known)
        return cls(**options)


def draw(model: DALLE, how: Draw, params: Params, text: Array, given: Array, index: Array, key: Key,
         guidance: Array | float = 1.0) -> Array:
    """Codes of a batch of images.

    Args:
      model: the transformer; it, `how` and the shape of `given` are static.
      how: but for its guidance, of which only is read whether it is 1.
      params: {'model': ...}.
      text: [B, T].
      given: the first codes of the images, [B, n] with n < g^2; [B, 0] for none.
      index: the images' numbers, [B].
      key: the seed's.
      guidance: w of (1), may be traced.

    Returns:
      int32 [B, g^2].
    """
    bound, guided = {"params": params["model"]}, how.guidance != 1
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

    def twice(x: Array) -> Array:
        return jnp.concatenate([x, x]) if guided else x

    def token(logits: Array, place: Array) -> Array:
        if guided:
            cond, null = jnp.split(logits, 2)
            logits = null + guidance * (cond - null)
        noise = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, place), logits.shape[1:]))(keys)
        return choose(filtered(logits, how.temperature, how.top_k, how.top_p), noise)

    def step(carry: tuple, place: Array) -> tuple[tuple, Array]:
        code, cache = carry
        logits, cache = model.apply(bound, twice(code), place, cache, method="step")
        code = token(logits, place + 1)
        return (code, cache), code

    both = jnp.concatenate([text, jnp.zeros_like(text)]) if guided else text
    logits, cache = model.apply(bound, both, twice(given), method="prefill")
    first = token(logits, jnp.int32(given.shape[1]))
    places = jnp.arange(given.shape[1], model.grid**2 - 1, dtype=jnp.int32)
    _, rest = jax.lax.scan(step, (first, cache), places)
    return jnp.concatenate([given, first[:, None], rest.T], axis=1)


@functools.partial(jax.jit, static_argnames=("task", "how"))
def _images(task: Autoregressive, how: Draw, params: Params, first: Params, text: Array, given: Array, index: Array, key: Key,
            guidance: Array) -> Array:
    """Images [B, H, W, C]; see `draw`."""
    return task.coder.decode(first, draw(task.model, how, params, text, given, index, key, guidance))


def generate(task: Autoregressive, params: Params, frozen: Params, how: Draw, text: np.ndarray, num: int, seed: int,
             batch: int = 100, given: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] in about [-1, 1], `num` in all, in order; the last may be smaller.

    Args:
      task, params: a trained transformer.
      frozen: {'first_stage': its first stage's parameters}.
      how: how tokens are drawn.
      text: captions [num, T], from the tokenizer.
      num, seed: image i of a seed does not depend on `num` or `batch`.
      batch: images at a time.
      given: the first codes of every image, [num, n]; see `upper`.

    Raises:
      ConfigError: no first stage; captions or given codes that do not fit; guidance where captions were never dropped.
    """
    if task.coder is None or not frozen or FIRST not in frozen:
        raise ConfigError("images are made by a first stage: this folder has none")
    if how.guidance != 1 and not task.drop:
        raise ConfigError("this model never saw an empty caption (task.drop is 0): leave guidance at 1")
    given = np.zeros((num, 0), np.int32) if given is None else given
    if text.shape != (num, task.model.text_length) or len(given) != num or given.shape[1] >= task.model.grid**2:
        raise ConfigError(f"{num} images need as many captions of {task.model.text_length} tokens, and less than "
                          f"{task.model.grid**2} given codes: got {text.shape} and {given.shape}")
    static, scale = replace(how, guidance=float(how.guidance == 1)), jnp.float32(how.guidance)
    key, size = jax.random.key(seed), min(batch, num)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, num, size):
            rows = np.minimum(np.arange(start, start + size), num - 1)           # the last batch is filled up: one program
            part = text[rows], given[rows], rows
            yield np.asarray(_images(task, static, params, frozen[FIRST], *part, key, scale))[: num - start]

    return batches()


def upper(task: Autoregressive, frozen: Params, images: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The codes of the upper part of images, [N, n], to be completed.

    Args:
      task, frozen: see `generate`.
      images: [N, H, W, C] in [-1, 1]; what lies below the part plays no role but for what the encoder's kernels see.
      share: of the rows of tokens, 0 ... 1, rounded down.
    """
    codes = task.coder.encode(frozen[FIRST], jnp.asarray(images))
    return np.asarray(codes)[:, : int(task.model.grid * share) * task.model.grid]


def rerank(images: np.ndarray, scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` best of N images of each prompt: images [P, N, H, W, C], scores [P, N] -> [P, keep, H, W, C], best first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return np.take_along_axis(images, order[:, :, None, None, None], axis=1)


def likelihood(task: Autoregressive, params: Params, frozen: Params, batches: Iterator[dict[str, Any]]) -> dict[str, float]:
    """Bits per token of held-out captions and of images given their captions, and of images with no caption.

    Args:
      task, params, frozen: see `generate`.
      batches: each with 'tokens' [b, T] and 'image' [b, H, W, C] in [-1, 1], or 'codes'.
    """
    @jax.jit
    def bits(params: Params, frozen: Params, batch: dict[str, Array]) -> dict[str, Array]:
        codes, text = task.codes(frozen, batch), batch["tokens"]
        terms, blind = task.terms(params, text, codes), task.terms(params, jnp.zeros_like(text), codes)
        return {"text": terms["text"], "image": terms["image"], "image_without_text": blind["image"]}

    rows: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in bits(params, frozen, batch).items():
            rows.setdefault(name, []).append(np.asarray(value) / np.log(2))
    return {f"{name} (bits per token)": float(np.concatenate(values).mean()) for name, values in rows.items()}
