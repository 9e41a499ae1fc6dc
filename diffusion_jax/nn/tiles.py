"""A map of images that is applied to overlapping square tiles, so that its memory does not grow with the image.

    y = sum_t w_t f(x_t) / sum_t w_t                                                  (1)

with x_t the tile t of x and w_t weights that rise linearly from the border of a tile over all that it shares with the next: no
seam shows. At the border of the image itself, where f sees what it sees of the whole, they do not fall. Tiles lie at even
distances, so that none shares more with one neighbour than with the other, and the rows next to a border, which f spoils, weigh
least. What f does to a pixel further away than a tile is lost, so a network that normalises over the whole image gives another,
similar image.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Array


def tiled(f: Callable[[Array], Array], x: Array, tile: int, overlap: int) -> Array:
    """(1); f(x) itself where x is no larger than a tile.

    Args:
      f: [B, h, w, C] -> [B, h', w', D] with h' / h = w' / w = r or 1 / r, r a whole number, for every size.
      x: [B, H, W, C].
      tile: side of a tile; for an f that shrinks r times, a multiple of r, as H and W are.
      overlap: pixels of x that neighbours share, at least; less than a tile.

    Raises:
      ConfigError: an overlap as large as the tile, or sizes that f does not scale alike.
    """
    b, height, width, channels = x.shape
    if not 0 <= overlap < tile:
        raise ConfigError(f"tiles of {tile} cannot overlap by {overlap}: give a smaller overlap")
    sides = min(tile, height), min(tile, width)
    if sides == (height, width):
        return f(x)
    out = jax.eval_shape(f, jax.ShapeDtypeStruct((b, *sides, channels), x.dtype))
    up, down = max(out.shape[1] // sides[0], 1), max(sides[0] // out.shape[1], 1)

    def scaled(n: int) -> int:
        return n * up // down

    if out.shape[1:3] != tuple(map(scaled, sides)) or any(n % down for n in (height, width)):
        raise ConfigError(f"tiles of {sides} become {out.shape[1:3]}, an image of {height}x{width} does not scale so")
    rows, columns = (_starts(n, side, overlap, down) for n, side in zip((height, width), sides, strict=True))
    corners = np.array([(r, c) for r in rows for c in columns], np.int32)
    by_row, by_column = (
        _weights([scaled(start) for start in starts], scaled(side)) for starts, side in zip((rows, columns), sides, strict=True))
    along = np.repeat(by_row, len(columns), axis=0), np.tile(by_column, (len(rows), 1))           # [tiles, side] each

    def add(total: tuple[Array, Array], at_tile: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        corner, of_rows, of_columns = at_tile
        weight = (of_rows[:, None] * of_columns[None, :])[None, :, :, None]
        part = f(jax.lax.dynamic_slice(x, (0, corner[0], corner[1], 0), (b, *sides, channels)))
        at = 0, corner[0] * up // down, corner[1] * up // down, 0

        def put(total: Array, value: Array) -> Array:
            return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, at, value.shape) + value, at)

        return (put(total[0], part * weight), put(total[1], weight)), None

    whole = (scaled(height), scaled(width))
    zero = jnp.zeros((b, *whole, out.shape[-1]), jnp.float32), jnp.zeros((1, *whole, 1), jnp.float32)
    (total, weights), _ = jax.lax.scan(add, zero, (corners, *along))
    return (total / weights).astype(out.dtype)


def _starts(n: int, side: int, overlap: int, multiple: int) -> list[int]:
    """Where tiles begin along a side of n pixels, at multiples of `multiple`: as evenly as that allows, the last at n - side."""
    places, step = (n - side) // multiple, max((side - overlap) // multiple, 1)
    gaps = -(-places // step)
    return [i * places // max(gaps, 1) * multiple for i in range(gaps + 1)]


def _weights(starts: Sequence[int], side: int) -> np.ndarray:
    """Weights [tiles, side] of tiles along a side, linear over what each shares with its neighbours."""
    pixel = np.arange(side)
    weights = np.ones((len(starts), side), np.float32)
    for i, (before, after) in enumerate(itertools.pairwise(starts)):
        shared = before + side - after
        weights[i] = np.minimum(weights[i], (side - pixel) / (shared + 1))
        weights[i + 1] = np.minimum(weights[i + 1], (pixel + 1) / (shared + 1))
    return weights
