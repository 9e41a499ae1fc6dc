"""The inception score of classifiers whose scores are known, and of others by SciPy's relative entropy."""
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import inception_score

RNG = np.random.default_rng(0)


def by_scipy(p):
    return np.exp(np.mean([entropy(row, p.mean(0)) for row in p]))


def test_the_inception_score_of_sure_and_of_unsure_classifiers():
    sure, unsure = 100 * np.eye(5)[np.arange(50) % 5], np.zeros((50, 5))
    assert abs(inception_score.adm(sure, 25) - 5) < 1e-9 and abs(inception_score.adm(unsure) - 1) < 1e-12
    mean, std = inception_score.torch_fidelity(sure, 1)
    assert abs(mean - 5) < 1e-9 and std == 0


def test_classes_that_never_occur_count_nothing():
    p = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]])
    assert inception_score.score(p) == pytest.approx(by_scipy(p), rel=1e-12)
    assert inception_score.score(p[:1]) == 1


def test_parts_are_in_order_or_equal_after_a_shuffle():
    logits = (3 * RNG.normal(size=(7, 4)) - 1000).astype(np.float32)              # exp would underflow
    p = softmax(np.float64(logits), axis=1)
    assert inception_score.adm(logits, 3) == pytest.approx(np.mean([by_scipy(p[:3]), by_scipy(p[3:6]), 1]), rel=1e-9)
    parts = [by_scipy(p[:3]), by_scipy(p[3:])]
    assert inception_score.torch_fidelity(logits, 2, shuffle=False) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-9)
    whole = [inception_score.torch_fidelity(logits, 1, seed=seed)[0] for seed in (0, 1)]
    assert whole == pytest.approx([by_scipy(p)] * 2, rel=1e-9)
    shuffled = p[np.random.RandomState(2020).permutation(7)]                      # torch-fidelity's default
    parts = [by_scipy(shuffled[:3]), by_scipy(shuffled[3:])]
    assert inception_score.torch_fidelity(logits, 2) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-9)


def test_too_few_images_are_named():
    with pytest.raises(ConfigError, match="3 images do not make 10 parts"):
        inception_score.torch_fidelity(np.zeros((3, 3)), 10)
