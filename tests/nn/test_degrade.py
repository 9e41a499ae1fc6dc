"""Degradations keep what they must keep: flat images, the mean, the range; and change what they are there to change."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn import degrade

KEY = jax.random.key(0)
DRAW = np.clip(np.random.default_rng(0).normal(scale=0.4, size=(4, 16, 16, 3)), -1, 1).astype(np.float32)


@pytest.mark.parametrize("part", [degrade.isotropic, degrade.jpeg] + [
    pytest.param(part, marks=pytest.mark.slow) for part in (degrade.blur, degrade.oblique, degrade.smaller)])
def test_a_flat_image_stays_flat(part):
    flat = np.full((2, 12, 16, 1), 0.25, np.float32)
    np.testing.assert_allclose(jax.jit(part)(flat, KEY), flat, atol=0.02 if part is degrade.jpeg else 1e-5)


@pytest.mark.parametrize("part", [degrade.isotropic, degrade.smaller] + [
    pytest.param(part, marks=pytest.mark.slow) for part in (degrade.blur, degrade.oblique)])
def test_filters_take_contrast_away(part):
    out = np.asarray(jax.jit(part)(DRAW, KEY))
    assert out.shape == DRAW.shape
    assert out.std() < DRAW.std() and abs(out.mean() - DRAW.mean()) < 0.01


def test_an_oblong_filter_has_the_deviations_and_the_angle_that_it_is_given():
    point = np.zeros((1, 17, 17, 1), np.float32)
    point[0, 8, 8] = 1
    out = np.asarray(degrade.filtered(point, jnp.array([0.6]), jnp.array([1.5]), jnp.array([0.5])))[0, :, :, 0]
    place = np.arange(17) - 8
    cov = np.array([[np.sum(out * place[None] ** 2), np.sum(out * np.outer(place, place))],
                    [np.sum(out * np.outer(place, place)), np.sum(out * place[:, None] ** 2)]])
    c, s = np.cos(0.5), np.sin(0.5)
    turn = np.array([[c, -s], [s, c]])
    np.testing.assert_allclose(cov, turn @ np.diag([0.6**2, 1.5**2]) @ turn.T, atol=0.05)


def test_jpeg_of_high_quality_changes_little_and_of_low_quality_more(monkeypatch):
    smooth = np.linspace(-1, 1, 16, dtype=np.float32)[None, :, None, None] * np.ones((1, 16, 16, 3), np.float32)
    off = {}
    for quality in (95.0, 10.0):
        monkeypatch.setattr(degrade, "QUALITY", (quality, quality + 1e-3))
        off[quality] = np.abs(np.asarray(degrade.jpeg(smooth, KEY)) - smooth).max()
    assert off[95.0] < 0.05 < off[10.0]


@pytest.mark.slow
def test_bsr_draws_anew_for_every_key_and_stays_in_range():
    one, two = (np.asarray(degrade.bsr(DRAW, jax.random.key(i))) for i in (1, 2))
    assert np.abs(one).max() <= 1 and np.abs(one - two).max() > 0.05 and np.isfinite(one).all()
