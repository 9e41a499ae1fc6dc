"""Cascades: what each stage sees of the one before, and stages that do not fit."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.cascade import STRIDE, Stage, check, low_res, upsampled
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import generate
from pipelines.toy_task import LABEL, LOW_RES, model_of, page

RECIPE = Recipe(steps=3)
BASE = Stage(model_of(page(LABEL)), RECIPE)
UP = Stage(model_of(page(LABEL, LOW_RES, side=16), 1), RECIPE)
LARGER = Stage(model_of(page(LOW_RES, side=32), 2), Recipe(steps=2, levels=0))
RAW = {"label": np.array([3, 7, 1])}


def test_stages_follow_each_other_with_seeds_of_their_own():
    small = next(generate(*BASE, RAW, 3, 5))
    made = np.concatenate(list(upsampled([UP, LARGER], iter([small[:2], small[2:]]), RAW, 3, 5, 2)))
    middle = np.concatenate(list(generate(*UP, RAW | {"low_res": low_res(small)}, 3, 5 + STRIDE, 2)))
    want = np.concatenate(list(generate(*LARGER, {"low_res": np.clip(middle, -1, 1)}, 3, 5 + 2 * STRIDE, 2)))
    assert made.shape == (3, 32, 32, 1)
    np.testing.assert_allclose(made, want, atol=1e-5)


def test_without_upsamplers_batches_stay_as_they_are():
    parts = [np.zeros((2, 8, 8, 1), np.float32), np.ones((1, 8, 8, 1), np.float32)]
    made = list(upsampled([], iter(parts), RAW, 3, 0))
    assert all(a is b for a, b in zip(made, parts, strict=True))


def test_a_small_image_is_seen_as_a_file_holds_it_or_as_it_was_made():
    x = np.float32([[-3, -1, 0.0031, 0.5, 1, 7]]).reshape(1, 1, 6, 1)
    np.testing.assert_allclose(low_res(x).ravel() * 127.5 + 127.5, [0, 0, 128, 191, 255, 255], atol=1e-4)
    np.testing.assert_allclose(low_res(x, 0).ravel(), [-1, -1, 0.0031, 0.5, 1, 1], atol=1e-7)


def test_stages_must_fit():
    check([BASE, UP, LARGER], RAW)
    with pytest.raises(ConfigError, match=r"a model of \(8, 8, 1\) after one of \(8, 8, 1\) must read low_res: no upsampler"):
        check([BASE, BASE], RAW)
    with pytest.raises(ConfigError, match=r"trained on low_res of \(16, 16, 1\), not \(8, 8, 1\)"):
        check([BASE, LARGER], RAW)
    with pytest.raises(ConfigError, match="at least 2 steps"):
        check([BASE, UP._replace(recipe=Recipe(sampler="plms", steps=1))], RAW)
