"""The Frechet distance against closed forms."""
import numpy as np

from diffusion_jax.metrics.fid import frechet_distance
from diffusion_jax.metrics.moments import Moments, moments

RNG = np.random.default_rng(0)


def test_of_gaussians_whose_covariances_commute():
    (q, _), a, b = np.linalg.qr(RNG.normal(size=(5, 5))), RNG.uniform(0.1, 3, 5), RNG.uniform(0.1, 3, 5)
    mu, nu = RNG.normal(size=(2, 5))
    got = frechet_distance(Moments(mu, q * a @ q.T), Moments(nu, q * b @ q.T))
    np.testing.assert_allclose(got, np.sum((mu - nu) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rtol=1e-10)


def test_is_scipys_where_the_covariances_do_not_commute():
    from scipy.linalg import sqrtm

    x, y = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)), RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6)) + 1
    a, b = moments(x), moments(y)
    want = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2 * sqrtm(a.cov @ b.cov).real)
    np.testing.assert_allclose(frechet_distance(a, b), want, rtol=1e-8)


def test_survives_fewer_images_than_features():
    x = RNG.normal(size=(10, 40))
    assert abs(frechet_distance(moments(x), moments(x))) < 1e-4
    shift = np.full(40, 0.5)
    np.testing.assert_allclose(frechet_distance(moments(x), moments(x + shift)), 10, rtol=1e-6)
