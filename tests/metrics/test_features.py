"""Measures from features: closed forms that no golden holds, and what is refused."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import inception_score, kid, prdc
from diffusion_jax.metrics.clip_score import clip_score

RNG = np.random.default_rng(0)


def test_kid_is_unbiased():
    x, y = RNG.normal(size=(2, 4000, 4))
    mean, std = kid.kid(x, y, count=50, size=200)
    assert abs(mean) < 3 * std / 50**0.5 and std > 0
    assert kid.kid(x, y + 1, count=10, size=200)[0] > 0.1


def test_the_inception_score_of_sure_and_of_unsure_classifiers():
    sure, unsure = 100 * np.eye(5)[np.arange(50) % 5], np.zeros((50, 5))
    assert abs(inception_score.adm(sure, 25) - 5) < 1e-9 and abs(inception_score.adm(unsure) - 1) < 1e-12
    mean, std = inception_score.torch_fidelity(sure, 1)
    assert abs(mean - 5) < 1e-9 and std == 0


def test_half_precision_gives_way_where_it_overflows():
    x = 1000 * RNG.normal(size=(20, 8)).astype(np.float32)
    np.testing.assert_array_equal(prdc.squares(x, x), prdc.squares(x, x, half=False))
    small = x / 1000
    assert (prdc.squares(small, small) != prdc.squares(small, small, half=False)).any()


def test_clip_scores_of_opposite_and_equal_embeddings():
    x = RNG.normal(size=(4, 8))
    equal, opposite = clip_score(x, 3 * x), clip_score(x, -x)
    assert equal == pytest.approx((100, 2.5, 1)) and opposite == pytest.approx((0, 0, -1))


def test_too_few_images_are_named():
    x = np.zeros((10, 3))
    for call, says in (
        (lambda: kid.kid(x, x), "subsets of 1000 images, the sets have 10 and 10"), (lambda: kid.mmd2(x, x[:4]), "equally many"),
        (lambda: inception_score.torch_fidelity(x[:3], 10), "3 images do not make 10 parts"),
        (lambda: prdc.adm(x, x[:2]), "more than 3 images"),
    ):
        with pytest.raises(ConfigError, match=says):
            call()
