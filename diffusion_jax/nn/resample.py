"""Images made larger and smaller."""
from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Array


def halve(x: Array) -> Array:
    """Means over 2x2 pixels: [B, H, W, C] -> [B, H/2, W/2, C]."""
    return shrink(x, 2)


def shrink(x: Array, factor: int) -> Array:
    """Means over factor x factor pixels: [B, H, W, C] -> [B, H/factor, W/factor, C].

    Raises:
      ConfigError: the factor does not divide the sides.
    """
    b, h, w, c = x.shape
    if h % factor or w % factor:
        raise ConfigError(f"an image of {h}x{w} does not shrink {factor} times: change one")
    return jnp.mean(x.reshape(b, h // factor, factor, w // factor, factor, c), axis=(2, 4))


def double(x: Array) -> Array:
    """Every pixel four times: [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def bilinear(x: Array, height: int, width: int) -> Array:
    """Bilinear interpolation between pixel centres, as PyTorch's with align_corners=False and no antialiasing.

    Args:
      x: [B, H, W, C].
      height, width: the new size.

    Returns:
      [B, height, width, C].
    """
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "linear", antialias=False)
