"""Images made larger and smaller."""
from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

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


def downsample(x: Array, filter: Sequence[float] = (1, 1)) -> Array:
    """Half the size after a low-pass filter, [B, H, W, C] -> [B, H/2, W/2, C]; (1, 1) gives the means over 2x2 pixels.

    Args:
      x: [B, H, W, C], H and W even.
      filter: an even number of taps, the same along both axes; scaled to sum 1.
    """
    return halve(x) if tuple(filter) == (1, 1) else _filtered(x, np.asarray(filter), stride=2)


def upsample(x: Array, filter: Sequence[float] = (1, 1)) -> Array:
    """Twice the size, smoothed by a low-pass filter, [B, H, W, C] -> [B, 2H, 2W, C]; (1, 1) copies every pixel.

    Args:
      x: [B, H, W, C].
      filter: an even number of taps, the same along both axes; scaled to sum 1.
    """
    return double(x) if tuple(filter) == (1, 1) else _filtered(x, np.asarray(filter)[::-1], dilation=2)


def _filtered(x: Array, filter: np.ndarray, stride: int = 1, dilation: int = 1) -> Array:
    """Every channel convolved with filter^T filter: at every second pixel, or with zeros put between the pixels."""
    taps = filter / filter.sum() * dilation
    padding = len(taps) // 2 if dilation > 1 else (len(taps) - 1) // 2
    kernel = jnp.tile(jnp.asarray(np.outer(taps, taps), x.dtype)[:, :, None, None], (1, 1, 1, x.shape[-1]))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1],
    )


def bilinear(x: Array, height: int, width: int) -> Array:
    """Bilinear interpolation between pixel centres, as PyTorch's with align_corners=False and no antialiasing.

    Args:
      x: [B, H, W, C].
      height, width: the new size.

    Returns:
      [B, height, width, C].
    """
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "linear", antialias=False)


def nearest(x: Array, height: int, width: int) -> Array:
    """The pixel in which the corner of each new one lies, as PyTorch's 'nearest': [B, H, W, C] -> [B, height, width, C]."""
    for axis, size in ((1, height), (2, width)):
        x = jnp.take(x, np.arange(size) * x.shape[axis] // size, axis=axis)
    return x


def area(x: Array, height: int, width: int) -> Array:
    """The mean of all pixels that a new one touches, as PyTorch's 'area': [B, H, W, C] -> [B, height, width, C]."""
    for axis, size in ((1, height), (2, width)):
        count, new = x.shape[axis], np.arange(size)[:, None]
        first, last = new * count // size, -(-(new + 1) * count // size)
        touched = (first <= np.arange(count)) & (np.arange(count) < last)  # [size, count]
        weights = np.float32(touched / touched.sum(1, keepdims=True))
        x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision="highest"), 0, axis)
    return x
