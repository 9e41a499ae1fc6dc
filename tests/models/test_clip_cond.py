"""A CLIP's embeddings as a condition: noise in training alone, and what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip_cond import Features

KEY = jax.random.key(0)
COND = Features(64, width=8, noise=0.75)
Y = np.float32(np.random.RandomState(0).randn(50, 64))
RAW = {"clip_image": 8 * Y / np.linalg.norm(Y, axis=1, keepdims=True)}


def test_noise_turns_a_vector_by_a_known_angle_and_only_in_training():
    found = jax.jit(COND.prepare)(RAW, KEY)["clip_image"]
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 8, rtol=1e-5)
    assert np.abs(np.mean(np.sum(found * RAW["clip_image"], axis=1)) / 64 - 1 / np.hypot(1, 0.75)) < 0.02
    assert COND.prepare(RAW, KEY, level=0.0) is RAW and Features(64, 8, noise=0.0).prepare(RAW, KEY) is RAW


def test_the_null_condition_is_no_direction():
    params = jax.jit(COND.init)(KEY, RAW)
    null = COND.null(RAW)
    assert not null["clip_image"].any()
    vec = jax.jit(COND.apply)(params, null)["vec"]
    assert vec.shape == (50, 8) and (vec == vec[:1]).all()


def test_other_features_are_refused():
    with pytest.raises(ConfigError, match=r"is \[B, 64\], not \(2, 3\): use the CLIP"):
        COND.check({"clip_image": np.zeros((2, 3))})
