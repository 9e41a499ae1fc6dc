"""Rows spread over a set, and batches that are filled up."""
import itertools

import numpy as np
import pytest

from diffusion_jax.data.rows import filled, spread


@pytest.mark.parametrize(("count", "num", "want"), [
    (10, 4, [0, 2, 5, 7]), (10, 10, list(range(10))), (3, 9, [0, 1, 2]), (5, None, [0, 1, 2, 3, 4]), (7, 1, [0]), (4, 0, []),
    (0, 3, [])])
def test_rows_are_spread_from_the_first_on(count, num, want):
    assert spread(count, num) == want


@pytest.mark.parametrize(("count", "num"), [(297, 100), (1797, 1000), (1000, 999), (12, 5)])
def test_gaps_between_them_differ_by_one_at_most(count, num):
    rows = spread(count, num)
    gaps = {b - a for a, b in itertools.pairwise([*rows, count])}
    assert len(rows) == num == len(set(rows)) and max(gaps) - min(gaps) <= 1


def test_classes_of_sorted_data_are_as_frequent_as_in_the_whole():
    labels = np.repeat(np.arange(10), 50)
    np.testing.assert_array_equal(np.bincount(labels[spread(500, 100)]), [10] * 10)


@pytest.mark.parametrize(("first", "size", "count", "want"), [
    (0, 3, 7, [0, 1, 2]), (3, 3, 7, [3, 4, 5]), (6, 3, 7, [6, 6, 6]), (4, 4, 6, [4, 5, 5, 5]), (0, 2, 1, [0, 0])])
def test_the_last_batch_is_filled_up_with_the_last_row(first, size, count, want):
    rows = filled(first, size, count)
    assert rows.tolist() == want and rows.shape == (size,) and np.issubdtype(rows.dtype, np.integer)


def test_batches_cover_every_row_once():
    rows = [filled(first, 4, 10)[: 10 - first] for first in range(0, 10, 4)]
    assert np.concatenate(rows).tolist() == list(range(10))
