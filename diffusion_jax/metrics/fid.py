"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500).

    d = |mu - nu|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2)                       (1)

with the means mu, nu and the unbiased covariances A, B of two sets of features. The root in this symmetric form has real
eigenvalues whatever the rank of A and B. Everything is float64.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError


class Moments(NamedTuple):
    """What (1) needs of a set of features: mean [D] and covariance [D, D], float64."""

    mean: np.ndarray
    cov: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Of features [N, D], N > 1.

    Raises:
      ConfigError: fewer than two, or some that are not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ConfigError(f"moments are of features [N, D] with N of at least 2, got {features.shape}")
    if not np.isfinite(features).all():
        raise ConfigError("some of the features are not finite: look at the images that they are of")
    return Moments(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(a: Moments, b: Moments) -> float:
    """(1)."""
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.cov @ root)
    cross = np.sqrt(np.maximum(cross, 0)).sum()
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * cross)
