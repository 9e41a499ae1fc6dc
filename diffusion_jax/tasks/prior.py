"""The priors of unCLIP (Ramesh et al. 2022): from a text to CLIP's embedding of a picture.

With x, codes and dot those of tasks/embedder.py, section 2.2 of arXiv 2204.06125 trains either of

    diffusion         tasks/denoising.py's loss with x0 = x, under the text                     (1)
    autoregressive    mean_k -ln p(code_k | text, dot, code_<k)                                 (2)

A text is dropped at its own rate, so that both can be guided. Neither makes a picture: that is what
a decoder does, a `tasks.diffusion:Diffusion` whose first stage is the same CLIP.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.tasks.autoregressive import nll
from diffusion_jax.tasks.denoising import DenoisingTask
from diffusion_jax.tasks.embedder import CODES, DOTS, Embedder
from diffusion_jax.tasks.images import check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Raw

NEEDS_CLIP = "the prior makes embeddings of a CLIP: config.first_stage=<folder of a CLIP>"


@dataclass(frozen=True)
class DiffusionPrior(DenoisingTask):
    """Trains and applies a network that denoises standardised embeddings, (1).

    A batch holds pictures and the tokens of their captions; frozen['first_stage'] holds the
    parameters of the CLIP.

    Attributes:
      first_stage: the CLIP; `shape` is that of its embeddings, (F,).
    and those of `DenoisingTask`.

    Raises:
      ConfigError: what `DenoisingTask` refuses.
    """

    first_stage: Embedder = field(kw_only=True)

    noun: ClassVar[str] = "a prior of unCLIP"

    @property
    def needs(self) -> tuple[str, ...]:
        """Captions, which the CLIP embeds."""
        return self.first_stage.needs

    def blank(self, batch: Raw) -> Raw:
        """A batch with zeros for embeddings of texts and pictures, the latter as 'image' too.

        Raises:
          ConfigError: the images have another shape than the CLIP sees.
        """
        check_shape(batch, self.first_stage.shape)
        batch = self.first_stage.blank(batch)
        return {**batch, "image": jnp.zeros_like(batch["clip_image"])}

    def prepare(self, batch: Raw, frozen: Params, key: Key | None) -> Raw:
        """A batch with embeddings of its texts and pictures; 'image' is x.

        Raises:
          ConfigError: the parameters of the CLIP are not in `frozen`.
        """
        first = _first(frozen)
        batch = self.first_stage.prepare(first, batch)
        return {**batch, "image": self.first_stage.standardised(first, batch["clip_image"])}

    def embeddings(self, first: Params, made: Array) -> Array:
        """The embeddings [B, F] of x [B, F]; `first` are the parameters of the CLIP."""
        return self.first_stage.restored(first, made)


@dataclass(frozen=True)
class AutoregressivePrior:
    """Trains and applies a transformer over codes of embeddings, (2); parameters {'model': ...}.

    A batch holds pictures and the tokens of their captions; frozen['first_stage'] holds the
    parameters of the CLIP.

    Attributes:
      model: `models.prior_ar:ARPrior`.
      first_stage: the CLIP.
      drop: the rate at which texts are dropped in training.

    Raises:
      ConfigError: a network for other codes than the CLIP's.
    """

    model: nn.Module
    first_stage: Embedder
    drop: float = 0.0

    noun: ClassVar[str] = "a prior of unCLIP"
    num_classes = 0

    def __post_init__(self):
        length = self.first_stage.components
        if length > self.model.length or (self.model.codes, self.model.dots) != (CODES, DOTS):
            raise ConfigError(f"the CLIP's embeddings are {length} codes of {CODES}, and {DOTS} of "
                              "a text: set the prior's length to at least that, codes and dots "
                              "to these")

    @property
    def needs(self) -> tuple[str, ...]:
        """Captions, which the CLIP embeds."""
        return self.first_stage.needs

    @property
    def shape(self) -> tuple[int]:
        """(F,) of an embedding."""
        return (self.first_stage.features,)

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: the images have another shape than the CLIP sees.
        """
        check_shape(batch, self.first_stage.shape)
        raw = {name: value[:1] for name, value in self.first_stage.blank(batch).items()}
        raw["clip_dot"] = jnp.zeros(1, jnp.int32)
        codes = jnp.zeros((1, self.first_stage.components), jnp.int32)
        return {"model": self.model.init(key, raw, codes)["params"]}

    def memory(self) -> Memory:
        """Nothing."""
        return {}

    def project(self, params: Params) -> Params:
        """The identity."""
        return params

    def loss(
        self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool
    ) -> tuple[Array, Metrics]:
        """(2), with dropped texts and dropout in training only; logs it in bits per code.

        Raises:
          ConfigError: the parameters of the CLIP are not in `frozen`.
        """
        k_drop, k_net = jax.random.split(key)
        clip = self.first_stage
        first = _first(frozen)
        raw = clip.prepare(first, batch)
        codes = clip.encode(first, raw["clip_image"])
        with_text = jnp.ones(len(codes))
        if train:
            with_text = 1.0 * (jax.random.uniform(k_drop, (len(codes),)) >= self.drop)
        dot = clip.dot(first, raw["clip_image"], raw["clip_text"])
        raw = {**raw, "clip_dot": dot, "with_text": with_text}
        rngs = {"dropout": k_net} if train else {}
        logits = self.model.apply({"params": params["model"]}, raw, codes, rngs=rngs)
        loss = jnp.mean(nll(logits, codes))
        return loss, {"image_bits": loss / jnp.log(2.0)}

    def embeddings(self, first: Params, made: Array) -> Array:
        """The embeddings [B, F] of codes int32 [B, n]; `first` are the parameters of the CLIP."""
        return self.first_stage.decode(first, made)


def _first(frozen: Params) -> Params:
    """The parameters of the CLIP among the frozen ones of a step."""
    if not frozen or "first_stage" not in frozen:
        raise ConfigError(NEEDS_CLIP)
    return frozen["first_stage"]
