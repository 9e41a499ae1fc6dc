"""Resampling against loops, known weights and what it must keep."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import resample
from diffusion_jax.nn.resample import downsample, upsample

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_shrinking_takes_means_and_doubling_repeats():
    x = np.asarray(normal(2, 6, 4, 3))
    means = [[x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2)) for c in range(2)] for r in range(3)]
    np.testing.assert_allclose(resample.halve(x), np.moveaxis(means, 2, 0), atol=1e-6)
    np.testing.assert_array_equal(resample.double(x), x.repeat(2, axis=1).repeat(2, axis=2))
    with pytest.raises(ConfigError, match="6x4 does not shrink 3 times"):
        resample.shrink(x, 3)


@pytest.mark.parametrize(("old", "new", "index"), [(4, 8, [0, 0, 1, 1, 2, 2, 3, 3]), (5, 3, [0, 1, 3]), (3, 5, [0, 0, 1, 1, 2])])
def test_nearest_takes_the_pixel_under_the_corner(old, new, index):
    """PyTorch's floor(i old / new)."""
    x = np.asarray(normal(1, old, old, 1))
    np.testing.assert_array_equal(resample.nearest(x, new, old)[0, :, :, 0], x[0, index, :, 0])
    np.testing.assert_array_equal(resample.nearest(x, old, new)[0, :, :, 0], x[0][:, index, 0])


def test_bilinear_keeps_a_slope_and_repeats_the_border():
    ramp = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 3, 1))
    want = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)                        # pixel centres
    np.testing.assert_allclose(resample.bilinear(ramp, 8, 3)[0, :, 1, 0], want, atol=1e-6)
    np.testing.assert_allclose(resample.bilinear(ramp, 2, 3)[0, :, 1, 0], [0.5, 2.5], atol=1e-6)


def test_area_is_the_mean_of_all_pixels_that_are_touched():
    row = jnp.arange(5.0)[None, None, :, None]
    np.testing.assert_allclose(resample.area(row, 1, 3)[0, 0, :, 0], [0.5, 2, 3.5], atol=1e-6)       # 0-1, 1-3, 3-4
    x = normal(1, 6, 4, 2)
    np.testing.assert_allclose(resample.area(x, 3, 2), resample.shrink(x, 2), atol=1e-6)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 3, 2, 0)])
def test_filters_keep_a_constant_and_are_each_others_transpose(taps):
    inside = downsample(jnp.ones((1, 12, 12, 2)), taps)[:, 1:-1, 1:-1], upsample(jnp.ones((1, 12, 12, 2)), taps)[:, 2:-2, 2:-2]
    assert all(jnp.allclose(value, 1, atol=1e-6) for value in inside)
    x, y = normal(1, 8, 8, 2), normal(1, 4, 4, 2)
    down, up = (float(jnp.sum(downsample(x, taps) * y)), float(jnp.sum(x * upsample(y, taps)) / 4))
    assert abs(down - up) < 1e-4


def test_a_filter_by_hand():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 2] = 64
    taps = np.array([1, 3, 3, 1])
    want = np.outer(taps[[2, 0]], taps[[3, 1]])                                 # output (r, c) sees the pixels 2r - 1 ... 2r + 2
    np.testing.assert_allclose(downsample(jnp.asarray(x), (1, 3, 3, 1))[0, :, :, 0], want)
