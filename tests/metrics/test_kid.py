"""Kernel inception distance against loops over pairs, scikit-learn's kernels and what it must be on average."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import kid

RNG = np.random.default_rng(0)


def test_kid_is_unbiased():
    x, y = RNG.normal(size=(2, 4000, 4))
    mean, std = kid.kid(x, y, count=50, size=200)
    assert abs(mean) < 3 * std / 50**0.5 and std > 0
    assert kid.kid(x, y + 1, count=10, size=200)[0] > 0.1


def test_is_a_sum_over_pairs():
    x, y = RNG.normal(size=(2, 7, 3))

    def k(a, b):
        return (sum(a * b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / (7 * 6)
    between = 2 * sum(k(x[i], y[j]) for i, j in pairs) / 7**2
    assert kid.mmd2(x, y) == pytest.approx(within - between, rel=1e-12)


def test_the_kernels_are_scikit_learns():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = RNG.normal(size=(5, 4)), RNG.normal(size=(6, 4))
    np.testing.assert_allclose(kid.polynomial(x, y), pairwise.polynomial_kernel(x, y), rtol=1e-12)
    options = dict(degree=2, gamma=0.3, coef0=0.7)
    np.testing.assert_allclose(kid.polynomial(x, y, **options), pairwise.polynomial_kernel(x, y, **options), rtol=1e-12)
    np.testing.assert_allclose(kid.gaussian(x, y, 1.7), pairwise.rbf_kernel(x, y, 1 / (2 * 1.7**2)), rtol=1e-12)


def test_subsets_have_no_image_twice_and_one_of_all_images_is_the_whole_set():
    drawn = list(kid.subsets(9, 12, count=3, size=5))
    assert len(drawn) == 3
    assert all(len(set(rows)) == 5 and max(rows) < n for pair in drawn for rows, n in zip(pair, (9, 12), strict=True))
    x, y = RNG.normal(size=(2, 8, 3))
    mean, std = kid.kid(x, y, count=2, size=8)
    assert mean == pytest.approx(kid.mmd2(x, y)) and std < 1e-12


def test_too_few_images_are_named():
    x = np.zeros((10, 3))
    for call, says in ((lambda: kid.kid(x, x), "subsets of 1000 images, the sets have 10 and 10"),
                       (lambda: kid.mmd2(x, x[:4]), "equally many"), (lambda: kid.mmd2(x[:1], x[:1]), "at least 2")):
        with pytest.raises(ConfigError, match=says):
            call()
