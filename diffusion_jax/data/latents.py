"""Latents of a fixed autoencoder, brought to the mean and spread that a diffusion model expects.

    x = (mean + eps std) scale + bias,   scale = s / raw_std,   bias = m - raw_mean scale         (1)  EDM2, 2312.02696 app. B.7

mean and std are the autoencoder's posterior of one image, raw_mean and raw_std those of the latents of a data set, per channel;
m = 0 and s = 0.5 in EDM2.
"""
from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from diffusion_jax.types import Array


@dataclass(frozen=True)
class Whitening:
    """(1). The defaults are EDM2's, for images of ImageNet in [0, 1] through Stable Diffusion's autoencoder (sd-vae-ft-mse).

    Attributes:
      raw_mean, raw_std: of the data set's latents, per channel.
      mean, std: those wanted.
    """

    raw_mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    raw_std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    mean: float = 0.0
    std: float = 0.5

    @property
    def scale(self) -> Array:
        """[C]."""
        return self.std / jnp.asarray(self.raw_std, jnp.float32)

    @property
    def bias(self) -> Array:
        """[C]."""
        return self.mean - jnp.asarray(self.raw_mean, jnp.float32) * self.scale

    def encode(self, mean: Array, std: Array, eps: Array) -> Array:
        """(1): a draw from the posterior, [B, H, W, C] each."""
        return (mean + eps * std) * self.scale[None, None, None] + self.bias[None, None, None]

    def decode(self, x: Array) -> Array:
        """What the autoencoder's decoder expects of x [B, H, W, C]."""
        return (x - self.bias[None, None, None]) / self.scale[None, None, None]
