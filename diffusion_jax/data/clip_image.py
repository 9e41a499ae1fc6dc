"""What CLIP sees of a picture: its short side scaled by Pillow's bicubic filter, the middle cut out, the channels normalised."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.data.image import check_scaled, to_channels, to_unit
from diffusion_jax.data.resize import bicubic_pil


def prepare_clip(image: np.ndarray, size: int) -> np.ndarray:
    """A picture of any size as CLIP's square, on the host.

    Args:
      image: uint8 [h, w, 1 or 3].
      size: side of the square.

    Returns:
      float32 [size, size, 3] in [-1, 1]; the model normalises it.

    Raises:
      ConfigError: it is too long and narrow to be scaled.
    """
    return to_unit(_cut(image, size, 3))


def views(images: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Pictures as a CLIP sees them that was trained on those of `shape`.

    Args:
      images: uint8 [N, H, W, 1 or 3].
      shape: (size, size, channels) of the CLIP's pictures.

    Returns:
      uint8 [N, size, size, channels]: `images` themselves where they have this shape.

    Raises:
      ConfigError: they are too long and narrow to be scaled.
    """
    if images.shape[1:] == tuple(shape):
        return images
    return np.stack([_cut(image, shape[0], shape[-1]) for image in images])


def _cut(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    image = to_channels(image, channels)
    height, width = image.shape[:2]
    short = min(height, width)
    tall, wide = size * height // short, size * width // short
    check_scaled((width, height), (wide, tall))
    scaled = bicubic_pil(image, tall, wide)
    top, left = (round((side - size) / 2) for side in scaled.shape[:2])
    return scaled[top : top + size, left : left + size]
