import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.resample import double, halve
from diffusion_jax.nn.tiles import tiled

X = jax.random.normal(jax.random.key(0), (2, 20, 28, 3))
TILE, OVERLAP = 96, 24                          # of pipelines/latent.py: a latent has an eighth of the rows of its picture


@pytest.mark.parametrize("f", [lambda x: 2 * x, double, halve], ids=["same", "double", "halve"])
@pytest.mark.parametrize("tile, overlap", [
    (16, 6), (18, 17), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((8, 2), (12, 0), (20, 0), (24, 4)))])
def test_a_local_map_is_the_same_in_tiles(f, tile, overlap):
    np.testing.assert_allclose(tiled(f, X, tile, overlap), f(X), rtol=1e-6, atol=1e-6)


def test_a_constant_that_differs_from_tile_to_tile_is_blended_without_a_seam():
    y = tiled(lambda x: jnp.zeros_like(x) + jnp.mean(x, axis=(1, 2), keepdims=True), jnp.cumsum(jnp.ones((1, 8, 64, 1)), 2), 8, 6)
    assert float(jnp.max(jnp.abs(jnp.diff(y[0, 0, :, 0])))) < 1.5


def test_an_overlap_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="overlap"):
        tiled(double, X, 8, 8)


def spoils(reach):
    """A map that says which rows lie within `reach` of a border of its tile, but for borders of the whole, where x is 2."""
    def f(x):
        near = jnp.minimum(jnp.arange(x.shape[1]), jnp.arange(x.shape[1])[::-1]) < reach
        top, bottom = x[:, :1] == 2, x[:, -1:] == 2
        half = jnp.arange(x.shape[1])[None, :, None, None] < x.shape[1] / 2
        return jnp.float32(near[None, :, None, None] & ~jnp.where(half, top, bottom))

    return f


@pytest.mark.parametrize("rows", [97, 169, 170, 241] + [        # a tile and a row, and about where another tile begins
    pytest.param(rows, marks=pytest.mark.slow) for rows in (104, 120, 128, 168, 192, 240, 256, 512)])
def test_rows_beside_a_border_weigh_no_more_than_a_ramp_over_the_overlap_gives_them(rows):
    """A row 6 from a border weighs 6 / 25 on a ramp over 24 rows: no ramp that is linear does better."""
    x = jnp.ones((1, rows, 4, 1)).at[:, [0, -1]].set(2)
    assert float(jnp.max(tiled(spoils(6), x, TILE, OVERLAP))) < 6 / 25 + 1e-3


def test_tiles_lie_evenly_and_on_the_multiples_of_what_shrinks():
    """The first number of a tile tells where it was."""
    first = []

    def f(x):
        jax.debug.callback(lambda number: first.append(int(number)), x[0, 0, 0, 0])
        return halve(x)

    for rows, tile, overlap in ((52, 20, 6), (44, 20, 0), (88, 16, 4)):
        first.clear()
        tiled(f, jnp.arange(rows, dtype=jnp.float32)[None, :, None, None] * jnp.ones((1, 1, 4, 1)), tile, overlap)
        jax.effects_barrier()
        starts = np.unique(first)
        gaps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] == rows - tile and (starts % 2 == 0).all()
        assert np.ptp(gaps) <= 2 and gaps.max() <= tile - overlap


def convolutions(x):
    """Four convolutions of 3 x 3 with noise for weights: what a row is depends on four on either side."""
    for i in range(4):
        weights = jax.random.normal(jax.random.key(i), (3, 3, x.shape[-1], 8)) / (9 * x.shape[-1]) ** 0.5
        x = jnp.tanh(2 * jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return x


@pytest.mark.parametrize(("rows", "columns"), [
    (169, 6), (6, 169), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((97, 6), (256, 6), (100, 104)))])
def test_the_seam_of_four_convolutions_is_far_below_their_spread(rows, columns):
    """Pictures of 776, 1352 and 2048 rows."""
    x = jax.random.normal(jax.random.key(9), (1, rows, columns, 4))
    whole = convolutions(x)
    seam = float(jnp.max(jnp.abs(tiled(convolutions, x, TILE, OVERLAP) - whole)) / jnp.std(whole))
    assert seam < 0.2
