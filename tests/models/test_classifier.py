"""The noisy classifier: its published sizes, its four ways to pool, and what it refuses. The numbers are goldens."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.classifier import POOLS, PRESETS, Classifier, preset

SMALL = dict(width=8, mults=(1, 2), depth=1, attend=(2,), heads=2, groups=4, num_classes=5)
LEAST = SMALL | dict(mults=(1,), attend=())
X, NOISE, KEY = np.float32(np.random.RandomState(1).randn(2, 4, 6, 3)), np.float32([0, 999]), jax.random.key(0)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random(model, scale=0.3):
    """Parameters without zeros, so that every part shows in the output."""
    rng = np.random.RandomState(0)
    shapes = jax.eval_shape(model.init, KEY, X, NOISE)["params"]
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.randn(*leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("name, count", [                    # those of the published state dicts
    ("adm-imagenet128", 42568040),
    pytest.param("adm-imagenet64", 65438568, marks=pytest.mark.slow),
    pytest.param("adm-imagenet256", 54096360, marks=pytest.mark.slow),
    pytest.param("adm-imagenet512", 54448360, marks=pytest.mark.slow),
])
def test_presets_have_the_published_number_of_parameters(name, count):
    side = PRESETS[name]["size"]
    model = Classifier(**preset(name))
    out, variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, side, side, 3)), jnp.zeros(1))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert out.shape == (1, 1000) and out.dtype == jnp.float32


def test_presets_build_from_a_config():
    spec = dict(name="diffusion_jax.models.classifier:Classifier", **preset("adm-imagenet512"), num_classes=10)
    assert build(spec) == build(spec) and hash(build(spec)) == hash(build(spec))
    assert build(spec).attend == (16, 32, 64)
    with pytest.raises(ConfigError, match="unknown preset 'adm-imagnet128': did you mean 'adm-imagenet128'"):
        preset("adm-imagnet128")


@pytest.mark.parametrize("pool, resample", zip(POOLS, ("res", "conv", "pool", "res"), strict=True))
def test_every_pool_gives_logits(pool, resample):
    model = Classifier(**SMALL, pool=pool, resample=resample)
    out, _ = jax.eval_shape(model.init_with_output, KEY, X, NOISE)
    assert out.shape == (2, 5) and out.dtype == jnp.float32


def test_the_adaptive_pool_starts_undecided():
    out, _ = quick(Classifier(**LEAST, pool="adaptive").init_with_output)(KEY, X, NOISE)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("pool", ["spatial", "spatial_v2"])
def test_the_spatial_pools_read_the_mean_of_every_feature(pool):
    model = Classifier(**LEAST, pool=pool)
    params = jax.tree.map(np.asarray, random(model, 0.1))
    got, stages = quick(functools.partial(model.apply, capture_intermediates=True))({"params": params}, X, NOISE)
    kept = ["stem", "down_0_res_0", "mid_res_1"]
    means = np.concatenate([np.mean(stages["intermediates"][name]["__call__"][0], axis=(1, 2)) for name in kept], axis=1)
    h = means @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    if pool == "spatial":
        h = np.maximum(h, 0)
    else:
        groups = h.reshape(2, 4, -1)
        h = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
        h = h.reshape(2, -1) * params["final_norm"]["scale"] + params["final_norm"]["bias"]
        h = h / (1 + np.exp(-h))
    want = h @ params["final_linear"]["kernel"] + params["final_linear"]["bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_and_returns_float32():
    model = Classifier(**LEAST)
    params = {"params": random(model, 0.15)}
    want = quick(model.apply)(params, X, NOISE)
    got = quick(model.clone(dtype="bfloat16").apply)(params, X, NOISE)
    assert got.dtype == jnp.float32 and 0 < np.abs(got - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize("change, size, message", [
    (dict(pool="attentoin"), (4, 6), "unknown pool 'attentoin': did you mean 'attention'"),
    (dict(head_channels=6), (4, 6), "16 channels do not divide into heads of 6"),
    (dict(resample="conf"), (4, 6), "unknown resample 'conf': did you mean 'conv'"),
    ({}, (4, 5), "an image of 4x5 does not halve 1 times"),
])
def test_refuses_in_one_line(change, size, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(Classifier(**SMALL | change).init, KEY, jnp.zeros((2, *size, 3)), NOISE)


def test_positions_are_those_of_one_size():
    model = Classifier(**SMALL)
    variables = jax.eval_shape(model.init, KEY, X, NOISE)
    with pytest.raises(ConfigError, match="pools 6 pixels, not 4x4: give it images of its own size"):
        jax.eval_shape(model.apply, variables, jnp.zeros((2, 8, 8, 3)), NOISE)
