"""Pictures moved, turned and stretched, and nine numbers that say how: augmentation that a network is told of, so that none of it
shows in what the network makes when it is told of none (Karras et al. 2022, EDM, arXiv 2206.00364, appendix F.2).

Table 6 of the paper, with p = (x, y) in pixels from a picture's centre, x to the right and y down:

    mirrored      a0 in {0, 1}          F = diag(1 - 2 a0, 1 - 2 a1)                                                (1)
    upside down   a1 in {0, 1}
    larger        a2 ~ N(0, 1)          S = 2^(0.2 a2)                                                              (2)
    turned        a3 ~ U(-pi, pi)       R(a3), counter-clockwise                                                    (3)
    stretched     a4 ~ U(-pi/2, pi/2)   A = R(a4) diag(2^(0.2 a5), 2^(-0.2 a5)) R(-a4)                              (4)
                  a5 ~ N(0, 1)
    moved         a6, a7 ~ N(0, 1)      T p = p + (W a6, H a7) / 8                                                  (5)

    picture'(p) = picture(G^-1 p),   G = T A R S F                                                                  (6)
    a = (a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7)                                              (7)

The table has a4 ~ U(-pi, pi), which makes the same pictures; but (a4 + pi, -a5), which stretches across, then has the numbers of
(a4, a5), which stretches along.

A picture is mirrored with probability 1/2; of each other line all is 0 but for a share `rate` of the pictures. All of (6) is one
warp, as in k-diffusion's form of it (augmentation.py). Beyond its edge a picture is its own mirror image, the pixels of the edge
once. Between pixels it is Keys' cubic convolution (1981, a = -1/2), which leaves a picture that is not moved as it is, bit for
bit. EDM's own code goes by way of a picture of twice the size: fewer aliases where pictures shrink, for many times the work.
"""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Key

SIZE = 9
"""Numbers in (7)."""
SCALE = STRETCH = 0.2
"""Of (2) and (4), in octaves."""
MOVE = 1 / 8
"""Of (5), as a share of the side."""


def draws(key: Key, count: int, rate: float = 0.12, mirror: float = 0.5) -> Array:
    """a0 ... a7 of the table for `count` pictures, [count, 8].

    Args:
      key: of all of them.
      count: how many.
      rate: the probability that a line after the first is not 0; 0.12 is the paper's for CIFAR-10, 0.15 for faces.
      mirror: the probability that a0 is 1.
    """
    k_mirror, k_flip, k_normal, k_angle, k_on = jax.random.split(key, 5)
    mirrored = jax.random.bernoulli(k_mirror, float(mirror), (count, 1))
    flipped = jax.random.bernoulli(k_flip, 0.5, (count, 1))
    larger, stretched, right, down = jnp.split(jax.random.normal(k_normal, (count, 4)), 4, axis=1)
    turns = jax.random.uniform(k_angle, (count, 2), minval=-0.5, maxval=0.5)
    turned, along = jnp.split(turns * np.array([[2 * np.pi, np.pi]], np.float32), 2, axis=1)
    on = jax.random.bernoulli(k_on, float(rate), (count, 5))
    lines = on[:, np.array([0, 1, 2, 3, 3, 4, 4])]  # of a1 ... a7
    return jnp.concatenate([mirrored, lines * jnp.concatenate([flipped, larger, turned, along, stretched, right, down], 1)], 1)


def vector(a: Array) -> Array:
    """(7) of a0 ... a7: [B, 8] -> [B, 9]."""
    flips_and_scale, turned, along, stretched, move = jnp.split(a, (3, 4, 5, 6), axis=1)
    turn = (jnp.cos(turned) - 1, jnp.sin(turned))
    stretch = (stretched * jnp.cos(along), stretched * jnp.sin(along))
    return jnp.concatenate([flips_and_scale, *turn, *stretch, move], axis=1)


def warped(images: Array, a: Array) -> Array:
    """(6).

    Args:
      images: [B, H, W, C].
      a: a0 ... a7, [B, 8].

    Returns:
      [B, H, W, C].
    """
    height, width = images.shape[1:3]
    middle = (width - 1) / 2, (height - 1) / 2
    x = jnp.broadcast_to(jnp.arange(width)[None, None] - middle[0], (1, height, width))
    y = jnp.broadcast_to(jnp.arange(height)[None, :, None] - middle[1], (1, height, width))
    x, y = _back(x, y, a[..., None, None], width, height)  # [B, H, W]
    return _between(images, y + middle[1], x + middle[0])


def _back(x: Array, y: Array, a: Array, width: int, height: int) -> tuple[Array, Array]:
    """G^-1 of points [1, H, W], for each of B pictures [B, H, W]; a is [B, 8, 1, 1]."""
    mirrored, flipped, larger, turned, along, stretched, right, down = jnp.unstack(a, axis=1)
    x = x - MOVE * width * right
    y = y - MOVE * height * down
    x, y = _turned(x, y, -along)
    x, y = x * jnp.exp2(-STRETCH * stretched), y * jnp.exp2(STRETCH * stretched)
    x, y = _turned(x, y, along - turned)
    smaller = jnp.exp2(-SCALE * larger)
    return x * smaller * (1 - 2 * mirrored), y * smaller * (1 - 2 * flipped)


def _turned(x: Array, y: Array, angle: Array) -> tuple[Array, Array]:
    """R(angle) of points: y points down, so that the sines have other signs than where it points up."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _between(images: Array, rows: Array, columns: Array) -> Array:
    """The values of images [B, H, W, C] at rows and columns [B, h, w], which need be neither whole nor inside: [B, h, w, C]."""
    row, column = jnp.floor(rows), jnp.floor(columns)
    down = list(zip(_indices(row, images.shape[1]), _weights(rows - row), strict=True))
    right = list(zip(_indices(column, images.shape[2]), _weights(columns - column), strict=True))
    pick = jax.vmap(lambda image, i, j: image[i, j])
    # Sums of products, no matrix product: that would be of half the precision on some devices.
    return sum((u * v)[..., None] * pick(images, i, j) for i, u in down for j, v in right)


def _indices(first: Array, size: int) -> list[Array]:
    """The four pixels around a point, before and after `first`, of a row that beyond its ends is its own mirror image."""
    period = max(2 * size - 2, 1)
    beyond = [(first.astype(jnp.int32) + step) % period for step in (-1, 0, 1, 2)]
    return [jnp.minimum(i, period - i) for i in beyond]


def _weights(t: Array) -> list[Array]:
    """Keys' weights of those four, t in [0, 1) behind the second."""
    return [
        t * (-0.5 + t * (1 - 0.5 * t)),
        1 + t * t * (-2.5 + 1.5 * t),
        t * (0.5 + t * (2 - 1.5 * t)),
        t * t * (-0.5 + 0.5 * t),
    ]
