"""The published networks that images are measured by, with the input that each of them wants."""
from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from diffusion_jax.build import unknown
from diffusion_jax.data.resize import CONVENTIONS, prepare, prepare_dinov2
from diffusion_jax.metrics.extract import Network
from diffusion_jax.models.dinov2 import DINOv2, sized
from diffusion_jax.models.inception import Inception
from diffusion_jax.types import Array, Params


def colour(images: Array) -> Array:
    """[B, H, W, 1 or 3] -> [B, H, W, 3]."""
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


@dataclass(frozen=True)
class SeeInception:
    """The FID Inception under one resize convention.

    Attributes:
      convention: of `data.resize.CONVENTIONS`.
    """

    convention: str

    def __call__(self, params: Params, images: Array) -> dict[str, Array]:
        """uint8 [B, H, W, C] -> 'features' [B, 2048], 'spatial' [B, 2023] and, without bias, 'logits' [B, 1008]."""
        found = Inception().apply({"params": params}, prepare(colour(images), self.convention))
        return {"features": found.pool3, "spatial": found.spatial, "logits": found.unbiased}


@dataclass(frozen=True)
class SeeDINOv2:
    """DINOv2 as EDM2 feeds it.

    Attributes:
      model: the network.
    """

    model: DINOv2 = DINOv2()

    def __call__(self, params: Params, images: Array) -> dict[str, Array]:
        """uint8 [B, H, W, C] -> 'features' [B, D], 1024 of ViT-L."""
        return {"features": self.model.apply({"params": params}, prepare_dinov2(colour(images)))}


def inception(params: Params, convention: str = "tensorflow") -> Network:
    """The network of FID, sFID, IS, KID and of ADM's precision and recall, labelled with its resize convention.

    Raises:
      ConfigError: no such convention; names the nearest.
    """
    if convention not in CONVENTIONS:
        raise unknown("resize convention", convention, CONVENTIONS)
    return Network(f"inception, {convention}", SeeInception(convention), params)


def dinov2(params: Params) -> Network:
    """The network of FD-DINOv2, or one of another size, which has a name of its own."""
    model = sized(params) if params else DINOv2()
    size = "" if model == DINOv2() else f", {model.width} wide" + ", registers" * bool(model.registers)
    return Network(f"dinov2{size}", SeeDINOv2(model), params)
