"""Which rows of a set: some of them spread evenly, and all of them in batches of one size."""
from __future__ import annotations

import numpy as np


def spread(count: int, num: int | None = None) -> list[int]:
    """The numbers of `num` rows, or of all where there are fewer, evenly over `count` rows; all of
    them for None.

    Evenly, because many data sets are sorted by class.

    Example:
      >>> spread(10, 4)
      [0, 2, 5, 7]
    """
    num = count if num is None else min(num, count)
    # In integers, where no rounding takes a row twice.
    return [i * count // num for i in range(num)]


def filled(first: int, size: int, count: int) -> np.ndarray:
    """The numbers of a batch's rows, [size] int, from row `first` on; beyond the last row, number
    count - 1, that one again.

    A last batch that is filled up has the shape of the others, so that one compiled program serves
    them all.
    """
    return np.minimum(np.arange(first, first + size), count - 1)
