"""Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv 1706.08500).

    d = |mu - nu|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2)                       (1)

with the means mu, nu and the unbiased covariances A, B of two sets of features. The root in this symmetric form has real
eigenvalues whatever the rank of A and B. Everything is float64.
"""
from __future__ import annotations

import numpy as np

from diffusion_jax.metrics.moments import Moments


def frechet_distance(a: Moments, b: Moments) -> float:
    """(1)."""
    values, vectors = np.linalg.eigh(a.cov)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b.cov @ root)
    cross = np.sqrt(np.maximum(cross, 0)).sum()
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * cross)
