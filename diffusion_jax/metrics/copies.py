"""Are samples copies of training pictures? By how much nearer the nearest training picture is than the second nearest.

With d1 and d2 the distances of a picture x to the nearest and the second nearest of the training pictures,

    r(x) = d1 / d2                                                                              (1)
    copies    share of samples with r < 1/3                                                     (2)
    closer    P(r_sample < r_other) + P(r_sample = r_other) / 2                                 (3)

(2) is the test of Yoon et al. (2023, "Diffusion probabilistic models generalize when they fail to memorize") and of Gu et al.
(2023, arXiv 2310.02664). (3), Mann and Whitney's U over the number of pairs, comes earlier: it is 1/2 where samples are to the
training pictures what other pictures are, 1 where each of them is nearer. A ratio and not a distance, for a blurred picture is
near to all: of flowers at 32x32, blurred by two pixels, (3) of r is 0.6, of d1 0.9.

The other pictures are the held-out ones and, for where there are few, training pictures each against those that are left.

What is said of (2) and (3) is no accident where it is three standard deviations off,

    var(closer) = (n + m + 1) / (12 n m)        of n samples, m others                          (4)
    var(copies - others') = p (1 - p) (1 / n + 1 / m),   p = (k + 1/2) / (m + 1)                (5)

with k of the m others below 1/3; and no trifle where (3) is above 2/3, which blurred, flat and good pictures do not reach, and
copies moved by three pixels do.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

COPY = 1 / 3
"""Of (2)."""
CLOSER = 2 / 3
"""Of (3)."""
DEVIATIONS = 3
BLOCK = 1000
"""Training pictures at a time."""


class Neighbours(NamedTuple):
    """What is nearest to some pictures.

    Attributes:
      index: the number of the nearest training picture, int [N].
      ratio: (1), [N].
    """

    index: np.ndarray
    ratio: np.ndarray


class Copies(NamedTuple):
    """Samples beside training pictures.

    Attributes:
      copies: (2).
      others: (2) of the other pictures.
      closer: (3).
      alarm: whether either is more than accident and trifle.
    """

    copies: float
    others: float
    closer: float
    alarm: bool


def neighbours(images: np.ndarray, train: np.ndarray, mirror: bool = False, but: np.ndarray | None = None) -> Neighbours:
    """The nearest of training pictures that differ from each other.

    Args:
      images: [N, H, W, C].
      train: [M, H, W, C], M > 1, or 2 with `but`.
      mirror: whether a training picture's mirror image counts as that picture.
      but: the number of the training picture that is left out for each of `images`, int [N].
    """
    x = _flat(images)
    squares = np.empty((len(images), len(train)), np.float32)
    for first in range(0, len(train), BLOCK):
        block = train[first : first + BLOCK]
        nearest = _squares(x, _flat(block))
        if mirror:
            nearest = np.minimum(nearest, _squares(x, _flat(block[:, :, ::-1])))
        squares[:, first : first + len(block)] = nearest
    if but is not None:
        squares[np.arange(len(images)), but] = np.inf
    index = np.argmin(squares, axis=1)
    two = np.sqrt(np.partition(squares, 1, axis=1)[:, :2])
    # Of two that are the same picture neither is nearer.
    return Neighbours(index, np.divide(two[:, 0], two[:, 1], out=np.ones(len(images)), where=two[:, 1] > 0))


def _flat(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] -> [N, D], about 0, where float32 has more digits."""
    return images.reshape(len(images), -1).astype(np.float32) - np.float32(127.5)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances [N, M] of a [N, D] to b [M, D]."""
    dots = a @ b.T
    return np.maximum(np.sum(a * a, axis=1)[:, None] - 2 * dots + np.sum(b * b, axis=1)[None], 0)


def different(images: np.ndarray) -> np.ndarray:
    """The numbers of pictures [N, H, W, C], without those that are the same as one before, byte for byte."""
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    return np.sort(first)


def copies(samples: np.ndarray, others: np.ndarray) -> Copies:
    """(2) and (3) of the ratios (1) of samples [n] and of other pictures [m]."""
    n, m = len(samples), len(others)
    share, usual = (float(np.mean(ratio < COPY)) for ratio in (samples, others))
    p = (m * usual + 0.5) / (m + 1)
    rank = np.searchsorted(np.sort(samples), others, "left") + np.searchsorted(np.sort(samples), others, "right")
    closer = float(np.mean(rank) / (2 * n))
    far = closer > max(CLOSER, 0.5 + DEVIATIONS * ((n + m + 1) / (12 * n * m)) ** 0.5)
    many = share - usual > DEVIATIONS * (p * (1 - p) * (1 / n + 1 / m)) ** 0.5
    return Copies(share, usual, closer, bool(far or many))
