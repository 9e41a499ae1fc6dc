"""From prompts to images: text tokens -> image tokens, one after the other -> the first stage's
decoder -> the best of N.

    code_i ~ softmax(cut(logits_i / temperature)),   logits_i = null_i + w (cond_i - null_i)    (1)

The keys and values of all layers stay in a cache, which one `lax.scan` over the tokens to be drawn
fills. Image number i of a seed is the same whatever the batch it is made in: its draws come from
fold_in(fold_in(key, i), position).
"""
from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.data.rows import filled
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.nn.tokens import choose, filtered
from diffusion_jax.pipelines.recipe import fields_of
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Array, Key, Params, Raw

COLDEST = 1e-6
"""The least temperature: below it logits overflow."""
UPPER = 0.5
"""The share of a picture's rows that is there before, where it is completed."""


@dataclass(frozen=True)
class Draw:
    """How image tokens are drawn: what a `Recipe` is to diffusion models.

    Attributes:
      temperature: the softmax's.
      top_k: how many of the most likely tokens are drawn from; 0 is all.
      top_p: the share of probability that is drawn from; 0 is all.
      guidance: w of (1); 1 is none.

    Raises:
      ConfigError: values that have no meaning.
    """

    temperature: float = option(1.0, "Of the choice of tokens")
    top_k: int = option(0, "Choose among the k most likely tokens; 0 is all", least=0)
    top_p: float = option(
        0.0,
        "Choose among the most likely tokens that together have this probability; 0 is all",
        least=0,
        most=1,
    )
    guidance: float = option(1.0, "Classifier-free guidance scale; 1 is none")

    def __post_init__(self):
        check_options(self)
        if self.temperature < COLDEST:  # which logits are divided by
            raise ConfigError(f"temperature is positive: got {self.temperature}")
        if self.top_k == 1 and self.temperature != 1:
            raise ConfigError(
                "top_k (--top_k) 1 takes the most likely token at every temperature: leave "
                "temperature out"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Draw:
        """From a config's section `sample`.

        Raises:
          ConfigError: an unknown key; the message names the nearest known one.
        """
        return cls(**fields_of(cls, options))

    def using(self, **changes: Any) -> Draw:
        """The same with some of its fields changed; errors as in `of`."""
        return replace(self, **fields_of(Draw, changes))

    @property
    def guides(self) -> bool:
        """Whether there is guidance at all."""
        return self.guidance != 1

    def split(self) -> tuple[Draw, Array]:
        """(this with its scale replaced by whether there is one, which is static; the scale,
        which is traced)."""
        # 0 stands for every scale but 1: all of them share one compiled program.
        return replace(self, guidance=0.0 if self.guides else 1.0), jnp.float32(self.guidance)


def draw(
    model: DALLE,
    how: Draw,
    params: Params,
    text: Array,
    start: Array,
    index: Array,
    key: Key,
    guidance: Array | float = 1.0,
) -> Array:
    """Codes of a batch of images.

    Args:
      model: the transformer; it, `how` and the shape of `start` are static.
      how: of its guidance only whether it is 1 is read; see `Draw.split`.
      params: {'model': ...}.
      text: [B, T].
      start: the first codes of the images, [B, n] with n < g^2; [B, 0] for none.
      index: the images' numbers, [B].
      key: the seed's.
      guidance: w of (1), may be traced.

    Returns:
      int32 [B, g^2].
    """
    bound = {"params": params["model"]}
    guided = how.guides
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

    def twice(x: Array) -> Array:
        # One call of the network on 2B rows costs less than two on B.
        return jnp.concatenate([x, x]) if guided else x

    def token(logits: Array, position: Array) -> Array:
        if guided:
            cond, null = jnp.split(logits, 2)  # [B, V] each
            logits = null + guidance * (cond - null)

        def noise(k: Key) -> Array:
            # By its position and not by how many were drawn: a completion draws what a whole image
            # draws there.
            return jax.random.gumbel(jax.random.fold_in(k, position), logits.shape[1:])

        likely = filtered(logits, how.temperature, how.top_k, how.top_p)
        return choose(likely, jax.vmap(noise)(keys))  # [B]

    def step(carry: tuple, position: Array) -> tuple[tuple, Array]:
        code, cache = carry
        logits, cache = model.apply(bound, twice(code), position, cache, method="step")
        code = token(logits, position + 1)
        return (code, cache), code

    both = jnp.concatenate([text, jnp.zeros_like(text)]) if guided else text  # 0: the empty caption
    logits, cache = model.apply(bound, both, twice(start), method="prefill")
    first = token(logits, jnp.int32(start.shape[1]))  # [B]
    # A step reads a code and draws the next one, so the last code is never read.
    positions = jnp.arange(start.shape[1], model.grid**2 - 1, dtype=jnp.int32)
    _, rest = jax.lax.scan(step, (first, cache), positions)  # [g^2 - n - 1, B]
    return jnp.concatenate([start, first[:, None], rest.T], axis=1)  # [B, g^2]


@functools.partial(jax.jit, static_argnames=("how",))
def _images(
    model: Model, how: Draw, text: Array, codes: Array, index: Array, key: Key, guidance: Array
) -> Array:
    """Images [B, H, W, C]; see `draw`."""
    task = model.task
    drawn = draw(task.model, how, model.params, text, codes, index, key, guidance)
    return task.coder.decode(model.first, drawn)


def generate(
    model: Model,
    how: Draw,
    text: np.ndarray,
    num: int,
    seed: int,
    batch: int = 100,
    codes: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] in about [-1, 1], `num` in all, in order; the last may be
    smaller.

    Args:
      model: a trained transformer with its first stage.
      how: how tokens are drawn.
      text: captions [num, T], from the tokenizer.
      num, seed: image i of a seed does not depend on `num` or `batch`.
      batch: images at a time.
      codes: the first codes of every image, [num, n]; see `upper`.

    Raises:
      ConfigError: no first stage; captions or codes that do not fit; guidance where captions were
        never dropped; a `top_k` of all tokens.
    """
    task = model.task
    check_first_stage(model)
    if how.guides and not task.drop:
        raise ConfigError(
            "this model never saw an empty caption (task.drop is 0): leave guidance at 1"
        )
    if how.top_k >= task.model.image_codes:
        raise ConfigError(
            f"top_k (--top_k) {how.top_k} keeps all of {task.model.image_codes} tokens: leave it "
            "out"
        )
    codes = np.zeros((num, 0), np.int32) if codes is None else codes
    length = task.model.grid**2
    if text.shape != (num, task.model.text_length) or len(codes) != num or codes.shape[1] >= length:
        raise ConfigError(
            f"{num} images need as many captions of {task.model.text_length} tokens, and less than "
            f"{length} codes to begin with: got {text.shape} and {codes.shape}"
        )
    static, scale = how.split()
    key = jax.random.key(seed)
    size = min(batch, num)

    def batches() -> Iterator[np.ndarray]:  # inside, so that what is refused is refused at the call
        for first in range(0, num, size):
            rows = filled(first, size, num)  # [size]: a smaller last batch would compile again
            images = _images(model, static, text[rows], codes[rows], rows, key, scale)
            yield np.asarray(images)[: num - first]  # [b, H, W, C]

    return batches()


def check_first_stage(model: Model) -> None:
    """Raises ConfigError where the codes of a model cannot become images."""
    if model.task.coder is None or model.first is None:
        raise ConfigError("images are made by a first stage: this folder has none")


def upper(model: Model, images: np.ndarray, share: float = UPPER) -> np.ndarray:
    """The codes of the upper part of images, [N, n], to be completed.

    Args:
      model: see `generate`.
      images: [N, H, W, C] in [-1, 1]; what lies below the part counts only where the encoder's
        kernels reach across its edge.
      share: of the rows of tokens, 0 ... 1, rounded down.
    """
    check_first_stage(model)
    codes = _encode(model, jnp.asarray(images))  # [N, g^2], row by row from the top
    return np.asarray(codes)[:, : rows_before(model, share) * model.task.model.grid]


def rows_before(model: Model, share: float = UPPER) -> int:
    """How many rows of tokens `upper` gives."""
    return int(model.task.model.grid * share)


@jax.jit
def _encode(model: Model, images: Array) -> Array:
    return model.task.coder.encode(model.first, images)


def likelihood(model: Model, batches: Iterable[Raw]) -> dict[str, float]:
    """Bits per token of held-out captions and of images given their captions, and of images with no
    caption.

    Args:
      model: see `generate`.
      batches: each with 'tokens' [b, T] and 'image' [b, H, W, C] in [-1, 1], or 'codes'.
    """
    rows: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in _nats(model, batch).items():
            rows.setdefault(name, []).append(np.asarray(value) / np.log(2))  # nats to bits
    # The mean over images, not over batches, of which the last may be smaller.
    return {
        f"{name} (bits per token)": float(np.concatenate(values).mean())
        for name, values in rows.items()
    }


@jax.jit
def _nats(model: Model, batch: Raw) -> dict[str, Array]:
    """-ln p per token of every caption, image given its caption, and image alone, [B] each."""
    task = model.task
    text = batch["tokens"]
    codes = task.codes(model.frozen, batch)
    terms = task.terms(model.params, text, codes)
    blind = task.terms(model.params, jnp.zeros_like(text), codes)  # 0: the empty caption
    return {"text": terms["text"], "image": terms["image"], "image_without_text": blind["image"]}
