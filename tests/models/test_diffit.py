"""DiffiT of latents: relative positions, published sizes, start, options, refusals. The numbers are goldens."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.diffit import PRESETS, TMSA, DiffiT, position_bias, preset, relative_positions
from diffusion_jax.models.dit import stack_layers

SMALL = dict(patch=2, width=16, depth=2, heads=2, grid=3, mlp_ratio=2.0, channels=3)
RNG, KEY = np.random.RandomState(1), jax.random.key(0)
NOISE, COND = np.float32([0, 999]), {"vec": np.float32(RNG.randn(2, 16)), "cat": np.float32(RNG.randn(2, 2, 3, 1))}
X = np.float32(RNG.randn(2, 6, 6, 3))
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random(model, *args, scale=0.3):
    """Parameters without zeros, so that every part shows in the output."""
    rng, shapes = np.random.RandomState(0), jax.eval_shape(model.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.randn(*leaf.shape), leaf.dtype), shapes)


def run(model, params, *args):
    return quick(model.apply)({"params": params}, *args)


# Attention ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_relative_positions_count_offsets(window):
    index, side = relative_positions(window), 2 * window - 1
    places = [(row, col) for row in range(window) for col in range(window)]
    for i, (row, col) in enumerate(places):
        for j, (other_row, other_col) in enumerate(places):
            assert index[i, j] == (row - other_row + window - 1) * side + col - other_col + window - 1
    table = np.float32(RNG.randn(side**2, 3))
    np.testing.assert_array_equal(position_bias(jnp.asarray(table), window), table[index].transpose(2, 0, 1))


def test_the_windows_of_a_sample_see_its_condition_only():
    part, x, c = TMSA(2, 3), np.float32(RNG.randn(6, 9, 8)), np.float32(RNG.randn(2, 5))
    params = random(part, x, c)
    together, alone = run(part, params, x, c), run(part, params, x, np.repeat(c, 3, axis=0))
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    other = run(part, params, x, np.stack([c[0], c[1] + 1]))
    changed = np.abs(other - together).max((1, 2)) > 1e-3
    assert changed.tolist() == [False] * 3 + [True] * 3


# The network ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, official", [
    ("DiffiT-256", 561_330_144),                                            # 561 M in 2312.02139
    ("DiffiT-512", 561_330_144 + 28 * 16 * (63**2 - 31**2) + 1152 * (32**2 - 16**2)),  # larger tables, more positions
])
def test_presets_have_the_published_number_of_parameters(name, official):
    model = DiffiT(**preset(name), scan=True)
    side = model.grid * model.patch
    out, variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, side, side, 4)), jnp.zeros(1), {})
    assert out.shape == (1, side, side, 8)
    labels, positions = 1001 * model.width, model.grid**2 * model.width     # the official model counts both
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) + labels + positions == official
    assert build(dict(name="diffusion_jax.models.diffit:DiffiT", **PRESETS[name])) == DiffiT(**preset(name))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'DiffiT-256'"):
        preset("DiffiT-265")


def test_starts_at_zero():
    out, variables = quick(DiffiT(**SMALL | dict(depth=1)).init_with_output)(KEY, X, NOISE, {})
    np.testing.assert_array_equal(out, 0)
    assert 0.01 < variables["params"]["blocks_0"]["attn"]["table"].std() < 0.03


@functools.cache
def output_and_gradient(scan, remat):
    """Of a loss, at unrolled parameters."""
    model = DiffiT(**SMALL, scan=scan, remat=remat)

    def loss(params):
        out = model.apply({"params": stack_layers(params) if scan else params}, X, NOISE, COND)
        return jnp.mean(out**2), out

    (_, out), grad = quick(jax.value_and_grad(loss, has_aux=True))(random(DiffiT(**SMALL), X, NOISE, COND))
    return out, grad


@pytest.mark.slow
@pytest.mark.parametrize("scan, remat", [(True, None), (False, "full"), (True, "dots")])
def test_scan_and_remat_change_neither_output_nor_gradient(scan, remat):
    (want, want_grad), (got, got_grad) = output_and_gradient(False, None), output_and_gradient(scan, remat)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got_grad, want_grad)


def test_every_parameter_has_a_gradient():
    _, grad = output_and_gradient(False, None)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grad))


def test_time_and_label_are_seen_and_the_label_may_be_missing():
    model = DiffiT(**SMALL)
    params = random(model, X, NOISE, {})
    apply = quick(model.apply)
    out = apply({"params": params}, X, NOISE, {"vec": COND["vec"]})
    assert np.abs(apply({"params": params}, X, NOISE[::-1], {"vec": COND["vec"]}) - out).max() > 0.01
    assert np.abs(apply({"params": params}, X, NOISE, {"vec": 0 * COND["vec"]}) - out).max() > 0.01


def test_bfloat16_is_close_and_returns_float32():
    model = DiffiT(**SMALL)
    params = random(model, X, NOISE, {}, scale=0.15)
    want, got = run(model, params, X, NOISE, {}), run(model.clone(dtype="bfloat16"), params, X, NOISE, {})
    assert got.dtype == jnp.float32
    assert 0 < jnp.abs(got - want).max() < 0.05 * jnp.abs(want).max()


@pytest.mark.parametrize("change, cond, message", [
    (dict(grid=4), {}, "is made for images of 8x8, not 6x6: set model.grid or task.shape"),
    (dict(heads=3), {}, "does not divide into 3 heads"),
    (dict(width=18), {}, "multiple of 4"),
    (dict(remat="ful"), {}, "unknown remat 'ful': did you mean 'full'"),
    (dict(dtype="bfloat"), {}, "did you mean 'bfloat16'"),
    ({}, {"vec": jnp.zeros((2, 8))}, "sees a vec of 16 channels, not 8: set task.cond.width"),
    ({}, {"seq": jnp.zeros((2, 3, 16))}, "unknown condition of DiffiT 'seq'"),
])
def test_refuses_in_one_line(change, cond, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(DiffiT(**SMALL | change).init, KEY, X, NOISE, cond)
