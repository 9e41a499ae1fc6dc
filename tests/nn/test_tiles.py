import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.resample import double, halve
from diffusion_jax.nn.tiles import tiled

X = jax.random.normal(jax.random.key(0), (2, 20, 28, 3))


@pytest.mark.parametrize("f", [lambda x: 2 * x, double, halve], ids=["same", "double", "halve"])
@pytest.mark.parametrize("tile, overlap", [(8, 2), (12, 0), (16, 6)])
def test_a_local_map_is_the_same_in_tiles(f, tile, overlap):
    np.testing.assert_allclose(tiled(f, X, tile, overlap), f(X), atol=1e-6)


def test_a_constant_that_differs_from_tile_to_tile_is_blended_without_a_seam():
    y = tiled(lambda x: jnp.zeros_like(x) + jnp.mean(x, axis=(1, 2), keepdims=True), jnp.cumsum(jnp.ones((1, 8, 64, 1)), 2), 8, 6)
    assert float(jnp.max(jnp.abs(jnp.diff(y[0, 0, :, 0])))) < 1.5


def test_an_overlap_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="overlap"):
        tiled(double, X, 8, 8)
