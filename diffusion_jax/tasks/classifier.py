"""The noisy classifier task: to tell the class of an image at every noise level (Dhariwal & Nichol, arXiv 2105.05233, sec. 4).

    loss = -log p(y | x_t, t),   x_t = alpha x0 + sigma eps,   t ~ times                          (1)

The gradient of log p(y | x_t) guides a diffusion model (diffusion/guidance.py). That model may have another process: a noised
image is, up to a factor, the same image in both at the times of equal sigma / alpha,

    x' = k x,   t' = time'(sigma / alpha),   k = (alpha' + sigma') / (alpha + sigma)              (2)

with the classifier's own alpha', sigma' and time'. (2) is regular where alpha = 0.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.process import carried, noised
from diffusion_jax.diffusion.times import Memoryless, Uniform
from diffusion_jax.tasks.images import check_shape
from diffusion_jax.types import Array, Key, Memory, Metrics, Params, Process, Raw

TOP = 5


@dataclass(frozen=True)
class NoisyClassifier:
    """Trains and applies a classifier of noised images; the parameters are {'model': ...}.

    Attributes:
      model: the network, (x, noise) -> logits.
      process: the forward process.
      shape: (H, W, C) of one image.
      times: how training times are drawn.
    """

    model: nn.Module
    process: Process
    shape: tuple[int, int, int]
    times: Memoryless = Uniform()

    noun: ClassVar[str] = "a noisy classifier"
    needs = ("label",)
    target = "label"

    @property
    def num_classes(self) -> int:
        """How many labels it knows."""
        return self.model.num_classes

    def init(self, key: Key, batch: Raw) -> Params:
        """Fresh parameters; of the batch only shapes matter.

        Raises:
          ConfigError: the images have another shape than the task.
        """
        check_shape(batch, self.shape)
        x = jnp.zeros_like(batch["image"])
        return {"model": self.model.init(key, x, jnp.zeros(len(x)))["params"]}

    def memory(self) -> Memory:
        """Nothing."""
        return {}

    def project(self, params: Params) -> Params:
        """The identity."""
        return params

    def loss(self, params: Params, frozen: Params, batch: Raw, key: Key, train: bool) -> tuple[Array, Metrics]:
        """(1) at drawn times and noise, and the share of labels that are first, or among the first five, of the classifier's."""
        k_t, k_eps, k_net = jax.random.split(key, 3)
        x0, label = batch["image"], batch["label"]
        t = self.times(self.process, k_t, len(x0))
        xt = noised(self.process, x0, t, jax.random.normal(k_eps, x0.shape))
        logits = self.logits(params, xt, t, k_net if train else None)
        chosen = jnp.take_along_axis(logits, label[:, None], axis=1)                                 # [B, 1]
        ahead = jnp.sum(logits > chosen, axis=1)                                                     # [B]: 0 where it is right
        loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen[:, 0])
        top = {f"accuracy@{TOP}": jnp.mean(ahead < TOP)} if self.num_classes > TOP else {}
        return loss, {"accuracy": jnp.mean(ahead < 1), **top}

    def logits(self, params: Params, x: Array, t: Array, dropout: Key | None = None) -> Array:
        """[B, classes] at x_t [B, H, W, C], t a scalar or [B]; with a key its dropout acts."""
        label = jnp.broadcast_to(self.process.label(t), x.shape[:1])
        return self.model.apply({"params": params["model"]}, x, label, rngs={} if dropout is None else {"dropout": dropout})

    def features(self, params: Params, images: Array) -> Array:
        """What the last layer sees of clean images [B, H, W, C]: [B, D] float32."""
        label = jnp.broadcast_to(self.process.label(self.process.at(jnp.zeros(()))), images.shape[:1])
        return self.model.apply({"params": params["model"]}, images, label, penultimate=True)

    def log_prob(self, params: Params, x: Array, t: Array, label: Array, process: Process) -> Array:
        """log p(label | x_t) [B] for x_t [B, H, W, C] of any process, see (2); t a scalar or [B]."""
        logits = jax.nn.log_softmax(self.logits(params, *carried(process, self.process, x, t)))
        return jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
