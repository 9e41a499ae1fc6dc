"""The autoregressive task: the next token of a caption and of its image (Ramesh et al. 2021).

    text  = mean -ln p(text_i | text_<i),   image = mean -ln p(code_i | text, code_<i)          (1)
    loss  = (w_t text + w_i image) / (w_t + w_i)                                                (2)

as in section 2.2 of arXiv 2102.12092, where w_t is 1 and w_i 7. The codes are the most likely ones
of a first stage, which is trained before and frozen. A caption is dropped, replaced by the empty
one, at its own rate, so that the network can be guided (2207.12598).

ru-DALL-E without a start token has no place that tells the first code of an image as such: it is
trained as a text label, in the mean of the text, and (1) counts the other codes (`first_as_text`).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.tasks.codes import Coded, Coder, coder
from diffusion_jax.tasks.images import check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw

FIRST = "first_stage"


@dataclass(frozen=True)
class Autoregressive:
    """Trains and applies a transformer over text and image tokens; parameters {'model': ...}.

    A batch holds 'tokens' [B, T] and either 'codes' [B, g^2], or 'image' and then
    frozen['first_stage'] the first stage's parameters.

    Attributes:
      model: `models.dalle:DALLE`.
      first_stage: the task that makes codes of images, a discrete VAE or a VQ; None for codes that
        come with the data.
      text_weight, image_weight: of (2).
      drop: the rate at which captions are dropped in training.
      first_as_text: see the top of this file.

    Raises:
      ConfigError: a first stage that makes no codes, or others than the transformer reads.
    """

    model: nn.Module
    first_stage: Coded | None = None
    text_weight: float = 1.0
    image_weight: float = 7.0
    drop: float = 0.0
    first_as_text: bool = False

    noun: ClassVar[str] = "a transformer over text and image tokens"
    needs = ("caption",)
    num_classes = 0

    def __post_init__(self):
        first = self.coder
        if first is None:
            return
        grid = (self.model.grid, self.model.grid)
        if first.codes != self.model.image_codes or first.grid != grid:
            raise ConfigError(f"the first stage makes {first.grid} tokens of {first.codes} codes, "
                              f"the transformer reads {grid} of {self.model.image_codes}: "
                              "change one")

    @property
    def coder(self) -> Coder | None:
        """What makes codes of images, and images of codes; None without a first stage."""
        return None if self.first_stage is None else coder(self.first_stage)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image; of one token each where there is no first stage."""
        return (self.model.grid, self.model.grid, 1) if self.coder is None else self.coder.shape

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: captions of another length than the transformer's, or images of another shape
            than the first stage's.
        """
        length = self.model.text_length
        if "tokens" not in batch or batch["tokens"].shape[1] != length:
            has = batch["tokens"].shape[1] if "tokens" in batch else "none"
            raise ConfigError(f"the transformer reads captions of {length} tokens, "
                              f"the data has {has}: give data.decode a tokenizer of that length")
        if "codes" not in batch:
            check_shape(batch, self.shape)
        text = jnp.zeros((1, length), jnp.int32)
        codes = jnp.zeros((1, self.model.grid**2), jnp.int32)
        return {"model": self.model.init(key, text, codes)["params"]}

    def memory(self) -> Memory:
        """Nothing."""
        return {}

    def project(self, params: Params) -> Params:
        """The identity."""
        return params

    def codes(self, frozen: Params, batch: Raw) -> Array:
        """The image tokens [B, g^2] of a batch.

        Raises:
          ConfigError: there are none, and no parameters of a first stage that could make them.
        """
        if "codes" in batch:
            return batch["codes"]
        if self.coder is None or not frozen or FIRST not in frozen:
            raise ConfigError("the transformer needs a first stage: "
                              "config.first_stage=<folder of a discrete VAE>")
        return self.coder.encode(frozen[FIRST], batch["image"])

    def loss(
        self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool
    ) -> tuple[Array, Metrics]:
        """(2), with dropped captions and dropout in training only; logs (1) in bits per token."""
        k_drop, k_net = jax.random.split(key)
        text = batch["tokens"]
        codes = self.codes(frozen, batch)
        if train and self.drop:
            dropped = jax.random.uniform(k_drop, (len(text), 1)) < self.drop
            text = jnp.where(dropped, 0, text)
        terms = self.terms(params, text, codes, k_net if train else None)
        bits = {f"{part}_bits": jnp.mean(terms[part]) / jnp.log(2.0) for part in ("text", "image")}
        return jnp.mean(terms["loss"]), bits

    def terms(
        self, params: Params, text: Array, codes: Array, dropout: Key | None = None
    ) -> Metrics:
        """(1) and (2) of every sample, in nats per token: 'text', 'image', 'loss', each [B].

        Args:
          params: the task's.
          text: captions [B, T], 0 where they have ended.
          codes: image tokens [B, g^2].
          dropout: the key of dropout; None for none.
        """
        rngs = {} if dropout is None else {"dropout": dropout}
        variables = {"params": params["model"]}
        net = self.model
        if self.first_as_text:
            h = net.apply(variables, text, codes, method="hidden", rngs=rngs)
            logits = net.apply(variables, h, method="logits")
            labels = jnp.concatenate([self.padded(text)[:, 1:], codes[:, :1]], axis=1)
            text_nll = nll(logits[:, : net.text_length, : net.text_codes], labels)
            image_nll = nll(logits[:, net.text_length : -1, net.text_codes :], codes[:, 1:])
        else:
            text_logits, image_logits = net.apply(variables, text, codes, rngs=rngs)
            first = net.text_length - text_logits.shape[1]
            text_nll = nll(text_logits, self.padded(text)[:, first:])
            image_nll = nll(image_logits, codes)
        weighted = self.text_weight * text_nll + self.image_weight * image_nll
        loss = weighted / (self.text_weight + self.image_weight)
        return {"text": text_nll, "image": image_nll, "loss": loss}

    def padded(self, text: Array) -> Array:
        """Captions [B, T] as the network is to predict them: padding tokens where it has them."""
        if not self.model.pad:
            return text
        first = self.model.text_codes - self.model.text_length
        return jnp.where(text == 0, first + jnp.arange(self.model.text_length)[None], text)


def nll(logits: Array, labels: Array) -> Array:
    """Mean over tokens of -ln p: logits [B, n, V], labels [B, n] -> [B]."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen, axis=-1)
