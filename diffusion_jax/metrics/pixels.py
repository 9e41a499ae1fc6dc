"""Metrics in pixel space, for data small enough to hold: are samples of the class asked for, no copies, and varied enough?

    accuracy    share of samples that an SVC trained on the real training images gives the class asked for        (1)
    novelty     mean distance sample -> nearest training image, over that of held-out images                      (2)
    variance    per class: variance of the samples over that of the real images, summed over pixels               (3)

All three are about 1 (accuracy: the SVC's own on held-out images) for perfect samples; (2) is 0 for a model that copies, (3) for
one that collapses. They are comparable within one data set only.
"""
from __future__ import annotations

import numpy as np


def _flat(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(images), -1)


def class_accuracy(images: np.ndarray, labels: np.ndarray, train: np.ndarray, train_labels: np.ndarray) -> float:
    """(1). images [N, ...] and train [M, ...] in the same range, labels [N] and [M]."""
    from sklearn.svm import SVC

    x, mean, std = _flat(train), float(np.mean(train)), float(np.std(train))
    classifier = SVC(C=10.0).fit((x - mean) / std, train_labels)
    return float(np.mean(classifier.predict((_flat(images) - mean) / std) == labels))


def nearest(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Euclidean distance of each image to its nearest training image, [N]."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(_flat(train)).kneighbors(_flat(images))[0][:, 0]


def novelty(images: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    """(2)."""
    return float(np.mean(nearest(images, train)) / np.mean(nearest(held_out, train)))


def class_variance(images: np.ndarray, labels: np.ndarray, train: np.ndarray, train_labels: np.ndarray) -> dict[int, float]:
    """(3) for every class of the training data whose pictures differ: of one picture alone there is no variance."""

    def total(x, y, label):
        return float(np.var(_flat(x[y == label]), axis=0).sum())

    totals = {int(label): total(train, train_labels, label) for label in np.unique(train_labels)}
    return {label: total(images, labels, label) / of_class for label, of_class in totals.items() if of_class}
