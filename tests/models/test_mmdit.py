"""MMDiT against its equations in NumPy, and what its options change; the published numbers are in the goldens."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dit import stack_layers, unstack_layers
from diffusion_jax.models.mmdit import PRESETS, Joint, MMDiT, Seen, Streams, preset
from diffusion_jax.nn.embed import sincos_2d

TINY = MMDiT(**preset("tiny") | {"width": 16, "depth": 4})


def filled(shapes, seed=0, std=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(std * rng.standard_normal(leaf.shape)), shapes)


def inputs(h=8, w=4, seed=0):
    """(x, noise, cond) of two images."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: np.float32(rng.standard_normal(shape))                              # noqa: E731
    return draw(2, h, w, 4), np.float32([999.5, 12.25]), {"seq": draw(2, 5, 12), "vec": draw(2, 6)}


def shapes_of(model, h=8, w=4):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs(h, w))["params"]


@pytest.fixture(scope="module")
def params():
    return filled(shapes_of(TINY))


def block_by_hand(p, x, c, e, heads):
    """(3) to (6), (8) and (9) of a dual block in float64, of one image."""
    dense = lambda layer, a: a @ layer["kernel"] + layer["bias"]                              # noqa: E731
    norm = lambda a: (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)         # noqa: E731
    rms = lambda a, scale: scale * a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)         # noqa: E731
    silu = e / (1 + np.exp(-e))

    def split(layer, a):
        q, k, v = (part.reshape(len(a), heads, -1).transpose(1, 0, 2) for part in np.split(dense(layer["qkv"], a), 3, -1))
        return rms(q, layer["norm_q"]["scale"]), rms(k, layer["norm_k"]["scale"]), v

    def attend(q, k, v):
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out = weights / weights.sum(-1, keepdims=True) @ v
        return out.transpose(1, 0, 2).reshape(q.shape[1], -1)

    def mlp(layer, a):
        h = dense(layer["fc1"], a)
        return dense(layer["fc2"], 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))))

    m = np.split(dense(p["x_modulation"]["linear"], silu), 9)
    n = np.split(dense(p["c_modulation"]["linear"], silu), 6)
    first = norm(x)
    of_x = split(p["x_attn"], first * (1 + m[1]) + m[0])
    of_c = split(p["c_attn"], norm(c) * (1 + n[1]) + n[0])
    both = attend(*(np.concatenate(pair, axis=1) for pair in zip(of_x, of_c, strict=True)))
    x = x + m[2] * dense(p["x_proj"], both[: len(x)])
    x = x + m[8] * dense(p["x_proj2"], attend(*split(p["x_attn2"], first * (1 + m[7]) + m[6])))
    x = x + m[5] * mlp(p["x_mlp"], norm(x) * (1 + m[4]) + m[3])
    c = c + n[2] * dense(p["c_proj"], both[len(x):])
    return x, c + n[5] * mlp(p["c_mlp"], norm(c) * (1 + n[4]) + n[3])


def test_a_dual_block_is_its_equations():
    block = Joint(2, qk_norm="rms", dual=True)
    rng = np.random.default_rng(3)
    x, c, e = (np.float32(rng.standard_normal(shape)) for shape in ((1, 6, 8), (1, 3, 8), (1, 8)))
    shapes = jax.eval_shape(block.init, jax.random.key(0), Streams(x, c), Seen(e, None))["params"]
    p = filled(shapes, std=0.5)
    made = jax.jit(block.apply)({"params": p}, Streams(x, c), Seen(e, None))
    want = block_by_hand(jax.tree.map(np.float64, p), *map(np.float64, (x[0], c[0], e[0])), heads=2)
    for ours, theirs in zip(made, want, strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-4)


def test_positions_are_the_middle_of_the_table():
    """A table that counts patches is DiT's; any image sees the middle of it, and a step squeezes it."""
    model = MMDiT(2, 16, 1, 2, grid=7)
    table = sincos_2d(7, 7, 16).reshape(7, 7, 16)
    np.testing.assert_allclose(model.positions(3, 4), table[2:5, 1:5].reshape(12, 16), atol=1e-12)
    np.testing.assert_allclose(model.clone(grid=8, step=0.5).positions(8, 8), sincos_2d(8, 8, 16, grid=4), atol=1e-12)
    moved = model.clone(origin=-2.0).positions(3, 3)
    np.testing.assert_allclose(moved, sincos_2d(3, 3, 16), atol=1e-12)
    with pytest.raises(ConfigError, match="7x7 patches, the image has 8x2"):
        model.positions(8, 2)


@pytest.mark.slow
def test_a_network_starts_at_zero_and_each_block_as_the_identity():
    fresh = jax.jit(partial(TINY.init_with_output, jax.random.key(0)))
    out, variables = fresh(*inputs())
    assert out.shape == (2, 8, 4, 4) and out.dtype == jnp.float32 and not out.any()
    last = variables["params"]["last"]
    assert not last["x_modulation"]["linear"]["kernel"].any() and last["x_proj"]["kernel"].any()
    assert set(last) == {"x_modulation", "x_attn", "x_proj", "x_mlp", "c_modulation", "c_attn"}
    assert {name: len(variables["params"][name]) for name in ("dual", "joint")} == {"dual": 1, "joint": 2}


@pytest.mark.slow
def test_scanned_blocks_compute_the_same_with_and_without_some_and_in_bfloat16(params):
    args = inputs()
    run = lambda model, params: jax.jit(model.apply)({"params": params}, *args)              # noqa: E731
    plain, stacked = run(TINY, params), stack_layers(params)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), params)
    for remat in (None, "dots", "full"):
        np.testing.assert_allclose(run(TINY.clone(scan=True, remat=remat), stacked), plain, rtol=1e-4, atol=1e-4)
    for skip in ((0,), (1, 2), (3,)):
        without = run(TINY.clone(skip=skip), params)
        assert np.abs(without - plain).max() > 1e-3
        np.testing.assert_allclose(run(TINY.clone(scan=True, skip=skip), stacked), without, rtol=1e-4, atol=1e-4)
    half = run(TINY.clone(dtype="bfloat16"), params)
    assert half.dtype == jnp.float32 and 1e-4 < np.abs(half - plain).mean() / np.abs(plain).mean() < 0.1


@pytest.mark.slow
def test_gradients_of_scanned_blocks_are_those_of_unrolled_ones(params):
    x, noise, cond = inputs()

    def loss(params, model):
        return jnp.mean(model.apply({"params": params}, x, noise, cond) ** 2)

    plain = jax.jit(jax.grad(partial(loss, model=TINY)))(params)
    scanned = jax.jit(jax.grad(partial(loss, model=TINY.clone(scan=True, remat="dots"))))(stack_layers(params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), unstack_layers(scanned), plain)
    still = {path for path, leaf in flatten_dict(plain, sep="/").items() if not np.any(leaf)}
    assert still == {"last/c_attn/norm_q/scale"}                      # of queries of a text that ends there


@pytest.mark.slow
def test_masked_tokens_change_nothing_and_the_pooled_text_may_be_missing(params):
    x, noise, cond = inputs()
    run = jax.jit(lambda cond: TINY.apply({"params": params}, x, noise, cond))
    short = run({**cond, "seq": cond["seq"][:, :3]})
    mask = np.arange(5)[None] < np.array([[3], [3]])
    np.testing.assert_allclose(run({**cond, "seq_mask": mask}), short, rtol=1e-4, atol=1e-5)
    bare = run({"seq": cond["seq"]})
    assert np.abs(bare - run(cond)).max() > 1e-3


@pytest.mark.parametrize("changes, more, says", [
    ({}, {"cat": np.zeros((2, 8, 4, 4), np.float32)}, "condition of MMDiT 'cat'"), ({"dtype": "float16"}, {}, "dtype"),
    ({"remat": "all"}, {}, "remat"), ({"qk_norm": "layer"}, {}, "qk_norm"), ({"heads": 3}, {}, "3 heads"),
    ({"dual": 4}, {}, "at most 3 are dual"), ({"skip": (4,)}, {}, "0 ... 3, skip"),
])
def test_what_does_not_go_together_is_refused_in_one_line(changes, more, says):
    x, noise, cond = inputs()
    with pytest.raises(ConfigError, match=says) as error:
        jax.eval_shape(TINY.clone(**changes).init, jax.random.key(0), x, noise, cond | more)
    assert "\n" not in str(error.value)


def test_a_network_without_tokens_is_refused():
    x, noise, cond = inputs()
    with pytest.raises(ConfigError, match="give a conditioner that makes seq"):
        jax.eval_shape(TINY.init, jax.random.key(0), x, noise, {"vec": cond["vec"]})
    with pytest.raises(ConfigError, match="sd3-medium"):
        preset("sd3-medum")


@pytest.mark.parametrize("name, millions", [
    ("sd3.5-medium", 2469.66 - 147456 * 1536 / 1e6),
    pytest.param("sd3-medium", 2084.95 - 36864 * 1536 / 1e6, marks=pytest.mark.slow),
    pytest.param("sd3.5-large", 8146.28 - 36864 * 2432 / 1e6, marks=pytest.mark.slow),
])
def test_presets_have_the_published_number_of_parameters(name, millions):
    """Of the files' lists of keys, without their tables of positions."""
    model = MMDiT(**PRESETS[name], scan=True)
    cond = {"seq": jnp.zeros((1, 2, 4096)), "vec": jnp.zeros((1, 2048))}
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 16)), jnp.zeros(1), cond)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.02)
