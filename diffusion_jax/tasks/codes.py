"""First stages that turn images into tokens: a discrete VAE, or the VQ of latent diffusion."""
from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from diffusion_jax.build import ConfigError
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


@runtime_checkable
class Coded(Protocol):
    """A task whose images can be had as codes."""

    def as_coder(self) -> Coder:
        """What makes codes of images with this task's parameters.

        Raises:
          ConfigError: it has no codebook.
        """
        ...


def coder(first_stage: Any) -> Coder:
    """What makes codes with a first stage's task.

    Raises:
      ConfigError: one that makes none.
    """
    if not isinstance(first_stage, Coded):
        raise ConfigError(f"a {type(first_stage).__name__} makes no codes of images: "
                          "take a discrete VAE or a VQ autoencoder")
    return first_stage.as_coder()
