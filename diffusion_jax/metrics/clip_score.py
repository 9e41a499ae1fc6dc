"""CLIP score of images and their captions, by the cosine c of their embeddings.

    torchmetrics    max(mean(100 c), 0)                                               (1)
    CLIPScore       mean(2.5 max(c, 0))                                               (2)  Hessel et al. 2104.08718
    cosine          mean(c), what papers quote as 0.31                                (3)
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np


class CLIPScore(NamedTuple):
    """(1) to (3)."""

    torchmetrics: float
    clipscore: float
    cosine: float


def cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """c of pairs of embeddings [N, D], of any length: [N] float64."""
    images, texts = (np.asarray(rows, np.float64) for rows in (images, texts))
    return np.sum(images * texts, axis=1) / (np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1))


def clip_score(images: np.ndarray, texts: np.ndarray) -> CLIPScore:
    """The scores of pairs of embeddings [N, D]."""
    c = cosines(images, texts)
    return CLIPScore(max(float(np.mean(100 * c)), 0.0), float(np.mean(2.5 * np.maximum(c, 0))), float(np.mean(c)))
