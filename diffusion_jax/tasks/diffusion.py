"""The diffusion task: denoising pictures, or latents of a frozen autoencoder (tasks/denoising.py).

A first stage comes before it, or none:

    an autoencoder    x0 is a drawn latent of the picture, unless the data holds latents already
    a CLIP            the decoder of unCLIP: x0 is the picture, embeddings of it and of its caption
                      join the conditions (tasks/embedder.py)
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.denoising import DenoisingTask
from diffusion_jax.tasks.images import check_shape
from diffusion_jax.types import Augments, FirstStage, Key, Params, Raw


@dataclass(frozen=True)
class Diffusion(DenoisingTask):
    """Trains and applies a network that denoises pictures or latents.

    Attributes:
      shape: (H, W, C) of what the network sees, a picture or a latent.
      first_stage: the frozen autoencoder whose latents the network sees, `shape` being theirs, or
        the CLIP of a decoder of unCLIP; None for pixels under conditions of the data. With an
        autoencoder a batch holds latents, or pictures of its shape, which are encoded on the way.
    and those of `DenoisingTask`.

    Raises:
      ConfigError: what `DenoisingTask` refuses.
    """

    shape: tuple[int, int, int]
    first_stage: FirstStage | None = None

    noun: ClassVar[str] = "a diffusion model"

    @property
    def autoencoder(self) -> kinds.Encoding | None:
        """The first stage, where it is one that makes latents of pictures."""
        return self.first_stage if isinstance(self.first_stage, kinds.Encoding) else None

    @property
    def embedder(self) -> kinds.Embeds | None:
        """The first stage, where it is one that adds embeddings: that of a decoder of unCLIP."""
        return self.first_stage if isinstance(self.first_stage, kinds.Embeds) else None

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pictures that it makes."""
        first = self.autoencoder
        if first is None:
            return self.shape
        # Its own shape is that of the pictures that it was trained on, and latents may be of others.
        blank = {"image": jax.ShapeDtypeStruct((1, *first.shape), jnp.float32)}
        own = jax.eval_shape(first.blank, blank)["image"].shape[1:3]
        sides = zip(first.shape[:2], self.shape[:2], own, strict=True)
        height, width = (side * latent // there for side, latent, there in sides)
        return height, width, first.shape[-1]

    @property
    def needs(self) -> tuple[str, ...]:
        """What a data set must hold beside the images."""
        first = self.first_stage
        made = self.cond.derived if first is None else (*self.cond.derived, *first.makes)
        keys = [key for key in self.cond.keys if key not in made]
        return tuple(keys) if first is None else tuple(dict.fromkeys([*first.needs, *keys]))

    def blank(self, batch: Raw) -> Raw:
        """A batch with zeros for what the first stage makes.

        Raises:
          ConfigError: the images have another shape than the pictures, and are no latents either;
            they are latents, and the conditioner augments pictures.
        """
        if self._holds_latents(batch):
            if isinstance(self.cond, Augments):
                raise ConfigError("the data are latents, which cannot be augmented: train on the "
                                  "pictures, or leave out Augmented")
            return batch
        check_shape(batch, self.picture_shape)
        return batch if self.first_stage is None else self.first_stage.blank(batch)

    def prepare(self, batch: Raw, frozen: Params, key: Key | None) -> Raw:
        """A batch as the first stage sees it, without a key with means for latents; unchanged
        without one, and where it holds latents.

        Raises:
          ConfigError: the parameters of the first stage are not in `frozen`.
        """
        if self.first_stage is None or self._holds_latents(batch):
            return batch
        if not frozen or "first_stage" not in frozen:
            raise ConfigError("images are encoded by a first stage: "
                              "name its folder in config.first_stage")
        return self.first_stage.prepare(frozen["first_stage"], batch, key)

    def _holds_latents(self, batch: Raw) -> bool:
        return self.autoencoder is not None and batch["image"].shape[1:] == self.shape
