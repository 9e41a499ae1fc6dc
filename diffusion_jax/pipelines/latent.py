"""Between pictures and what a diffusion model sees of them: themselves, or the latents of a first stage.

    x       = mean of the posterior of the picture, shifted and scaled        (tasks/autoencoder.py)                          (1)
    picture = decode(x)                                                                                                       (2)
    inpainting networks see [m, x of the picture, grey where m hides it],  m = 1 where it is made anew   (Stable Diffusion)   (3)
                         or [x of the picture, black where m hides it, 2 m - 1]                          (2112.10752)         (4)
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Joint
from diffusion_jax.models.text_cond import Stack
from diffusion_jax.nn.resample import shrink
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Params, Raw

TILE = 96
"""The side of a latent from which on it is decoded in tiles: 768 pixels of Stable Diffusion."""


class Space(NamedTuple):
    """Where a model works.

    Attributes:
      task: the model.
      frozen: {'first_stage': the parameters of its first stage}, or None where it has none.
    """

    task: Diffusion
    frozen: Params = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of a picture."""
        return self.task.shape if self.task.autoencoder is None else self.task.autoencoder.shape

    def encode(self, images: Array) -> Array:
        """(1): pictures [B, H, W, C] in [-1, 1] -> x [B, h, w, c].

        Raises:
          ConfigError: a first stage whose parameters are not there.
        """
        return images if self.task.autoencoder is None else _encode(self.task.autoencoder, self.params, images)

    def decode(self, x: Array) -> Array:
        """(2): x [B, h, w, c] -> pictures [B, H, W, C], about [-1, 1]; large ones in tiles.

        Raises:
          ConfigError: a first stage whose parameters are not there.
        """
        if self.task.autoencoder is None:
            return x
        return _decode(self.task.autoencoder, self.params, x, TILE if max(x.shape[1:3]) > TILE else 0)

    def known(self, mask: Array) -> Array:
        """The mask [B, H, W, 1] of known pixels, 1 there, as one of x, known where all of its pixels are: [B, h, w, 1]."""
        hole = jnp.asarray(mask) < 0.5
        return 1 - jnp.float32(shrink(hole.astype(jnp.float32), mask.shape[1] // self.task.shape[0]) > 0)

    def seen(self, images: Array, mask: Array) -> Raw:
        """{'inpaint': [B, h, w, 1 + c]} of pictures [B, H, W, C] and the mask [B, H, W, 1] of what is known of them.

        In the form (3), or (4) where the conditioner's `Stack` says mask_last.
        """
        parts = self.task.cond.parts if isinstance(self.task.cond, Joint) else (self.task.cond,)
        last = any(isinstance(part, Stack) and part.mask_last for part in parts)
        hole, factor = jnp.float32(jnp.asarray(mask) < 0.5), mask.shape[1] // self.task.shape[0]
        kept = self.encode(images * (1 - hole) - (hole if last else 0.0))
        hole = jnp.broadcast_to(hole[:, ::factor, ::factor], (*kept.shape[:3], 1))
        return {"inpaint": jnp.concatenate([kept, 2 * hole - 1] if last else [hole, kept], axis=-1)}

    @property
    def params(self) -> Params:
        """The parameters of the first stage; `ConfigError` where they are not there."""
        if not self.frozen:
            raise ConfigError("this model makes latents, and its folder has no first stage to decode them: give the run's folder")
        return self.frozen["first_stage"]


@functools.partial(jax.jit, static_argnames=("first",))
def _encode(first: Autoencoder, params: Params, images: Array) -> Array:
    return first.encode(params, images)


@functools.partial(jax.jit, static_argnames=("first", "tile"))
def _decode(first: Autoencoder, params: Params, x: Array, tile: int) -> Array:
    return first.decode(params, x, tile)


def decoded(task: Diffusion, frozen: Params, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of a task's samples [b, h, w, c] as pictures: themselves where it has no first stage.

    Raises:
      ConfigError: a first stage whose parameters are not there.
    """
    if task.autoencoder is None:
        return batches
    space = Space(task, {"first_stage": jax.device_put(Space(task, frozen).params)})
    return (np.asarray(space.decode(jnp.asarray(x))) for x in batches)
