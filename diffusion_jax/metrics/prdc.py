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

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError

BLOCK = 2000                            # rows of real images at a time, so that 50,000 x 50,000 distances are never held at once


class PRDC(NamedTuple):
    """(1) to (4)."""

    precision: float
    recall: float
    density: float
    coverage: float


def distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances of a [N, D] to b [M, D], float64 [n, M] for some rows of `a` at a time, and which they are."""
    from sklearn.metrics import pairwise_distances_chunked

    wide = np.asarray(a, np.float64)
    a, b = wide, wide if a is b else np.asarray(b, np.float64)           # of one set to itself, exactly 0 on the diagonal
    first = 0
    for part in pairwise_distances_chunked(a, b):
        yield slice(first, first + len(part)), part
        first += len(part)


def check_neighbours(count: int, k: int) -> None:
    """Raises ConfigError where `count` images do not have k-th nearest neighbours among themselves."""
    if not 1 <= k < count:
        raise ConfigError(f"the {k}-th nearest neighbour needs more than {k} images, there are {count}")


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other row, [N].

    Raises:
      ConfigError: there are not so many others.
    """
    check_neighbours(len(features), k)
    rows = (part for _, part in distances(features, features))
    return np.concatenate([np.partition(part, k, axis=1)[:, k] for part in rows])         # the 0-th is the row itself


class _Counts(NamedTuple):
    """For every generated image, the real balls that it lies in [M]; for every real one, whether it lies in a generated image's
    ball, and whether a generated image lies in its own, [N] each."""

    balls: np.ndarray
    reached: np.ndarray
    covered: np.ndarray


def _count(real: np.ndarray, fake: np.ndarray, k: int, edge: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _Counts:
    own, other = radii(real, k), radii(fake, k)
    balls, reached, covered = np.zeros(len(fake), np.int64), np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, across in distances(real, fake):
        inside = edge(across, own[rows, None])
        balls += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        reached[rows] = edge(across, other[None]).any(axis=1)
    return _Counts(balls, reached, covered)


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> PRDC:
    """(1) to (4) of features real [N, D] and fake [M, D]. A point on the edge of a ball lies outside, as in 2002.09797."""
    balls, reached, covered = _count(real, fake, k, np.less)
    precision, recall = float((balls > 0).mean()), float(reached.mean())
    return PRDC(precision, recall, density=float(balls.mean() / k), coverage=float(covered.mean()))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(1) and (2) as torch-fidelity has them: a point on the edge of a ball lies inside."""
    balls, reached, _ = _count(real, fake, k, np.less_equal)
    return float((balls > 0).mean()), float(reached.mean())


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
    own = [_squared_radii(rows, k, half) for rows in (real, fake)]
    inside, realism, reached = np.zeros(len(fake), bool), np.zeros(len(fake), np.float32), []
    for first in range(0, len(real), BLOCK):
        rows = slice(first, first + BLOCK)
        across = squares(real[rows], fake, half)
        inside |= (across <= own[0][rows, None]).any(axis=0)
        reached.append((across <= own[1][None]).any(axis=1))
        realism = np.maximum(realism, np.max(own[0][rows, None] / (across + np.float32(1e-5)), axis=0))
    return Manifold(float(inside.mean()), float(np.concatenate(reached).mean()), *own, inside, realism)


def _squared_radii(rows: np.ndarray, k: int, half: bool) -> np.ndarray:
    check_neighbours(len(rows), k)
    blocks = (squares(rows[first : first + BLOCK], rows, half) for first in range(0, len(rows), BLOCK))
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in blocks])


def mean_distance(features: np.ndarray) -> float:
    """(5) over all pairs of rows [N, D], N > 1."""
    count = len(features)
    return float(sum(part.sum() for _, part in distances(features, features)) / (count * (count - 1)))


def novelty(real: np.ndarray, fake: np.ndarray) -> float:
    """Mean distance from a generated image to the nearest real one, over that of a real one to the nearest other.

    About 1 for perfect samples, 0 for copies; a test of memorisation if `real` is what was trained on.
    """
    nearest = np.concatenate([part.min(axis=1) for _, part in distances(fake, real)])
    return float(nearest.mean() / radii(real, 1).mean())
