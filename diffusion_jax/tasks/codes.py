"""First stages that turn images into tokens: a discrete VAE, or the VQ of latent diffusion."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from diffusion_jax.build import ConfigError
from diffusion_jax.models.vae import VQ
from diffusion_jax.types import Array, Params

if TYPE_CHECKING:
    from diffusion_jax.tasks.autoencoder import Autoencoder


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


@runtime_checkable
class Coded(Protocol):
    """A task whose images can be had as codes."""

    def as_coder(self) -> Coder:
        """What makes codes of images with this task's parameters.

        Raises:
          ConfigError: it has no codebook.
        """
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
            raise ConfigError(f"a {type(self.task.model).__name__} autoencoder has no codes: "
                              "take a VQ or a discrete VAE")

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
        variables = {"params": params["model"]}
        z = self.task.model.apply(variables, codes.reshape(-1, *self.grid), method="lookup")
        return self.task.model.apply(variables, z, method="draw")[0]


def coder(first_stage: Any) -> Coder:
    """What makes codes with a first stage's task.

    Raises:
      ConfigError: one that makes none.
    """
    if not isinstance(first_stage, Coded):
        raise ConfigError(f"a {type(first_stage).__name__} makes no codes of images: "
                          "take a discrete VAE or a VQ autoencoder")
    return first_stage.as_coder()
