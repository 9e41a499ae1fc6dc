"""Between pictures and what a diffusion model sees of them: themselves, or latents.

    x       = mean of the posterior of the picture, shifted and scaled (tasks/autoencoder.py)  (1)
    picture = decode(x)                                                                        (2)

Inpainting networks see

    [m, x of the picture, grey where m hides it],  m = 1 where it is made anew                 (3)
    [x of the picture, black where m hides it, 2 m - 1]                                        (4)

of which (3) is Stable Diffusion's form and (4) that of latent diffusion's paper (2112.10752).
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.resample import shrink
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array, Params, Raw

TILE = 96
"""The side of a latent above which it is decoded in tiles of that side, for the decoder's memory
grows with the area: 768 pixels of Stable Diffusion."""


def encode(model: Model, images: Array | np.ndarray) -> Array:
    """(1): pictures [B, H, W, C] in [-1, 1] -> x [B, h, w, c].

    Raises:
      ConfigError: a first stage whose parameters are not there.
    """
    autoencoder = model.task.autoencoder
    if autoencoder is None:
        return jnp.asarray(images)
    return _encode(autoencoder, _first(model), jnp.asarray(images))  # [B, h, w, c]


def decode(model: Model, x: Array | np.ndarray) -> Array:
    """(2): x [B, h, w, c] -> pictures [B, H, W, C], about [-1, 1]; large ones in tiles.

    Raises:
      ConfigError: a first stage whose parameters are not there.
    """
    autoencoder = model.task.autoencoder
    if autoencoder is None:
        return jnp.asarray(x)
    tile = TILE if max(x.shape[1:3]) > TILE else 0
    return _decode(autoencoder, _first(model), jnp.asarray(x), tile)  # [B, H, W, C]


def decoded(model: Model, batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of a model's samples [b, h, w, c] as pictures.

    Raises:
      ConfigError: a first stage whose parameters are not there, at once.
    """
    if model.task.autoencoder is None:
        return batches
    # Put there once, not with every batch; of the network itself nothing is needed any more.
    # No `yield`, so that a missing first stage is refused here and not at the first batch.
    on_device = replace(model, params=None, first=jax.device_put(_first(model)))
    return (np.asarray(decode(on_device, jnp.asarray(x))) for x in batches)


def is_known(model: Model, mask: Array | np.ndarray) -> Array:
    """The mask [B, H, W, 1] of known pixels, 1 there, as one of x, known where all of its pixels
    are: [B, h, w, 1]."""
    hole = jnp.asarray(mask) < 0.5  # [B, H, W, 1]
    factor = mask.shape[1] // model.task.shape[0]
    # The mean over the pixels of a latent is 0 only where all of them are known.
    share = shrink(hole.astype(jnp.float32), factor)  # [B, h, w, 1]
    return 1 - jnp.float32(share > 0)


def inpaint_condition(model: Model, images: Array | np.ndarray, mask: Array | np.ndarray) -> Raw:
    """{'inpaint': [B, h, w, 1 + c]} of pictures [B, H, W, C] and the mask [B, H, W, 1] of what is
    known of them.

    In the form (3), or (4) where the conditioner says mask_last.
    """
    parts = getattr(model.task.cond, "parts", (model.task.cond,))
    last = any(getattr(part, "mask_last", False) for part in parts)
    hole = jnp.float32(jnp.asarray(mask) < 0.5)  # [B, H, W, 1]
    factor = mask.shape[1] // model.task.shape[0]
    # Grey is 0 and black -1: what is hidden must not leak through the encoder.
    covered = encode(model, images * (1 - hole) - (hole if last else 0.0))  # [B, h, w, c]
    # The nearest pixel, as both papers' networks were trained with, not `is_known`'s careful one.
    hole = jnp.broadcast_to(hole[:, ::factor, ::factor], (*covered.shape[:3], 1))  # [B, h, w, 1]
    channels = [covered, 2 * hole - 1] if last else [hole, covered]
    return {"inpaint": jnp.concatenate(channels, axis=-1)}


def _first(model: Model) -> Params:
    if model.first is None:
        raise ConfigError(
            "this model makes latents, and its folder has no first stage to decode them: give the "
            "run's folder"
        )
    return model.first


@functools.partial(jax.jit, static_argnames=("autoencoder",))
def _encode(autoencoder: kinds.Encoding, params: Params, images: Array) -> Array:
    return autoencoder.encode(params, images)


@functools.partial(jax.jit, static_argnames=("autoencoder", "tile"))
def _decode(autoencoder: kinds.Encoding, params: Params, x: Array, tile: int) -> Array:
    return autoencoder.decode(params, x, tile)
