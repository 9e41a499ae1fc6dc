"""The transformer: what a token sees, and one block against NumPy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from diffusion_jax.models.transformer import ACTIVATIONS, Block, Transformer, causal

KEY = jax.random.key(0)
RNG = np.random.RandomState(0)


def random(module, *args):
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: np.float32(0.5 * RNG.randn(*leaf.shape)), shapes)


def test_a_mask_takes_tokens_away_and_bfloat16_is_close():
    module = Transformer(1, 2)
    x, mask = np.float32(np.random.RandomState(0).randn(1, 3, 8)), np.array([[True, True, False]])
    variables = jax.jit(module.init)(KEY, x)
    apply = jax.jit(module.apply)
    states = apply(variables, x, mask)
    other = apply(variables, x + np.array([0, 0, 1], np.float32)[None, :, None], mask)
    np.testing.assert_allclose(states[-1][:, :2], other[-1][:, :2], rtol=1e-5, atol=1e-6)
    narrow = jax.jit(module.clone(dtype="bfloat16").apply)(variables, x, mask)[-1]
    assert narrow.dtype == jnp.bfloat16 and np.allclose(narrow, states[-1], atol=0.1)


def test_the_causal_bias_hides_what_is_later():
    inf = np.inf
    np.testing.assert_array_equal(causal(3), [[[0, -inf, -inf], [0, 0, -inf], [0, 0, 0]]])


def test_activations_are_the_gelu_or_near_it():
    x = np.linspace(-4, 4, 9)
    gelu = x * (1 + erf(x / np.sqrt(2))) / 2
    for name, off in (("gelu", 1e-6), ("gelu_tanh", 1e-3), ("quick_gelu", 0.03)):
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x, jnp.float32)), gelu, atol=off)
    np.testing.assert_allclose(ACTIVATIONS["quick_gelu"](jnp.asarray(x, jnp.float32)), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


@pytest.mark.parametrize("bias", [None, causal(4)], ids=["all", "causal"])
def test_a_block_is_its_formula(bias):
    block, x = Block(2, hidden=5, act="gelu"), np.float32(RNG.randn(2, 4, 6))
    p = random(block, x)

    def norm(h, name):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return h * p[name]["scale"] + p[name]["bias"]

    def linear(h, name):
        return h @ p[name]["kernel"] + p[name]["bias"]

    q, k, v = np.split(linear(norm(np.float64(x), "norm1"), "qkv"), 3, axis=-1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        logits = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(3) + (0 if bias is None else bias)
        heads.append(softmax(logits, axis=-1) @ v[..., part])
    y = x + linear(np.concatenate(heads, axis=-1), "proj")
    h = linear(norm(y, "norm2"), "fc1")
    want = y + linear(h * (1 + erf(h / np.sqrt(2))) / 2, "fc2")
    np.testing.assert_allclose(jax.jit(block.apply)({"params": p}, x, None, bias), want, atol=2e-5)


def test_the_states_are_those_before_and_after_every_block():
    module, x = Transformer(2, 2, hidden=3, is_causal=True), np.float32(RNG.randn(1, 3, 4))
    params = random(module, x)
    run = jax.jit(module.apply)
    states = run({"params": params}, x)
    np.testing.assert_array_equal(states[0], x)
    other = run({"params": params}, np.concatenate([x[:, :2], x[:, 2:] + 1], axis=1))
    assert len(states) == 3
    for mine, theirs in zip(states, other, strict=True):
        np.testing.assert_allclose(mine[:, :2], theirs[:, :2], atol=1e-6)
