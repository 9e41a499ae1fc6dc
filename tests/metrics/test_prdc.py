"""Precision, recall, density and coverage against loops that follow their definitions."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics.prdc import adm, distances, mean_distance, prdc, squares

RNG = np.random.default_rng(0)


def by_hand(real, fake, k):
    def radius(rows, i):
        return sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    inside_real = np.array([[np.linalg.norm(r - f) < radius(real, i) for f in fake] for i, r in enumerate(real)])
    inside_fake = np.array([[np.linalg.norm(r - f) < radius(fake, j) for j, f in enumerate(fake)] for r in real])
    return inside_real.any(0).mean(), inside_fake.any(1).mean(), inside_real.sum(0).mean() / k, inside_real.any(1).mean()


@pytest.mark.parametrize("k", [1, 3])
def test_is_the_definition(k):
    real, fake = RNG.normal(size=(20, 3)), 0.7 * RNG.normal(size=(14, 3)) + 0.3
    np.testing.assert_allclose(prdc(real, fake, k), by_hand(real, fake, k), rtol=1e-12)


def test_extremes():
    real = RNG.normal(size=(30, 4))
    same = prdc(real, real + 1e-6)
    assert same.precision == same.recall == same.coverage == 1
    assert prdc(real, real + 100) == (0, 0, 0, 0)
    collapsed = prdc(real, np.repeat(real[:1], 30, axis=0) + 1e-3 * RNG.normal(size=(30, 4)))
    assert collapsed.precision == 1 and collapsed.recall < 0.1 and collapsed.coverage < 0.6


def test_a_set_is_at_no_distance_from_itself():
    rows = np.float32(RNG.normal(size=(40, 200)) + 3)                        # float32, which is made wider first
    ((_, found),) = distances(rows, rows)
    assert (np.diag(found) == 0).all()


def test_mean_distance_and_refusals():
    assert abs(mean_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) - 10 / 3) < 1e-12
    with pytest.raises(ConfigError, match="needs more than 5 images"):
        prdc(np.zeros((5, 2)), np.zeros((9, 2)))
    with pytest.raises(ConfigError, match="more than 3 images"):
        adm(np.zeros((10, 3)), np.zeros((2, 3)))


def test_half_precision_gives_way_where_it_overflows():
    x = 1000 * RNG.normal(size=(20, 8)).astype(np.float32)
    np.testing.assert_array_equal(squares(x, x), squares(x, x, half=False))
    small = x / 1000
    assert (squares(small, small) != squares(small, small, half=False)).any()
