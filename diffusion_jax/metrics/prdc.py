"""Precision and recall (1904.06991), density and coverage (2002.09797) of features, by nearest neighbours.

With B(x) the ball around x whose radius is the distance of x to its k-th nearest neighbour in its own set,

    precision   share of generated images that lie in the ball of some real one       (1)
    recall      share of real images that lie in the ball of some generated one       (2)
    density     number of real balls that a generated image lies in, over k           (3)
    coverage    share of real images whose ball holds a generated one                 (4)

and, beside them, the mean distance between generated images (5), which needs no reference.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError


class PRDC(NamedTuple):
    """(1) to (4)."""

    precision: float
    recall: float
    density: float
    coverage: float


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of a [N, D] to b [M, D]: [N, M] float64."""
    from sklearn.metrics import pairwise_distances

    return pairwise_distances(np.asarray(a, np.float64), np.asarray(b, np.float64))


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other row, [N].

    Raises:
      ConfigError: there are not so many others.
    """
    if not 1 <= k < len(features):
        raise ConfigError(f"the {k}-th nearest neighbour needs more than {k} images, there are {len(features)}")
    return np.partition(distances(features, features), k, axis=1)[:, k]          # the 0-th is the row itself


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> PRDC:
    """(1) to (4) of features real [N, D] and fake [M, D]. A point on the edge of a ball lies outside, as in 2002.09797."""
    across = distances(real, fake)                                               # [N, M]
    inside_real, inside_fake = across < radii(real, k)[:, None], across < radii(fake, k)[None]
    return PRDC(
        precision=float(inside_real.any(axis=0).mean()), recall=float(inside_fake.any(axis=1).mean()),
        density=float(inside_real.sum(axis=0).mean() / k), coverage=float(inside_real.any(axis=1).mean()),
    )


def mean_distance(features: np.ndarray) -> float:
    """(5) over all pairs of rows [N, D], N > 1."""
    count = len(features)
    return float(distances(features, features).sum() / (count * (count - 1)))
