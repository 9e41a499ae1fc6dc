"""The UNet: its published sizes, its start, its options, and that remat and dtype change no number. The numbers are goldens."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.unet import ATTENTION, PRESETS, RESAMPLE, UNet, preset

SMALL = dict(width=8, mults=(1, 2), depth=1, attend=(2,), heads=2, groups=4)
LEAST = SMALL | dict(mults=(1,), attend=())
RNG = np.random.RandomState(1)
X, NOISE = np.float32(RNG.randn(2, 4, 6, 3)), np.float32([0, 999])
COND = {
    "vec": np.float32(RNG.randn(2, 32)), "cat": np.float32(RNG.randn(2, 2, 3, 1)), "seq": np.float32(RNG.randn(2, 3, 5)),
    "seq_mask": np.array([[True, True, False], [True, True, True]]),
}
KEY = jax.random.key(0)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random(module, *args, scale=0.3):
    """Parameters without zeros, so that every part shows in the output."""
    rng = np.random.RandomState(0)
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.randn(*leaf.shape), leaf.dtype), shapes)


# Published sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, vec, millions", [           # 2006.11239 app. B; 2105.05233, with the label table
    ("ddpm-cifar10", 0, 35.7),
    pytest.param("adm-imagenet64", 1000, 296, marks=pytest.mark.slow),
    pytest.param("adm-imagenet128", 1000, 422, marks=pytest.mark.slow),
    pytest.param("adm-imagenet256", 1000, 554, marks=pytest.mark.slow),
    pytest.param("adm-imagenet512", 1000, 559, marks=pytest.mark.slow),
])
def test_presets_have_the_published_number_of_parameters(name, vec, millions):
    model, side = UNet(**preset(name)), PRESETS[name]["size"]
    out, variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, side, side, 3)), jnp.zeros(1), {})
    count = sum(leaf.size for leaf in jax.tree.leaves(variables)) + 4 * vec * model.width
    assert count / 1e6 == pytest.approx(millions, rel=2e-3)
    assert out.shape == (1, side, side, 6 if model.learn_sigma else 3) and out.dtype == jnp.float32


def test_presets_attend_at_their_pixels_and_build_from_a_config():
    assert preset("adm-imagenet64")["attend"] == (2, 4, 8) and preset("adm-upsample-128-512")["attend"] == (16, 32)
    for name in PRESETS:
        spec = dict(name="diffusion_jax.models.unet:UNet", **preset(name), dtype="bfloat16")
        assert build(spec) == build(spec) and hash(build(spec)) == hash(build(spec))
    with pytest.raises(ConfigError, match="unknown preset 'adm-imagenet46': did you mean 'adm-imagenet64'"):
        preset("adm-imagenet46")


# Start ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_starts_at_zero():
    out, variables = quick(UNet(**LEAST).init_with_output)(KEY, X, NOISE, {"seq": COND["seq"]})
    np.testing.assert_array_equal(out, 0)
    zero = {path[-2].key for path, leaf in jax.tree.leaves_with_path(variables) if path[-1].key == "kernel" and not leaf.any()}
    assert zero == {"conv2", "proj", "final_conv"}


# Options --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention, resample", zip(ATTENTION, RESAMPLE, strict=True))
def test_every_kind_runs_with_every_condition(attention, resample):
    model = UNet(**SMALL, attention=attention, resample=resample, learn_sigma=False, channels=2, ddpm=True, heads_up=4)
    for cond in ({}, COND):
        out, _ = jax.eval_shape(model.init_with_output, KEY, X[..., :2], NOISE, cond)
        assert out.shape == (2, 4, 6, 2) and out.dtype == jnp.float32


def test_every_condition_is_seen():
    model = UNet(**LEAST)
    apply, params = quick(model.apply), {"params": random(model, X, NOISE, COND)}
    out = apply(params, X, NOISE, COND)
    for key in ("vec", "cat", "seq"):
        assert np.abs(apply(params, X, NOISE, COND | {key: -COND[key]}) - out).max() > 1e-3, key
    unmasked = apply(params, X, NOISE, COND | {"seq_mask": np.ones((2, 3), bool)})
    assert np.abs(unmasked[0] - out[0]).max() > 1e-4
    np.testing.assert_allclose(unmasked[1], out[1], rtol=1e-5, atol=1e-6)


@functools.cache
def output_and_gradient(remat, dtype="float32"):
    """Of a loss, at the same parameters."""
    model = UNet(**LEAST, remat=remat, dtype=dtype)

    def loss(params):
        out = model.apply({"params": params}, X, NOISE, {})
        return jnp.mean(out**2), out

    (_, out), grad = quick(jax.value_and_grad(loss, has_aux=True))(random(model, X, NOISE, {}, scale=0.15))
    return out, grad


@pytest.mark.parametrize("remat", ["full", pytest.param("dots", marks=pytest.mark.slow)])
def test_remat_has_the_same_parameters(remat):
    model = UNet(**SMALL)
    want, got = (jax.eval_shape(m.init, KEY, X, NOISE, COND) for m in (model, model.clone(remat=remat)))
    assert got == want


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_neither_output_nor_gradient(remat):
    (want, want_grad), (got, got_grad) = output_and_gradient(None), output_and_gradient(remat)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got_grad, want_grad)


@pytest.mark.slow
def test_bfloat16_is_close_and_returns_float32():
    model = UNet(**LEAST)
    params, half = {"params": random(model, X, NOISE, {}, scale=0.15)}, model.clone(dtype="bfloat16")
    want, got = quick(model.apply)(params, X, NOISE, {}), quick(half.apply)(params, X, NOISE, {})
    assert got.dtype == jnp.float32 and 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()
    grad = jax.eval_shape(jax.grad(lambda params: half.apply(params, X, NOISE, {}).sum()), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grad)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_the_gradient_in_bfloat16_is_close():
    (_, want), (_, got) = output_and_gradient(None), output_and_gradient(None, "bfloat16")
    off, total = (optax.tree.norm(tree) for tree in (jax.tree.map(jnp.subtract, got, want), want))
    assert 0 < off < 0.05 * total


# Refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, size, cond, message", [
    (dict(mults=(1, 2, 2)), (4, 6), {}, "an image of 4x6 does not halve 2 times"),
    (dict(transformer=(1, 2, 3)), (4, 6), {}, r"transformer of each level are 2 numbers of 1 or more, got \(1, 2, 3\)"),
    (dict(attend=(2, 16)), (4, 6), {}, r"attend=\(2, 16\) names levels that are not there, 2 mults make \[1, 2\]"),
    (dict(heads=3), (4, 6), {}, "16 channels do not divide into heads of 5"),
    (dict(head_channels=6), (4, 6), {}, "16 channels do not divide into heads of 6"),
    (dict(heads_up=5), (4, 6), {}, "16 channels do not divide into heads of 3"),
    (dict(groups=3), (4, 6), {}, "8 channels do not divide into 3 groups"),
    (dict(attention="liner"), (4, 6), {}, "unknown attention 'liner': did you mean 'linear'"),
    (dict(resample="pol"), (4, 6), {}, "unknown resample 'pol': did you mean 'pool'"),
    (dict(dtype="bfloat"), (4, 6), {}, "did you mean 'bfloat16'"),
    (dict(remat="dot"), (4, 6), {}, "unknown remat 'dot': did you mean 'dots'"),
    ({}, (4, 6), {"tokens": COND["seq"]}, "unknown condition of UNet 'tokens'"),
])
def test_refuses_in_one_line(change, size, cond, message):
    with pytest.raises(ConfigError, match=message) as error:
        jax.eval_shape(UNet(**SMALL | change).init, KEY, jnp.zeros((2, *size, 3)), NOISE, cond)
    assert "\n" not in str(error.value)
