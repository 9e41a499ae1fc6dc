"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels; nothing is downloaded.

The split is stratified and needs no random numbers: of the images sorted by class, in their own order within a class, every
1797/297-th one is a test image, so each class is split within one image of the overall proportion.

Reference: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data.source import Record

TEST = 297
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Digits:
    """Records with an 'image' uint8 [8, 8, 1], a 'label' 0..9 and a 'caption', 'a handwritten three'.

    Attributes:
      split: 'train' (1,500 images), 'test' (297) or 'all' (1,797).

    Raises:
      ConfigError: an unknown split; scikit-learn is missing (at first use).
    """

    split: str = "train"

    def __post_init__(self):
        if self.split not in ("train", "test", "all"):
            raise unknown("split of digits", self.split, ("train", "test", "all"))

    @property
    def names(self) -> tuple[str, ...]:
        """'0' .. '9'."""
        return tuple("0123456789")

    @property
    def labels(self) -> np.ndarray:
        """Of all records, int [N]."""
        return self._data[1]

    @property
    def captions(self) -> list[str]:
        """Of all records."""
        return [f"a handwritten {WORDS[label]}" for label in self.labels]

    def __len__(self) -> int:
        return len(self._data[1])

    def __getitem__(self, i: int) -> Record:
        images, labels = self._data
        return {"image": images[i], "label": int(labels[i]), "caption": f"a handwritten {WORDS[labels[i]]}"}

    @functools.cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        images, labels, is_test = _read()
        rows = {"train": ~is_test, "test": is_test, "all": np.ones_like(is_test)}[self.split]
        return images[rows], labels[rows]


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 [N, 8, 8, 1], labels int [N], whether a test image, bool [N]) of all; a text file, so it is read once."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the digits come with scikit-learn: pip install scikit-learn") from None
    grey, labels = load_digits(return_X_y=True)
    images = np.round(np.asarray(grey) * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[((np.arange(TEST) + 0.5) * len(labels) / TEST).astype(int)]] = True
    return images, labels, is_test
