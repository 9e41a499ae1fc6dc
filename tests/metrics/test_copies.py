"""Copies are told from pictures that are only alike: by hand, by SciPy's U, and on flowers of noise whose answer is known."""
import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter

from diffusion_jax.metrics import copies

RNG = np.random.default_rng(0)


def pictures(count):
    """Smooth random pictures, uint8 [count, 16, 16, 3]."""
    smooth = gaussian_filter(RNG.normal(size=(count, 16, 16, 3)), (0, 2, 2, 0), mode="wrap")
    return np.clip(127 + 500 * smooth, 0, 255).astype(np.uint8)


TRAIN, HELD_OUT, FRESH = pictures(120), pictures(30), pictures(100)
PICKED = TRAIN[RNG.integers(0, 120, 100)]


def test_the_nearest_is_found_and_how_much_nearer_it_is():
    a, b = FRESH[:9].astype(float), TRAIN.astype(float)
    squares = ((a[:, None] - b[None]) ** 2).sum((2, 3, 4))
    near = copies.neighbours(FRESH[:9], TRAIN)
    np.testing.assert_array_equal(near.index, squares.argmin(1))
    two = np.sort(squares, 1)[:, :2] ** 0.5
    np.testing.assert_allclose(near.ratio, two[:, 0] / two[:, 1], rtol=1e-4)


def test_blocks_change_nothing(monkeypatch):
    whole = copies.neighbours(FRESH, TRAIN, mirror=True)
    monkeypatch.setattr(copies, "BLOCK", 7)
    for one, other in zip(whole, copies.neighbours(FRESH, TRAIN, mirror=True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_mirror_image_is_a_copy_where_training_mirrors():
    mirrored = PICKED[:, :, ::-1]
    assert (copies.neighbours(mirrored, TRAIN).ratio > 0.3).all()
    near = copies.neighbours(mirrored, TRAIN, mirror=True)
    assert (near.ratio < 0.01).all() and (TRAIN[near.index] == PICKED).all()


def test_a_training_picture_is_compared_with_the_others():
    rows = np.arange(120)
    near = copies.neighbours(TRAIN, TRAIN, but=rows)
    assert (near.index != rows).all() and (near.ratio > 0.3).all()


def test_of_two_that_are_the_same_neither_is_nearer():
    same = np.concatenate([TRAIN[:1], TRAIN[:1], TRAIN[1:3]])
    assert copies.neighbours(TRAIN[:1], same).ratio == 1
    np.testing.assert_array_equal(copies.different(same), [0, 2, 3])


@pytest.mark.parametrize(("samples", "others"), [(RNG.random(20), RNG.random(9)), (np.ones(5), np.ones(3)),
                                                 (RNG.integers(0, 4, 40) / 4, RNG.integers(0, 4, 11) / 4)])
def test_closer_is_the_u_of_mann_and_whitney(samples, others):
    expected = stats.mannwhitneyu(others, samples).statistic / (len(samples) * len(others))
    assert copies.copies(samples, others).closer == pytest.approx(expected)


@pytest.mark.parametrize(("samples", "share", "closer", "alarm"), [
    (FRESH, 0, (0.35, 0.65), False),
    (gaussian_filter(FRESH, (0, 2, 2, 0)), 0, (0, 0.66), False),                     # near to all, to none in particular
    (np.full_like(FRESH, 127), 0, (0, 0.66), False),
    (np.clip(PICKED + RNG.normal(0, 20, PICKED.shape), 0, 255), 1, (0.99, 1), True),
    (PICKED, 1, (1, 1), True),
    (0.6 * PICKED + 0.4 * FRESH, None, (0.9, 1), True),                              # not copies yet
    (np.concatenate([PICKED[:5], FRESH[:95]]), 0.05, (0.4, 0.66), True),             # one of twenty is a copy
], ids=["fresh", "blurred", "flat", "noisy copies", "copies", "drawn to pictures", "some copies"])
def test_the_alarm_is_of_copies_alone(samples, share, closer, alarm):
    others = np.concatenate([copies.neighbours(HELD_OUT, TRAIN).ratio, copies.neighbours(TRAIN, TRAIN, but=np.arange(120)).ratio])
    result = copies.copies(copies.neighbours(samples, TRAIN).ratio, others)
    assert result.alarm == alarm and closer[0] <= result.closer <= closer[1] and result.others == 0
    assert share is None or result.copies == pytest.approx(share, abs=0.01)


def test_the_alarm_seldom_rings_for_nothing():
    """Of ratios that are drawn alike, however few: three deviations are one time in 700."""
    rung = [copies.copies(RNG.random(100), RNG.random(m)).alarm for m in (3, 10, 60) for _ in range(200)]
    assert np.mean(rung) < 0.02
