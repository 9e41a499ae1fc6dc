"""CLIP scores of embeddings whose angles are known."""
import numpy as np
import pytest

from diffusion_jax.metrics.clip_score import clip_score, cosines

RNG = np.random.default_rng(0)


def test_clip_scores_of_opposite_and_equal_embeddings():
    x = RNG.normal(size=(4, 8))
    equal, opposite = clip_score(x, 3 * x), clip_score(x, -x)
    assert equal == pytest.approx((100, 2.5, 1)) and opposite == pytest.approx((0, 0, -1))


def test_the_definitions_differ_in_what_they_cut_off():
    """One pair at 0 degrees and one at 120: the mean is cut, or each."""
    images, texts = np.array([[1.0, 0], [2, 0]]), np.array([[5.0, 0], [-1, 3**0.5]])
    np.testing.assert_allclose(cosines(images, texts), [1, -0.5], atol=1e-12)
    assert clip_score(images, texts) == pytest.approx((25, 1.25, 0.25))


def test_cosines_are_those_of_pairs():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x, y = (RNG.normal(size=(2, 6, 5)) * [[[1e-3]], [[1e3]]]).astype(np.float32)
    np.testing.assert_allclose(cosines(x, y), np.diag(pairwise.cosine_similarity(np.float64(x), np.float64(y))), atol=1e-12)
