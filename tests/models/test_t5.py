"""T5's encoder against its equations in NumPy; the published numbers are in the goldens."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models import t5
from diffusion_jax.models.dit import stack_layers, unstack_layers
from diffusion_jax.models.t5 import PRESETS, T5Encoder, preset

TOWER = T5Encoder(**preset("tiny") | {"vocab": 40, "width": 12, "heads": 3, "head_channels": 6, "hidden": 20})
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(TOWER.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape) * 0.4 + (leaf.ndim == 1)), shapes)


def bucket(d, number, most):
    """(4) in double precision: the fraction decides nowhere but at whole numbers."""
    half, far = number // 2, abs(d)
    exact = half // 2
    place = far if far < exact else min(exact + int((half - exact) * math.log(far / exact) / math.log(most / exact)), half - 1)
    return place + half * (d > 0)


@pytest.mark.parametrize("number, most", [(32, 128), (16, 40), (8, 9)])
def test_buckets_are_those_of_the_equation(number, most):
    distance = np.array([d for d in range(-150, 151) if math.log2(max(abs(d), 1)) % 1])       # powers of two: see the goldens
    np.testing.assert_array_equal(t5.buckets(distance, number, most), [bucket(d, number, most) for d in distance])


def test_buckets_that_cannot_be_are_refused():
    for number, most, says in ((6, 128, "multiple of 4"), (0, 128, "multiple of 4"), (32, 8, "above that")):
        with pytest.raises(ConfigError, match=says):
            t5.buckets(np.arange(3), number, most)


def by_hand(p, tokens, mask):
    """(1) to (3), one text and one head at a time."""
    def rms(x, scale):
        return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + TOWER.eps)

    p = jax.tree.map(np.float64, p)
    out = []
    for row, kept in zip(tokens, mask, strict=True):
        x = p["token"][row]
        for i in range(TOWER.layers):
            b = p[f"blocks_{i}"]
            q, k, v = np.split(rms(x, b["norm1"]["scale"]) @ b["qkv"]["kernel"], 3, axis=-1)
            heads = []
            for h in range(TOWER.heads):
                part = slice(h * TOWER.head_channels, (h + 1) * TOWER.head_channels)
                logits = q[:, part] @ k[:, part].T
                logits += [[p["bias"][bucket(key - query, 32, 128), h] for key in range(len(row))] for query in range(len(row))]
                weights = np.where(kept[None], np.exp(logits - logits.max()), 0)
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
            x = x + np.concatenate(heads, -1) @ b["proj"]["kernel"]
            n = rms(x, b["norm2"]["scale"])
            g = n @ b["gate"]["kernel"]
            gelu = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
            x = x + (gelu * (n @ b["fc1"]["kernel"])) @ b["fc2"]["kernel"]
        out.append(rms(x, p["norm"]["scale"]))
    return np.stack(out)


def test_the_encoder_is_its_equations(params):
    mask = np.arange(9)[None] < np.array([[9], [5]])
    run = jax.jit(TOWER.apply)
    np.testing.assert_allclose(run({"params": params}, TOKENS, mask), by_hand(params, TOKENS, mask), rtol=2e-4, atol=2e-4)
    assert np.isnan(run({"params": params}, TOKENS + 40, mask)).all()                     # beyond the vocabulary


@pytest.mark.slow
def test_scanned_blocks_compute_the_same_and_bfloat16_nearly(params):
    plain = TOWER.apply({"params": params}, TOKENS)
    scanned = TOWER.clone(scan=True, remat="dots").apply({"params": stack_layers(params)}, TOKENS)
    np.testing.assert_allclose(scanned, plain, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stack_layers(params)), params)
    half = TOWER.clone(dtype="bfloat16").apply({"params": params}, TOKENS)
    assert half.dtype == jnp.float32 and 1e-5 < np.abs(half - plain).mean() < 0.05


def test_unknown_options_are_refused(params):
    with pytest.raises(ConfigError, match="dtype"):
        TOWER.clone(dtype="float16").apply({"params": params}, TOKENS)
    with pytest.raises(ConfigError, match="remat"):
        TOWER.clone(remat="all").apply({"params": params}, TOKENS)
    with pytest.raises(ConfigError, match="t5-v1.1-xxl"):
        preset("t5-v1.1-xxxl")


@pytest.mark.parametrize("name, millions", [("t5-v1.1-xxl", 4762.3)])
def test_presets_have_the_published_number_of_parameters(name, millions):
    tower = build(dict(name="diffusion_jax.models.t5:T5Encoder", **PRESETS[name], scan=True))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.06)
