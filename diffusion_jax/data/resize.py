"""Images made ready for the networks that measure them: uint8 in, what the network sees out.

Which resizer an FID was computed with moves it by more than many papers claim (Parmar et al. 2022, arXiv 2104.11222), so each
convention has a name. With s the pixel of the image that pixel d of the result is read at, for in and out pixels,

    tensorflow    s = d in / out,                   two neighbours,                  then (u - 128) / 128           (1)
    pytorch_fid   s = (d + 1/2) in / out - 1/2,     two neighbours,                  then 2 u / 255 - 1             (2)
    clean_fid     the same s, cubic filter as wide as a pixel covers, 0 <= u <= 255, then (u - 128) / 128           (3)

(1) is TensorFlow 1's, of ADM's evaluator, torch-fidelity, StyleGAN and EDM2; (1) and (2) alias when they shrink. DINOv2 sees
224 x 224 pixels of (3) without its limits, normalised by the mean and deviation of ImageNet.

The cubic filter of a parameter a is (Keys 1981, IEEE TASSP 29)

    k(x) = (a + 2)|x|^3 - (a + 3)|x|^2 + 1  for |x| <= 1,   a|x|^3 - 5a|x|^2 + 8a|x| - 4a  for |x| <= 2            (4)

Pillow and everything with antialiasing take a = -1/2; PyTorch without it takes a = -3/4.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_jax.build import unknown
from diffusion_jax.data.image import from_pillow, to_pillow
from diffusion_jax.nn.resample import bilinear
from diffusion_jax.types import Array

INCEPTION = 299
DINOV2 = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def bilinear_tensorflow(x: Array, height: int, width: int) -> Array:
    """The resizer of (1) on floats of any range: [B, H, W, C] -> [B, height, width, C]."""
    for axis, size in ((2, width), (1, height)):
        count = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * (np.float32(count) / np.float32(size))
        low = np.floor(place).astype(np.int32)
        share = jnp.asarray((place - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)]))
        before, after = (jnp.take(x, np.minimum(index, count - 1), axis=axis) for index in (low, low + 1))
        x = before + (after - before) * share
    return x


def antialiased(x: Array, height: int, width: int, method: str = "cubic") -> Array:
    """Pillow's and PyTorch's antialiased 'cubic' or 'linear' filter, not clipped: [B, H, W, C] -> [B, height, width, C]."""
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), method, antialias=True)


def clean(x: Array, height: int, width: int) -> Array:
    """The resizer of (3), in the range of uint8 but not rounded: [B, H, W, C] -> [B, height, width, C]."""
    return jnp.clip(antialiased(x, height, width), 0, 255)


def bicubic(x: Array, height: int, width: int, a: float = -0.75, slack: float = 0.0) -> Array:
    """(4) over four neighbours without antialiasing, the border repeated; PyTorch's by default.

    Args:
      x: [B, H, W, C].
      height, width: of the result.
      a: of (4).
      slack: pixels by which the result is spaced as if it were larger; DINO's positions have 0.1.

    Returns:
      [B, height, width, C], not clipped.
    """
    for axis, size in ((2, width), (1, height)):
        count = x.shape[axis]
        place = (np.arange(size) + 0.5) * count / (size + slack) - 0.5
        low = np.floor(place).astype(np.int32)
        weights = np.zeros((size, count), np.float32)
        for offset in range(-1, 3):
            np.add.at(weights, (np.arange(size), np.clip(low + offset, 0, count - 1)), _keys(np.abs(place - low - offset), a))
        x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision="highest"), 0, axis)
    return x


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """(4) for 0 <= x <= 2."""
    return np.where(x <= 1, ((a + 2) * x - (a + 3)) * x**2 + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)


def _tensorflow(x: Array, height: int, width: int) -> Array:
    return (bilinear_tensorflow(x, height, width) - 128) / 128


def _pytorch_fid(x: Array, height: int, width: int) -> Array:
    return 2 * bilinear(x / 255, height, width) - 1


def _clean_fid(x: Array, height: int, width: int) -> Array:
    return (clean(x, height, width) - 128) / 128


CONVENTIONS = {"tensorflow": _tensorflow, "pytorch_fid": _pytorch_fid, "clean_fid": _clean_fid}


def prepare(images: Array | np.ndarray, convention: str, size: int = INCEPTION) -> Array:
    """Images as Inception sees them under a convention; runs inside `jax.jit`.

    Args:
      images: [B, H, W, 3], uint8, or floats in the range 0 ... 255.
      convention: 'tensorflow' (1), 'pytorch_fid' (2) or 'clean_fid' (3).
      size: side of the result.

    Returns:
      float32 [B, size, size, 3], about in [-1, 1].

    Raises:
      ConfigError: no such convention; names the nearest.
    """
    if convention not in CONVENTIONS:
        raise unknown("resize convention", convention, CONVENTIONS)
    return CONVENTIONS[convention](jnp.asarray(images, jnp.float32), size, size)


def prepare_dinov2(images: Array | np.ndarray, resizer: str = "torch", size: int = DINOV2) -> Array:
    """Images as DINOv2 sees them in EDM2's FD-DINOv2 (Karras et al. 2024, arXiv 2312.02696).

    Args:
      images: uint8 [B, H, W, 3]; floats in the range 0 ... 255 too for 'torch', which runs inside `jax.jit`.
      resizer: 'torch', antialiased cubic on floats, not clipped; or 'pil', Pillow's cubic on uint8, on the host.
      size: side of the result.

    Returns:
      float32 [B, size, size, 3], about in [-2.2, 2.7].

    Raises:
      ConfigError: no such resizer; names the nearest.
    """
    if resizer == "torch":
        x = antialiased(jnp.asarray(images, jnp.float32), size, size)
    elif resizer == "pil":
        x = jnp.asarray(np.stack([bicubic_pil(image, size, size) for image in np.asarray(images)]), jnp.float32)
    else:
        raise unknown("DINOv2 resizer", resizer, ("torch", "pil"))
    mean, std = (jnp.asarray(value)[None, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std


def bicubic_pil(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's bicubic on the host: uint8 [h, w, 1 or 3] -> uint8 [height, width, 1 or 3]."""
    return from_pillow(to_pillow(image).resize((width, height), Image.Resampling.BICUBIC))
