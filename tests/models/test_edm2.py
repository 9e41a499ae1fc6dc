"""EDM2: the steps of its ladder, magnitudes at initialisation, and what it refuses. Its numbers are pinned by goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import OneHot
from diffusion_jax.models.edm2 import EDM2, LADDER, PRESETS, Uncertainty, preset

TINY = dict(width=8, mults=(1, 2), depth=1, attend=(2,), head_channels=8, channels=3)
KEY = jax.random.key(0)


def inputs(model, side=8, batch=2, key=jax.random.key(1)):
    shapes = ((batch, side, side, model.channels), (batch,), (batch, model.emb_channels))
    x, noise, vec = (jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes, strict=True))
    return x, noise, {"vec": vec}


def parameters(**options):
    model = EDM2(**{**TINY, **options})
    return jax.eval_shape(model.init, KEY, *inputs(model))["params"]


def names(tree):
    return {path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_the_ladder_changes_the_parameters_as_the_paper_says():
    trees = {letter: parameters(ladder=letter) for letter in LADDER}
    assert {"bias", "scale", "kernel"} == names(trees["A"]) == names(trees["B"])
    assert {"kernel", "freqs", "phases"} == names(trees["C"])                                   # no bias, no gain
    assert {"weight", "freqs", "phases", "emb_gain", "out_gain"} == names(trees["D"]) == names(trees["G"])
    shapes = {letter: jax.tree.map(lambda leaf: leaf.shape, tree) for letter, tree in trees.items()}
    assert shapes["D"] == shapes["E"] and shapes["F"] == shapes["G"]                              # E trains, G computes otherwise
    assert trees["A"]["enc_0_conv"]["kernel"].shape[2] == 3 and trees["C"]["enc_0_conv"]["kernel"].shape[2] == 4
    assert trees["A"]["enc_0_block0"]["emb"]["kernel"].shape[1] == 2 * trees["C"]["enc_0_block0"]["emb"]["kernel"].shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("letter", LADDER)
def test_every_step_starts_at_zero_and_learns_in_every_parameter(letter):
    model = EDM2(**TINY, ladder=letter)
    x, noise, cond = inputs(model)

    @jax.jit
    def run(key):
        params = model.init(key, x, noise, cond)["params"]
        moved = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)         # away from zero gains
        grads = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, x, noise, cond) ** 2))(moved)
        return model.apply({"params": params}, x, noise, cond), grads

    start, grads = jax.device_get(run(KEY))
    assert start.shape == x.shape and not start.any()
    for path, grad in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.isfinite(grad).all()
        assert grad.any() != (path[-1].key in ("freqs", "phases")), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm2-img64-s", "edm2-img512-s"])
@pytest.mark.parametrize("attend", [(), (4, 8)])
def test_magnitudes_stay_near_one_through_the_whole_network(name, attend, capsys):
    """The root mean square of every block's output at initialisation, over draws of weights and inputs; narrow presets."""
    model = EDM2(**{**preset(name), "width": 32}, head_channels=32, attend=attend)

    @jax.jit
    def squares(key):
        weights, draw = jax.random.split(key)
        x, noise, cond = inputs(model, side=32, key=draw)
        params = model.init(weights, x, noise, cond)["params"]
        _, stages = model.apply({"params": params}, x, noise, cond, capture_intermediates=lambda m, _: len(m.scope.path) == 1)
        outputs = {block: stage["__call__"][0] for block, stage in stages["intermediates"].items() if block != "__call__"}
        return {block: jnp.mean(out**2) for block, out in outputs.items()}

    draws = [squares(jax.random.key(seed)) for seed in range(8)]
    found = {block: float(np.sqrt(np.mean([draw[block] for draw in draws]))) for block in draws[0] if block != "out_conv"}
    with capsys.disabled():
        print("\n", name, attend, {block: round(value, 2) for block, value in sorted(found.items())})
    assert len(found) > 30
    assert {block: value for block, value in found.items() if not 0.8 < value < 1.2} == {}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(dtype):
    wide = EDM2(**TINY)
    x, noise, cond = inputs(wide)
    params = jax.jit(wide.init)(KEY, x, noise, cond)["params"]
    params["out_gain"] = jnp.ones(())
    want, got = (jax.jit(model.apply)({"params": params}, x, noise, cond) for model in (wide, EDM2(**TINY, dtype=dtype)))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.1)


def test_labels_are_one_hot_soft_or_absent():
    cond = OneHot(5, 16)
    params = cond.init(KEY, {"label": jnp.arange(2)})
    hard, soft = (cond.apply(params, {"label": label})["vec"] for label in (jnp.array([3, 1]), jnp.eye(5)[jnp.array([3, 1])]))
    np.testing.assert_allclose(hard, soft, rtol=1e-6)
    assert abs(float(jnp.sqrt(jnp.mean(cond.apply(params, {"label": jnp.arange(5)})["vec"] ** 2))) - 1) < 0.01
    for raw in ({"label": jnp.array([3, 1])}, {"label": jnp.eye(5)}):
        assert not cond.apply(params, cond.null(raw))["vec"].any()
    with pytest.raises(ConfigError, match="label 5 is outside 0 ... 4"):
        cond.check({"label": np.array([0, 5])})


def test_uncertainty_is_a_number_for_each_noise_level():
    head = Uncertainty(8)
    noise = jnp.linspace(-1.0, 1.0, 4)
    assert head.apply(head.init(KEY, noise), noise).shape == (4,)


@pytest.mark.parametrize(("options", "says"), [
    (dict(ladder="H"), "unknown step of the ladder 'H'"),
    (dict(dtype="float8"), "unknown dtype 'float8'"),
    (dict(attend=(4,)), "names levels that are not there"),
    (dict(head_channels=5), "do not divide into heads of 5"),
    (dict(mults=(1, 2, 2, 2, 2)), "does not halve 4 times"),
    (dict(remat="half"), "unknown remat"),
])
def test_what_cannot_be_built_is_refused_in_one_line(options, says):
    with pytest.raises(ConfigError, match=says):
        parameters(**options)


def test_conditions_that_it_cannot_take_are_refused():
    model = EDM2(**TINY)
    x, noise, _ = inputs(model)
    for cond, says in (({"seq": x}, "unknown condition of EDM2 'seq'"), ({"vec": jnp.zeros((2, 3))}, "set task.cond.width")):
        with pytest.raises(ConfigError, match=says):
            jax.eval_shape(model.init, KEY, x, noise, cond)
    with pytest.raises(ConfigError, match="unknown preset"):
        preset("edm2-img512-xxxl")
    assert all(preset(name)["width"] == size["width"] for name, size in PRESETS.items())
