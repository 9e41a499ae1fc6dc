"""Small images made worse, as upsamplers meet them in a cascade (unCLIP, Ramesh et al. 2022, arXiv 2204.06125, sec. 2.1).

    blur    a Gaussian filter whose deviation is drawn for each image                                                 (1)
    bsr     in an order drawn for each batch: an isotropic and an oblique Gaussian filter, a smaller size and back,
            Gaussian noise, JPEG; each with strengths drawn for each image (Zhang et al. 2021, arXiv 2103.14006)      (2)

(1) is for the first upsampler, (2) for the second. Filters are written in the coordinates of their ellipse,

    k(u) ~ exp(-|S^-1 R u|^2 / 2),   S = diag(s1, s2),   R a rotation                                               (3)
"""
from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Key

RADIUS = 4
"""Of a filter, in pixels: 9x9."""
BLUR = (0.2, 1.2)
ISOTROPIC, OBLIQUE = (0.1, 1.4), (0.2, 2.0)
SHRINK = (0.5, 1.0)
NOISE = (1 / 255, 25 / 255)
QUALITY = (30.0, 95.0)
"""From, to: deviations in pixels, sizes, deviations of pixels in [0, 1], JPEG's quality."""
LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], np.float32)
"""JPEG's table for brightness (ITU-T T.81, annex K), used for all channels."""
YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)


def filtered(x: Array, across: Array, along: Array, angle: Array) -> Array:
    """(3) on x [B, H, W, C], edges repeated; deviations s1, s2 and angle are [B]."""
    place = jnp.arange(-RADIUS, RADIUS + 1, dtype=jnp.float32)
    v, u = jnp.meshgrid(place, place, indexing="ij")
    cos, sin = (f(angle)[:, None, None] for f in (jnp.cos, jnp.sin))
    p, q = cos * u[None] + sin * v[None], cos * v[None] - sin * u[None]
    kernel = jnp.exp(-0.5 * ((p / across[:, None, None]) ** 2 + (q / along[:, None, None]) ** 2))
    kernel = kernel / jnp.sum(kernel, axis=(1, 2), keepdims=True)  # [B, 9, 9]
    wide = jnp.pad(x, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), mode="edge")
    h, w = x.shape[1:3]
    shifted = [kernel[:, i, j][:, None, None, None] * wide[:, i : i + h, j : j + w]
               for i in range(2 * RADIUS + 1) for j in range(2 * RADIUS + 1)]
    return sum(shifted)


def _within(key: Key, count: int, ends: tuple[float, float]) -> Array:
    return jax.random.uniform(key, (count,), minval=ends[0], maxval=ends[1])


def blur(x: Array, key: Key) -> Array:
    """(1) on x [B, H, W, C]."""
    s = _within(key, len(x), BLUR)
    return filtered(x, s, s, 0 * s)


def isotropic(x: Array, key: Key) -> Array:
    """A round filter."""
    s = _within(key, len(x), ISOTROPIC)
    return filtered(x, s, s, 0 * s)


def oblique(x: Array, key: Key) -> Array:
    """An oblong filter at any angle."""
    one, two, three = jax.random.split(key, 3)
    return filtered(x, _within(one, len(x), OBLIQUE), _within(two, len(x), OBLIQUE), _within(three, len(x), (0, np.pi)))


def smaller(x: Array, key: Key) -> Array:
    """A smaller size, and back; both bilinear, the first without aliasing."""
    height, width = x.shape[1:3]
    shift = jnp.zeros(2)

    def one(x: Array, scale: Array) -> Array:
        both = jnp.full(2, scale)
        small = jax.image.scale_and_translate(x, x.shape, (0, 1), both, shift, "linear", antialias=True)
        rows, columns = (jnp.minimum(jnp.arange(side), jnp.floor(scale * side).astype(int) - 1) for side in (height, width))
        small = small[rows][:, columns]                                    # beyond the small image its edge goes on
        return jax.image.scale_and_translate(small, x.shape, (0, 1), 1 / both, shift, "linear", antialias=False)

    return jax.vmap(one)(x, _within(key, len(x), SHRINK))


def noise(x: Array, key: Key) -> Array:
    """Gaussian noise, the same in all channels of every other image."""
    one, two, three = jax.random.split(key, 3)
    own, grey = jax.random.normal(one, x.shape), jax.random.normal(two, (*x.shape[:3], 1))
    drawn = jnp.where(jnp.arange(len(x))[:, None, None, None] % 2 == 0, own, grey)
    return x + 2 * _within(three, len(x), NOISE)[:, None, None, None] * drawn


def jpeg(x: Array, key: Key) -> Array:
    """The rounding of JPEG, blocks of 8x8 pixels, without its coarser colours."""
    b, h, w, c = x.shape
    quality = _within(key, b, QUALITY)
    factor = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)
    table = jnp.clip(jnp.round(LUMA[None] * factor[:, None, None]), 1, 255)[:, None, None, None]  # [B, 1, 1, 1, 8, 8]
    pixels = jnp.pad(x, ((0, 0), (0, -h % 8), (0, -w % 8), (0, 0)), mode="edge") * 127.5
    pixels = pixels @ YCC.T if c == 3 else pixels
    rows, columns = pixels.shape[1] // 8, pixels.shape[2] // 8
    blocks = pixels.reshape(b, rows, 8, columns, 8, c).transpose(0, 1, 3, 5, 2, 4)  # [B, rows, columns, C, 8, 8]
    dct = _dct()
    found = jnp.round(dct @ blocks @ dct.T / table) * table
    pixels = (dct.T @ found @ dct).transpose(0, 1, 4, 2, 5, 3).reshape(pixels.shape)
    pixels = pixels @ np.linalg.inv(YCC).T if c == 3 else pixels
    return pixels[:, :h, :w] / 127.5


def _dct() -> np.ndarray:
    """The orthonormal cosine transform of 8 numbers."""
    k, n = np.arange(8)[:, None], np.arange(8)[None]
    matrix = 0.5 * np.cos((2 * n + 1) * k * np.pi / 16)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


PARTS: tuple[Callable[[Array, Key], Array], ...] = (isotropic, oblique, smaller, noise, jpeg)


def bsr(x: Array, key: Key) -> Array:
    """(2) on x [B, H, W, C] in [-1, 1]; each part acts on nine images of ten."""
    k_order, k_parts, k_kept = jax.random.split(key, 3)
    order = jax.random.permutation(k_order, len(PARTS))
    kept = jax.random.uniform(k_kept, (len(PARTS), len(x), 1, 1, 1)) < 0.9

    def step(x: Array, item: tuple[Array, Array, Array]) -> tuple[Array, None]:
        which, key, on = item
        return jnp.where(on, jax.lax.switch(which, PARTS, x, key), x), None

    x, _ = jax.lax.scan(step, x, (order, jax.random.split(k_parts, len(PARTS)), kept))
    return jnp.clip(x, -1, 1)


DEGRADE = {"": lambda x, key: x, "blur": blur, "bsr": bsr}
"""What is done to a small image in training, by name."""
