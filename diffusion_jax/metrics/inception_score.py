"""Inception score (Salimans et al. 2016, arXiv 1606.03498).

    IS = exp(mean_x KL(p(y | x) || mean_x p(y | x)))                                  (1)

over parts of the images. The parts differ between evaluators, and so do the scores: ADM's are 5,000 images in order,
torch-fidelity's are ten equal parts after a shuffle.
"""
from __future__ import annotations

import numpy as np

from diffusion_jax.build import ConfigError


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits [N, classes], float64."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def score(p: np.ndarray) -> float:
    """(1) of p(y | x) [N, classes]."""
    mean = p.mean(axis=0, keepdims=True)
    ratio = np.where(p > 0, p / np.where(mean > 0, mean, 1), 1)
    return float(np.exp(np.mean(np.sum(p * np.log(ratio), axis=1))))


def adm(logits: np.ndarray, size: int = 5000) -> float:
    """The mean over parts of `size` images in order, as ADM's evaluator; its logits have no bias."""
    p = probabilities(logits)
    return float(np.mean([score(p[first : first + size]) for first in range(0, len(p), size)]))


def torch_fidelity(logits: np.ndarray, splits: int = 10, shuffle: bool = True, seed: int = 2020) -> tuple[float, float]:
    """(mean, standard deviation) over equal parts, as torch-fidelity; its logits have no bias by default.

    Raises:
      ConfigError: fewer images than parts.
    """
    if len(logits) < splits:
        raise ConfigError(f"{len(logits)} images do not make {splits} parts: make more, or lower the splits")
    p = probabilities(logits)
    if shuffle:
        p = p[np.random.RandomState(seed).permutation(len(p))]
    found = [score(p[i * len(p) // splits : (i + 1) * len(p) // splits]) for i in range(splits)]
    return float(np.mean(found)), float(np.std(found))
