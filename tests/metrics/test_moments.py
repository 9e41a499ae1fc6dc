"""Streaming moments against NumPy, whatever the batches, and the files they come in."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import moments as m

RNG = np.random.default_rng(0)
FEATURES = (3 * RNG.normal(size=(101, 6)) + 1000).astype(np.float32)         # far from 0: sums of squares would lose digits


@pytest.mark.parametrize("cuts", [[], [1], [50], [7, 8, 9, 100], list(range(1, 101))])
def test_batches_do_not_matter(cuts):
    got = m.moments(m.total(np.split(FEATURES, cuts)))
    np.testing.assert_allclose(got.mean, FEATURES.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(got.cov, np.cov(FEATURES.T.astype(np.float64)), rtol=1e-9, atol=1e-10)
    assert got.cov.dtype == np.float64


def test_one_process_merges_nothing():
    found = m.sums(FEATURES)
    assert m.over_processes(found) is found


def test_files_hold_what_was_saved_and_the_others_are_named(tmp_path):
    found = m.moments(FEATURES)
    m.save(tmp_path / "x" / "stats.npz", found)
    for a, b in zip(m.load(tmp_path / "x" / "stats.npz"), found, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ConfigError, match="no statistics mu_s"):
        m.load(tmp_path / "x" / "stats.npz", spatial=True)
    (tmp_path / "bad.npz").write_bytes(b"no statistics")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    for name, says in (("bad", "not an .npz"), ("missing", "not an .npz"), ("odd", "no statistics of features")):
        with pytest.raises(ConfigError, match=says):
            m.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(("features", "says"), [
    (np.zeros((1, 3)), "at least 2 images"), (np.full((4, 3), np.nan), "not finite"), (np.zeros(3), r"features \[N, D\]"),
])
def test_bad_features_are_refused(features, says):
    with pytest.raises(ConfigError, match=says):
        m.moments(features)
    with pytest.raises(ConfigError, match="no features at all"):
        m.total([])
