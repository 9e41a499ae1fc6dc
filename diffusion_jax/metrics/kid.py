"""Kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401).

    k(x, y) = (gamma x.y + coef0)^degree,   by default gamma = 1/D, coef0 = 1, degree = 3               (1)
    mmd^2   = (sum_{i!=j} k(x_i, x_j) + sum_{i!=j} k(y_i, y_j)) / (m (m - 1)) - 2 sum_ij k(x_i, y_j) / m^2       (2)

averaged over random subsets of m images of each set. (2) is unbiased, and negative about half of the time for equal sets.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from diffusion_jax.build import ConfigError

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(x [N, D], y [M, D]) -> [N, M]."""


def polynomial(x: np.ndarray, y: np.ndarray, degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> np.ndarray:
    """(1)."""
    return (x @ y.T * (1 / x.shape[1] if gamma is None else gamma) + coef0) ** degree


def gaussian(x: np.ndarray, y: np.ndarray, sigma: float = 10.0) -> np.ndarray:
    """exp(-|x - y|^2 / (2 sigma^2)), torch-fidelity's other kernel."""
    square = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1)[None] - 2 * x @ y.T
    return np.exp(-np.maximum(square, 0) / (2 * sigma**2))


def mmd2(x: np.ndarray, y: np.ndarray, kernel: Kernel = polynomial) -> float:
    """(2) of features x and y [m, D], m > 1.

    Raises:
      ConfigError: the two are not of the same number.
    """
    m = len(x)
    if m < 2 or len(y) != m:
        raise ConfigError(f"KID compares equally many images, at least 2: got {m} and {len(y)}")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    own = sum(np.sum(k) - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    return float(own / (m * (m - 1)) - 2 * np.mean(kernel(x, y)))


def over_subsets(
    x: np.ndarray, y: np.ndarray, pairs: Iterable[tuple[np.ndarray, np.ndarray]], kernel: Kernel = polynomial
) -> np.ndarray:
    """(2) of each pair of subsets, given as rows of x and of y: [subsets]."""
    return np.array([mmd2(x[rows], y[others], kernel) for rows, others in pairs])


def subsets(n: int, m: int, count: int = 100, size: int = 1000, seed: int = 2020) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Rows of `count` pairs of subsets of n and m images, drawn as torch-fidelity does, alternately and without replacement.

    Raises:
      ConfigError: a set is smaller than a subset.
    """
    if size > min(n, m):
        raise ConfigError(f"KID draws subsets of {size} images, the sets have {n} and {m}: make more images, or lower the size")
    rng = np.random.RandomState(seed)
    return [(rng.choice(n, size, replace=False), rng.choice(m, size, replace=False)) for _ in range(count)]


def kid(x: np.ndarray, y: np.ndarray, count: int = 100, size: int = 1000, seed: int = 2020) -> tuple[float, float]:
    """(mean, standard deviation) of (2) over subsets of features x [N, D] and y [M, D]."""
    found = over_subsets(x, y, subsets(len(x), len(y), count, size, seed))
    return float(found.mean()), float(found.std())
