"""First stages that turn images into tokens: a discrete VAE, or the VQ autoencoder of latent diffusion (minDALL-E's form)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from diffusion_jax.build import ConfigError
from diffusion_jax.models.vae import VQ
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.types import Array, Params


class Coder(Protocol):
    """Images to tokens and back."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        ...

    @property
    def codes(self) -> int:
        """The size of the codebook."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        ...

    def encode(self, params: Params, images: Array) -> Array:
        """Images [B, H, W, C] in [-1, 1] -> codes int32 [B, h * w], row by row."""
        ...

    def decode(self, params: Params, codes: Array) -> Array:
        """Codes [B, h * w] -> images [B, H, W, C] in about [-1, 1]."""
        ...


@dataclass(frozen=True)
class VQCodes:
    """The tokens of a VQ autoencoder: the rows of its codebook that are nearest.

    Attributes:
      task: the autoencoder's.

    Raises:
      ConfigError: an autoencoder without a codebook.
    """

    task: Autoencoder

    def __post_init__(self):
        if not isinstance(self.task.model, VQ):
            raise ConfigError(f"a {type(self.task.model).__name__} autoencoder has no codes: take a VQ or a discrete VAE")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.task.shape

    @property
    def codes(self) -> int:
        """The size of the codebook."""
        return self.task.model.codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.task.model.latent_shape(*self.shape[:2])[:2]

    def encode(self, params: Params, images: Array) -> Array:
        """The nearest codes, int32 [B, h * w]."""
        h = self.task.posterior(params, images).mean
        index = self.task.model.apply({"params": params["model"]}, h, method="quantize").index
        return index.reshape(len(images), -1)

    def decode(self, params: Params, codes: Array) -> Array:
        """Images of codes [B, h * w]."""
        bound = {"params": params["model"]}
        z = self.task.model.apply(bound, codes.reshape(-1, *self.grid), method="lookup")
        return self.task.model.apply(bound, z, method="draw")[0]


def coder(first_stage: Any) -> Coder:
    """What makes codes with a first stage's task.

    Raises:
      ConfigError: one that makes none.
    """
    if isinstance(first_stage, DiscreteVAE):
        return first_stage
    if isinstance(first_stage, Autoencoder):
        return VQCodes(first_stage)
    raise ConfigError(f"a {type(first_stage).__name__} makes no codes of images: take a discrete VAE or a VQ autoencoder")
