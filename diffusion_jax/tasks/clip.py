"""The contrastive task of CLIP (Radford et al. 2021, arXiv 2103.00020): which text belongs to which picture of a batch.

With the logits (1) of models/clip.py over all N pictures and all N texts of a step,

    loss = (mean_i -log softmax_j(logits_ij)[i] + mean_j -log softmax_i(logits_ij)[j]) / 2            (1)

and s clamped so that exp(s) <= 100 after each update. The batch is the global one: its arrays are sharded over the devices, and
the product of all features with all features gathers them, so the loss depends neither on the number of devices nor on the number
of microbatches (train/step.py).

A CLIP that sees noised pictures, and their noise level, guides a diffusion model (Nichol et al. 2021, arXiv 2112.10741):

    x_t = alpha x0 + sigma eps,  t ~ times;     log p(y | x_t) = exp(s) I(x_t, t) . T(y)              (2)
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from diffusion_jax.diffusion.process import carried, noised
from diffusion_jax.diffusion.times import Memoryless, Uniform
from diffusion_jax.models.clip import logits, unit
from diffusion_jax.tasks.images import check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Process, Raw

TOP = 5


def contrastive(per_image: Array) -> tuple[Array, Metrics]:
    """(1) of logits [N, N], rows the pictures, and the share of rows whose own text is first, or among the first five."""
    own = jnp.diagonal(per_image)
    loss = (jnp.mean(jax.nn.logsumexp(per_image, axis=1) - own) + jnp.mean(jax.nn.logsumexp(per_image, axis=0) - own)) / 2
    ahead = jnp.sum(per_image > own[:, None], axis=1)
    return loss, {"R@1": jnp.mean(ahead < 1), f"R@{TOP}": jnp.mean(ahead < TOP)}


@dataclass(frozen=True)
class Contrastive:
    """Trains and applies a CLIP; the parameters are {'model': ...}.

    Attributes:
      model: models/clip.py:CLIP, whose image tower has as many steps as the process, if there is one.
      shape: (H, W, C) of one image.
      max_scale: the largest exp(s).
      process: the forward process of (2); None for clean pictures.
      times: how training times are drawn.

    What it guides towards stands in raw[target], the unit vectors of texts.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    max_scale: float = 100.0
    process: Process | None = None
    times: Memoryless = Uniform()

    noun: ClassVar[str] = "a CLIP"
    needs = ("tokens",)
    target = "clip_text"
    num_classes = 0

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: the images have another shape than the task.
        """
        check_shape(batch, self.shape)
        x, tokens = jnp.zeros((1, *self.shape)), jnp.zeros((1, batch["tokens"].shape[1]), jnp.int32)
        return {"model": self.model.init(key, x, tokens, *self._label(jnp.zeros(1)))["params"]}

    def memory(self) -> Memory:
        """Nothing."""
        return {}

    def project(self, params: Params) -> Params:
        """s clamped."""
        model = params["model"]
        scale = jnp.minimum(model["logit_scale"], np.log(self.max_scale))
        return {**params, "model": {**model, "logit_scale": scale}}

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(1), with a process at drawn times and noise."""
        return self.overall(params, frozen, self.outputs(params, frozen, batch, key, train), train)

    def outputs(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> dict[str, Array]:
        """The features 'image' and 'text' of a batch, each [B, F], of any length."""
        k_t, k_eps = jax.random.split(key)
        x, label = batch["image"], ()
        if self.process is not None:
            t = self.times(self.process, k_t, len(x))
            x, label = noised(self.process, x, t, jax.random.normal(k_eps, x.shape)), self._label(t)
        images, texts, _ = self.model.apply({"params": params["model"]}, x, batch["tokens"], *label)
        return {"image": images, "text": texts}

    def overall(self, params: Params, frozen: Params, outputs: Params, train: bool) -> tuple[Array, Metrics]:
        """(1) of the features of the whole batch."""
        scale = meta.unbox(params["model"]["logit_scale"])
        loss, metrics = contrastive(logits(outputs["image"], outputs["text"], scale))
        return loss, {**metrics, "scale": jnp.exp(scale)}

    def _label(self, t: Array) -> tuple[Array, ...]:
        """What a noised CLIP sees of times [B]."""
        return () if self.process is None else (self.process.label(t),)

    def features(self, params: Params, images: Array) -> Array:
        """What the image tower says, [B, F] of any length, of clean images [B, H, W, C] in [-1, 1]."""
        label = () if self.process is None else self._label(jnp.broadcast_to(self.process.at(jnp.zeros(())), images.shape[:1]))
        return self.model.apply({"params": params["model"]}, images, *label, method="encode_image")

    def encode_image(self, params: Params, images: Array) -> Array:
        """Unit vectors [B, F] of clean images [B, H, W, C] in [-1, 1]."""
        return unit(self.features(params, images))

    def encode_text(self, params: Params, tokens: Array) -> Array:
        """Unit vectors [N, F] of tokens [N, T]."""
        return unit(self.model.apply({"params": params["model"]}, tokens, method="encode_text"))

    def log_prob(self, params: Params, x: Array, t: Array, texts: Array, process: Process) -> Array:
        """(2) up to a constant, [B], of x_t [B, H, W, C] of any process and unit vectors [B, F]; t a scalar or [B].

        A CLIP of clean pictures takes x_t as it is, brought to the size of x0: x_t / (alpha + sigma).
        """
        model = params["model"]
        if self.process is None:
            total = process.alpha(t) + process.sigma(t)
            seen, label = x / jnp.reshape(total, (-1, 1, 1, 1)), ()
        else:
            seen, t = carried(process, self.process, x, t)
            label = self._label(jnp.broadcast_to(t, x.shape[:1]))
        images = unit(self.model.apply({"params": model}, seen, *label, method="encode_image"))
        return jnp.exp(model["logit_scale"]) * jnp.sum(images * texts, axis=-1)
