"""DiT: its start, its two parameter forms, and that no option but dtype changes a number. The numbers themselves are goldens."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.dit import BLOCKS, PRESETS, DiT, preset, stack_layers, unstack_layers
from diffusion_jax.nn.embed import sincos_2d

SMALL = dict(patch=2, width=16, depth=2, heads=2, mlp_ratio=2.0, channels=3)
RNG = np.random.RandomState(1)
X, NOISE, COND = np.float32(RNG.randn(2, 4, 6, 3)), np.float32([0, 999]), {"vec": np.float32(RNG.randn(2, 16))}


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), X, NOISE, {})["params"]


def random(model, scale=0.3):
    """Parameters without zeros, so that every part shows in the output."""
    rng = np.random.RandomState(0)
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.randn(*leaf.shape), leaf.dtype), shapes(model))


def run(model, params, x=X, cond=COND):
    return jax.jit(model.apply)({"params": params}, x, NOISE, cond)


@pytest.mark.parametrize("learn_sigma, channels", [(True, 6), (False, 3)])
@pytest.mark.parametrize("size", [(4, 6), (8, 2)])
def test_output_has_the_size_of_the_input(size, learn_sigma, channels):
    model, x = DiT(**SMALL, learn_sigma=learn_sigma), jnp.zeros((2, *size, 3))
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, NOISE, {})
    assert out.shape == (2, *size, channels) and out.dtype == jnp.float32


def test_starts_at_zero_with_the_official_initialisation():
    out, variables = jax.jit(DiT(**SMALL | dict(width=64)).init_with_output)(jax.random.key(0), X, NOISE, {})
    np.testing.assert_array_equal(out, 0)
    params = variables["params"]
    block = params["blocks_0"]
    for kernel, fans in [(params["patch"], 12 + 64), (block["attn"]["qkv"], 64 + 192), (block["mlp"]["fc1"], 64 + 128)]:
        bound = (6 / fans) ** 0.5
        assert 0.9 * bound < jnp.abs(kernel["kernel"]).max() <= bound
    assert abs(float(params["time"]["fc1"]["kernel"].std()) - 0.02) < 1e-3
    zero = [block["modulation"], params["final"]["modulation"], params["final"]["linear"]]
    assert not any(leaf.any() for leaf in jax.tree.leaves(zero))
    assert not any(leaf.any() for path, leaf in jax.tree.leaves_with_path(params) if path[-1].key == "bias")


@pytest.mark.parametrize("depth", [pytest.param(2, marks=pytest.mark.slow), 11])         # blocks_10 comes before blocks_2
def test_stacked_and_unrolled_parameters_convert_exactly(depth):
    unrolled, scanned = DiT(**SMALL | dict(depth=depth)), DiT(**SMALL | dict(depth=depth), scan=True)
    params = {"model": random(unrolled), "cond": {"table": jnp.ones(3)}}
    stacked = stack_layers(params)
    assert jax.tree.map(jnp.shape, stacked["model"]) == jax.tree.map(jnp.shape, shapes(scanned))
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)
    for i in range(depth):
        np.testing.assert_array_equal(
            stacked["model"]["blocks"]["mlp"]["fc1"]["bias"][i], params["model"][f"blocks_{i}"]["mlp"]["fc1"]["bias"]
        )


@functools.cache
def output_and_gradient(scan, remat):
    """Of a loss, at unrolled parameters."""
    model = DiT(**SMALL, scan=scan, remat=remat)

    def loss(params):
        out = model.apply({"params": stack_layers(params) if scan else params}, X, NOISE, COND)
        return jnp.mean(out**2), out

    options = {"xla_cpu_use_fusion_emitters": True}        # without them, as conftest.py has it, the order of sums shows
    (_, out), grad = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)(random(DiT(**SMALL)))
    return out, grad


@pytest.mark.slow
def test_blocks_that_are_passed_over_are_those_of_a_shorter_network():
    """Of three blocks without the middle one: a network of two, in both forms of its parameters."""
    whole = DiT(**SMALL | dict(depth=3))
    params = random(whole)
    shorter = {name: value for name, value in params.items() if name != "blocks_1"} | {"blocks_1": params["blocks_2"]}
    shorter.pop("blocks_2")
    want = run(DiT(**SMALL), shorter)
    np.testing.assert_allclose(run(whole.clone(skip=(1,)), params), want, atol=1e-5)
    np.testing.assert_allclose(run(whole.clone(skip=(1,), scan=True), stack_layers(params)), want, atol=1e-5)
    assert np.abs(run(whole, params) - want).max() > 1e-3
    with pytest.raises(ConfigError, match=r"blocks of this network are 0 ... 2, skip is \(3,\)"):
        run(whole.clone(skip=(3,)), params)


@pytest.mark.parametrize("scan, remat", [
    (True, "dots"), pytest.param(True, None, marks=pytest.mark.slow), pytest.param(False, "full", marks=pytest.mark.slow),
    pytest.param(True, "full", marks=pytest.mark.slow),
])
def test_scan_and_remat_change_neither_output_nor_gradient(scan, remat):
    (want, want_grad), (got, got_grad) = output_and_gradient(False, None), output_and_gradient(scan, remat)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got_grad, want_grad)


def test_bfloat16_is_close_and_returns_float32():
    model = DiT(**SMALL)
    params = random(model, 0.15)
    want, got = run(model, params), run(model.clone(dtype="bfloat16"), params)
    assert got.dtype == jnp.float32
    assert 0 < jnp.abs(got - want).max() < 0.05 * jnp.abs(want).max()


def test_condition_is_added_and_may_be_missing():
    model = DiT(**SMALL)
    params = random(model)
    without = run(model, params, cond={})
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply({"params": params}, X, NOISE, {"vec": jnp.zeros((2, 16))}), without, rtol=1e-6)
    assert np.abs(apply({"params": params}, X, NOISE, COND) - without).max() > 0.01


def test_positions_tell_equal_patches_apart():
    model = DiT(**SMALL)
    out = np.asarray(run(model, random(model), x=np.ones_like(X)))
    tokens = out.reshape(2, 2, 2, 3, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, -1)
    distance = np.abs(tokens[:, :, None] - tokens[:, None]).max(-1)
    assert (distance + np.eye(6) > 1e-3).all()


@pytest.mark.parametrize("change, cond, message", [
    (dict(patch=4), {}, "does not divide into patches"),
    (dict(heads=3), {}, "does not divide into 3 heads"),
    (dict(width=18), {}, "multiple of 4"),
    (dict(remat="ful"), {}, "unknown remat 'ful': did you mean 'full'"),
    (dict(dtype="bfloat"), {}, "did you mean 'bfloat16'"),
    ({}, {"seq": jnp.zeros((2, 3, 16))}, "unknown condition of DiT with adaln_zero blocks 'seq'"),
])
def test_refuses_in_one_line(change, cond, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(DiT(**SMALL | change).init, jax.random.key(0), X, NOISE, cond)


def test_presets_build_from_a_config():
    spec = dict(name="diffusion_jax.models.dit:DiT", **preset("DiT-S/4"), channels=1)
    model = build(spec)
    assert model == build(spec) and hash(model) == hash(build(spec))
    assert model == DiT(patch=4, width=384, depth=12, heads=6, channels=1)
    assert len(PRESETS) == 12 and all(name.endswith(f"/{size['patch']}") for name, size in PRESETS.items())


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'DiT-XL/2'"):
        preset("DiT-XL2")


def flops(model, x, vec):
    """Multiply-adds of the products in one forward pass for one image, read off the traced program."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            inner = [value.jaxpr for value in eqn.params.values() if hasattr(value, "jaxpr")]
            total += eqn.params.get("length", 1) * sum(map(count, inner))
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                left = eqn.invars[0].aval.shape
                total += eqn.outvars[0].aval.size * np.prod([left[axis] for axis in contracted])
        return total

    params = jax.eval_shape(model.init, jax.random.key(0), x, NOISE[:1], {"vec": vec})
    return count(jax.make_jaxpr(model.apply)(params, x, NOISE[:1], {"vec": vec}).jaxpr)


@pytest.mark.parametrize(
    ("block", "billions"), [("in_context", 119.4), ("cross_attention", 137.6), ("adaln", 118.6), ("adaln_zero", 118.6)]
)
def test_the_four_blocks_cost_what_the_paper_says(block, billions):
    model = DiT(**preset("DiT-XL/2"), block=block, scan=True)
    found = flops(model, jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((1, 1152), jnp.float32))
    assert abs(found / 1e9 - billions) < 0.2                               # 2212.09748 section 5


@pytest.mark.parametrize("block", [BLOCKS[0]] + [pytest.param(block, marks=pytest.mark.slow) for block in BLOCKS[1:]])
def test_every_block_sees_time_and_vec(block):
    model = DiT(**SMALL, block=block)
    params = model_params(model, COND)
    out = run(model, params)
    assert not np.allclose(out, run(model, params, cond={"vec": COND["vec"][::-1]}), atol=1e-4)
    later = jax.jit(model.apply)({"params": params}, X, NOISE[::-1], COND)
    assert not np.allclose(out, later, atol=1e-4)


def model_params(model, cond):
    """Parameters without zeros for a network that sees `cond`."""
    rng, found = np.random.RandomState(0), jax.eval_shape(model.init, jax.random.key(0), X, NOISE, cond)["params"]
    return jax.tree.map(lambda leaf: np.asarray(0.3 * rng.randn(*leaf.shape), leaf.dtype), found)


@pytest.mark.parametrize("block", [pytest.param("cross_attention", marks=pytest.mark.slow), "in_context"])
def test_tokens_that_are_masked_do_not_count(block):
    model, seq = DiT(**SMALL, block=block), jnp.asarray(RNG.randn(2, 3, 16), jnp.float32)
    cond = COND | {"seq": seq, "seq_mask": jnp.array([[True, True, False]] * 2)}
    params = model_params(model, cond)
    out = run(model, params, cond=cond)
    np.testing.assert_allclose(run(model, params, cond=cond | {"seq": seq.at[:, 2].set(9.0)}), out, atol=1e-5)
    np.testing.assert_allclose(run(model, params, cond=COND | {"seq": seq[:, :2]}), out, atol=1e-5)
    assert not np.allclose(run(model, params, cond=cond | {"seq": seq.at[:, 1].set(9.0)}), out, atol=1e-3)


def test_positions_of_a_larger_image_lie_between_those_of_the_grid():
    model = DiT(**SMALL)
    params = model_params(model, COND)
    square = jnp.asarray(RNG.randn(2, 4, 4, 3), jnp.float32)
    np.testing.assert_array_equal(run(model, params, square), run(model.clone(grid=2), params, square))
    assert run(model.clone(grid=2), params, jnp.zeros((2, 8, 8, 3))).shape == (2, 8, 8, 6)
    table, fine = sincos_2d(2, 2, 16), sincos_2d(4, 4, 16, grid=2)
    np.testing.assert_allclose(fine.reshape(4, 4, 16)[::2, ::2], table.reshape(2, 2, 16), atol=1e-12)


def test_a_small_image_is_stacked_behind_x():
    model, cond = DiT(**SMALL), COND | {"cat": jnp.asarray(RNG.randn(2, 2, 3, 3), jnp.float32)}
    params = model_params(model, cond)
    assert params["patch"]["kernel"].shape == (2 * 2 * 6, 16)
    assert not np.allclose(run(model, params, cond=cond), run(model, params, cond=cond | {"cat": 0 * cond["cat"]}), atol=1e-4)
