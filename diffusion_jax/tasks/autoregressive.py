"""The autoregressive task: the next token of a caption and of its image (Ramesh et al. 2021, arXiv 2102.12092, section 2.2).

    text  = mean -ln p(text_i | text_<i),   image = mean -ln p(code_i | text, code_<i)        (1)
    loss  = (w_t text + w_i image) / (w_t + w_i)                                      (2)      1 and 7 in the paper

The codes are the most likely ones of a first stage, which is trained before and frozen. A caption is dropped, replaced by the
empty one, at its own rate, so that the network can be guided (2207.12598).

ru-DALL-E without a start token has no place that tells the first code of an image as such: it is trained as a text label, in the
mean of the text, and (1) counts the other codes (`first_as_text`).

The autoregressive prior of unCLIP (2204.06125) makes codes of CLIP's embeddings: its first stage is the frozen CLIP of
tasks/embedder.py, its network models/prior_ar.py, which sees a text as that CLIP does, and its loss the second mean of (1).
"""
from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.codes import Coder, coder
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.tasks.embedder import CODES, DOTS, Embedder
from diffusion_jax.tasks.images import check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw

FIRST = "first_stage"


@dataclass(frozen=True)
class Autoregressive:
    """Trains and applies a transformer over text and image tokens; the parameters are {'model': ...}.

    A batch holds 'tokens' [B, T] and either 'codes' [B, g^2], or 'image' and then frozen['first_stage'] the first stage's
    parameters.

    Attributes:
      model: `models.dalle:DALLE`, or of a prior `models.prior_ar:ARPrior`.
      first_stage: the task that makes codes of images, a discrete VAE or a VQ; None for codes that come with the data. Of a
        prior the CLIP.
      text_weight, image_weight: of (2).
      drop: the rate at which captions are dropped in training.
      first_as_text: see the top of this file.

    Raises:
      ConfigError: a first stage whose codes or grid are not the transformer's.
    """

    model: nn.Module
    first_stage: DiscreteVAE | Autoencoder | Embedder | None = None
    text_weight: float = 1.0
    image_weight: float = 7.0
    drop: float = 0.0
    first_as_text: bool = False

    num_classes = 0

    def __post_init__(self):
        first, net = self.coder, self.model
        if self.embeds and (self.first_stage.components > net.length or (net.codes, net.dots) != (CODES, DOTS)):
            raise ConfigError(f"the CLIP's embeddings are {self.first_stage.components} codes of {CODES}, and {DOTS} of a text: "
                              f"set the prior's length to at least that, codes and dots to these")
        if first is not None and (first.codes != net.image_codes or first.grid != (net.grid, net.grid)):
            raise ConfigError(f"the first stage makes {first.grid} tokens of {first.codes} codes, the transformer reads "
                              f"{(net.grid, net.grid)} of {net.image_codes}: change one")

    @property
    def needs(self) -> tuple[str, ...]:
        """What a data set must hold beside the images."""
        return ("tokens",) if self.embeds else ("caption",)

    @property
    def embeds(self) -> bool:
        """Whether it makes embeddings, not images: a prior of unCLIP."""
        return isinstance(self.first_stage, Embedder)

    @property
    def coder(self) -> Coder | None:
        """What makes codes of images, and images of codes; None without a first stage, and of a prior."""
        return None if self.first_stage is None or self.embeds else coder(self.first_stage)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image; of one token each where there is no first stage."""
        return (self.model.grid, self.model.grid, 1) if self.first_stage is None else self.first_stage.shape

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: captions of another length than the transformer's, or images of another shape than the first stage's.
        """
        if self.embeds:
            check_shape(batch, self.first_stage.shape)
            raw, codes = self.first_stage.blank(batch), jnp.zeros((1, self.first_stage.components), jnp.int32)
            raw["clip_dot"] = jnp.zeros(len(raw["image"]), jnp.int32)
            return {"model": self.model.init(key, {name: value[:1] for name, value in raw.items()}, codes)["params"]}
        if "tokens" not in batch or batch["tokens"].shape[1] != self.model.text_length:
            found = batch["tokens"].shape[1] if "tokens" in batch else "none"
            raise ConfigError(f"the transformer reads captions of {self.model.text_length} tokens, the data has {found}: "
                              "give data.decode a tokenizer of that length")
        if "codes" not in batch:
            check_shape(batch, self.shape)
        text, image = jnp.zeros((1, self.model.text_length), jnp.int32), jnp.zeros((1, self.model.grid**2), jnp.int32)
        return {"model": self.model.init(key, text, image)["params"]}

    def memory(self) -> Memory:
        """Nothing."""
        return {}

    def project(self, params: Params) -> Params:
        """The identity."""
        return params

    def codes(self, frozen: Params, batch: Raw) -> Array:
        """The image tokens [B, g^2] of a batch."""
        if "codes" in batch:
            return batch["codes"]
        if self.coder is None or not frozen or FIRST not in frozen:
            raise ConfigError("the transformer needs a first stage: config.first_stage=<folder of a discrete VAE>")
        return self.coder.encode(frozen[FIRST], batch["image"])

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(2), with dropped captions and dropout in training only; logs (1) in bits per token."""
        k_drop, k_net = jax.random.split(key)
        if self.embeds:
            return self._of_embeddings(params, frozen, batch, k_drop if train else None, k_net if train else None)
        text, codes = batch["tokens"], self.codes(frozen, batch)
        if train and self.drop:
            text = jnp.where(jax.random.uniform(k_drop, (len(text), 1)) < self.drop, 0, text)
        terms = self.terms(params, text, codes, k_net if train else None)
        bits = {f"{part}_bits": jnp.mean(terms[part]) / jnp.log(2.0) for part in ("text", "image")}
        return jnp.mean(terms["loss"]), bits

    def _of_embeddings(
        self, params: Params, frozen: Params, batch: Raw, drop: Key | None, dropout: Key | None
    ) -> tuple[Array, Metrics]:
        """The loss of a prior; with keys texts are dropped, and dropout acts."""
        if not frozen or FIRST not in frozen:
            raise ConfigError("the prior makes embeddings of a CLIP: config.first_stage=<folder of a CLIP>")
        clip, first = self.first_stage, frozen[FIRST]
        raw = clip.seen(first, batch)
        codes = clip.encode(first, raw["clip_image"])
        kept = jnp.ones(len(codes)) if drop is None else 1.0 * (jax.random.uniform(drop, (len(codes),)) >= self.drop)
        raw = {**raw, "clip_dot": clip.dot(first, raw["clip_image"], raw["clip_text"]), "with_text": kept}
        rngs = {} if dropout is None else {"dropout": dropout}
        loss = jnp.mean(nll(self.model.apply({"params": params["model"]}, raw, codes, rngs=rngs), codes))
        return loss, {"image_bits": loss / jnp.log(2.0)}

    def terms(self, params: Params, text: Array, codes: Array, dropout: Key | None = None) -> Metrics:
        """(1) and (2) of every sample, in nats per token: 'text', 'image', 'loss', each [B]; with a key dropout acts."""
        rngs = {} if dropout is None else {"dropout": dropout}
        net = self.model
        if self.first_as_text:
            h = net.apply({"params": params["model"]}, text, codes, method="hidden", rngs=rngs)
            both = net.apply({"params": params["model"]}, h, method="logits")
            labels = jnp.concatenate([self.padded(text)[:, 1:], codes[:, :1]], axis=1)
            text_nll = nll(both[:, : net.text_length, : net.text_codes], labels)
            image_nll = nll(both[:, net.text_length : -1, net.text_codes :], codes[:, 1:])
        else:
            text_logits, image_logits = net.apply({"params": params["model"]}, text, codes, rngs=rngs)
            text_nll = nll(text_logits, self.padded(text)[:, net.text_length - text_logits.shape[1] :])
            image_nll = nll(image_logits, codes)
        weighted = self.text_weight * text_nll + self.image_weight * image_nll
        return {"text": text_nll, "image": image_nll, "loss": weighted / (self.text_weight + self.image_weight)}

    def padded(self, text: Array) -> Array:
        """Captions [B, T] as the network is to predict them: padding tokens where it has them."""
        first = self.model.text_codes - self.model.text_length
        return jnp.where(text == 0, first + jnp.arange(self.model.text_length)[None], text) if self.model.pad else text


def nll(logits: Array, labels: Array) -> Array:
    """Mean over tokens of -ln p: logits [B, n, V], labels [B, n] -> [B]."""
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen, axis=-1)
