"""Precision and recall (1904.06991), density and coverage (2002.09797) of features, by nearest neighbours.

With B(x) the ball around x whose radius is the distance of x to its k-th nearest neighbour in its own set,

    precision   share of generated images that lie in the ball of some real one       (1)
    recall      share of real images that lie in the ball of some generated one       (2)
    density     number of real balls that a generated image lies in, over k           (3)
    coverage    share of real images whose ball holds a generated one                 (4)

and, beside them, the mean distance between generated images (5), which needs no reference. Evaluators disagree about points on
the edge of a ball, which count where distances are tied, and about the precision of the distances:

    prdc             outside; Euclidean in float64
    torch-fidelity   inside; Euclidean
    ADM              inside; squares as |u|^2 - 2 u.v + |v|^2 in float16, in float32 only where float16 overflows
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


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(1) and (2) as torch-fidelity has them: a point on the edge of a ball lies inside."""
    across = distances(real, fake)
    inside_real, inside_fake = across <= radii(real, k)[:, None], across <= radii(fake, k)[None]
    return float(inside_real.any(axis=0).mean()), float(inside_fake.any(axis=1).mean())


def squares(u: np.ndarray, v: np.ndarray, half: bool = True) -> np.ndarray:
    """Squared distances [N, M] float32 of u [N, D] to v [M, D] as ADM's evaluator rounds them; `half`: in float16 if finite."""
    def between(dtype: type) -> np.ndarray:
        wide = [rows.astype(dtype).astype(np.float32) for rows in (u, v)]           # products add up in float32 on any hardware
        norms = [np.sum(np.square(rows).astype(dtype).astype(np.float32), axis=1).astype(dtype) for rows in wide]
        dots = (wide[0] @ wide[1].T).astype(dtype)
        return np.maximum(norms[0][:, None] - dtype(2) * dots + norms[1][None], 0).astype(np.float32)

    if half:
        with np.errstate(over="ignore", invalid="ignore"):
            found = between(np.float16)
        if np.isfinite(found).all():
            return found
    return between(np.float32)


class Manifold(NamedTuple):
    """What ADM's evaluator finds out about generated images.

    Attributes:
      precision, recall: (1) and (2).
      radii_real, radii_fake: squared radii of the balls, [N] and [M].
      inside: which generated images lie in a real ball, [M].
      realism: the largest ratio of a real ball's squared radius to the squared distance, [M].
    """

    precision: float
    recall: float
    radii_real: np.ndarray
    radii_fake: np.ndarray
    inside: np.ndarray
    realism: np.ndarray


def adm(real: np.ndarray, fake: np.ndarray, k: int = 3, half: bool = True) -> Manifold:
    """(1) and (2) of features real [N, D] and fake [M, D] as ADM's evaluator prints them, k = 3, or in float32 throughout."""
    for rows in (real, fake):
        if not 1 <= k < len(rows):
            raise ConfigError(f"the {k}-th nearest neighbour needs more than {k} images, there are {len(rows)}")
    own = [np.partition(squares(rows, rows, half), k, axis=1)[:, k] for rows in (real, fake)]
    across = squares(real, fake, half)
    inside = (across <= own[0][:, None]).any(axis=0)
    realism = np.max(own[0][:, None] / (across + np.float32(1e-5)), axis=0)
    return Manifold(float(inside.mean()), float((across <= own[1][None]).any(axis=1).mean()), *own, inside, realism)


def mean_distance(features: np.ndarray) -> float:
    """(5) over all pairs of rows [N, D], N > 1."""
    count = len(features)
    return float(distances(features, features).sum() / (count * (count - 1)))
