"""Sinusoidal tables against their definitions written as loops, and patches against slices."""
import math

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.embed import patchify, sincos_2d, timestep_embedding, unpatchify


@pytest.mark.parametrize("dim, max_period", [(8, 1e4), (7, 1e4), (6, 100.0)])
def test_timestep_embedding_is_its_definition(dim, max_period):
    t = [0.0, 0.25, 1.0, 37.5, 999.0]
    half = dim // 2
    want = np.zeros((len(t), dim))
    for row, time in enumerate(t):
        for i in range(half):
            angle = time * math.exp(-math.log(max_period) * i / half)
            want[row, i], want[row, half + i] = math.cos(angle), math.sin(angle)
    np.testing.assert_allclose(timestep_embedding(jnp.array(t), dim, max_period), want, atol=1e-4)


def test_timestep_embedding_takes_integers():
    np.testing.assert_array_equal(timestep_embedding(jnp.array([3]), 8), timestep_embedding(jnp.array([3.0]), 8))


def test_position_table_is_its_definition():
    h, w, width = 3, 2, 8
    table = sincos_2d(h, w, width)
    assert table.dtype == np.float64
    for row in range(h):
        for col in range(w):
            want = [wave(axis / 1e4 ** (i / 2)) for axis in (col, row) for wave in (math.sin, math.cos) for i in range(2)]
            np.testing.assert_allclose(table[row * w + col], want, rtol=1e-12, atol=1e-15)


def test_position_table_needs_four_parts():
    with pytest.raises(ConfigError, match="multiple of 4, got 6"):
        sincos_2d(2, 2, 6)


def test_patches_are_slices_and_come_back():
    x = np.random.RandomState(0).randn(2, 4, 6, 3)
    tokens = patchify(jnp.asarray(x), 2)
    for row in range(2):
        for col in range(3):
            want = x[:, 2 * row:2 * row + 2, 2 * col:2 * col + 2].reshape(2, -1)
            np.testing.assert_allclose(tokens[:, 3 * row + col], want, rtol=1e-6)
    np.testing.assert_array_equal(unpatchify(tokens, 4, 6, 2), jnp.asarray(x))


@pytest.mark.parametrize("h, w", [(5, 4), (4, 6)])
def test_patches_must_divide_the_image(h, w):
    with pytest.raises(ConfigError, match="does not divide into patches of 4x4"):
        patchify(jnp.zeros((1, h, w, 1)), 4)
