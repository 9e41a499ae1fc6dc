"""Positions and times as sines and cosines, and images as rows of patches.

Time (Vaswani et al. 2017, in the order of DiT): with half = dim // 2 and w_i = max_period^(-i / half),

    emb(t) = [cos(t w_0) ... cos(t w_{half-1}), sin(t w_0) ... sin(t w_{half-1})]     (1)

Position on a grid: with quarter = width // 4 and w_i = 10000^(-i / quarter), one half of the channels for each axis,

    emb(row, col) = [sin(col w), cos(col w), sin(row w), cos(row w)]                  (2)

The orders differ, in (1) cos comes first and in (2) sin, and the column comes before the row: published weights depend on it.
"""
from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Array


def timestep_embedding(t: Array, dim: int, max_period: float = 1e4) -> Array:
    """The sinusoidal embedding (1) of a noise label.

    Args:
      t: [B], may be fractional.
      dim: channels; an odd number leaves the last one zero.
      max_period: the longest wavelength over 2 pi.

    Returns:
      [B, dim] float32.
    """
    half = dim // 2
    freqs = max_period ** (-np.arange(half, dtype=np.float64) / half)
    angle = t.astype(jnp.float32)[:, None] * freqs.astype(np.float32)[None]  # [B, half]
    emb = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return jnp.pad(emb, ((0, 0), (0, dim % 2)))


def sincos_2d(h: int, w: int, width: int, grid: int | None = None) -> np.ndarray:
    """The fixed position table (2) of an h x w grid (DiT, MAE).

    Args:
      h, w: patches along each side.
      width: channels.
      grid: squeeze or stretch the positions, so that both sides span those of `grid` patches; None counts patches.

    Returns:
      [h * w, width] float64, rows of the grid one after the other.

    Raises:
      ConfigError: width is no multiple of four.
    """
    if width % 4:
        raise ConfigError(f"a 2-D position table needs a width that is a multiple of 4, got {width}")
    freqs = 1e4 ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))
    row, col = np.divmod(np.arange(h * w), w)
    row, col = (row, col) if grid is None else (row * (grid / h), col * (grid / w))
    angles = [axis[:, None] * freqs[None] for axis in (col, row)]  # each [h*w, width/4]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)


def patchify(x: Array, patch: int) -> Array:
    """Cuts images into square patches.

    Args:
      x: [B, H, W, C].
      patch: the side p of a patch.

    Returns:
      [B, (H/p)(W/p), p*p*C]: patches row by row, inside a patch (row, column, channel) with the channel fastest.

    Raises:
      ConfigError: H or W is no multiple of p.
    """
    b, h, w, c = x.shape
    if h % patch or w % patch:
        raise ConfigError(f"an image of {h}x{w} does not divide into patches of {patch}x{patch}: choose another size or patch")
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Array, h: int, w: int, patch: int) -> Array:
    """The inverse of `patchify`: [B, (h/p)(w/p), p*p*C] -> [B, h, w, C]."""
    b, _, d = tokens.shape
    x = tokens.reshape(b, h // patch, w // patch, patch, patch, d // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, d // patch**2)
