"""The spatial transformer: its attention and its MLP in closed form, its start, and hidden tokens. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf, softmax

from diffusion_jax.models.spatial import Block, CrossAttention, SpatialTransformer

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def random(module, *args):
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: 0.5 * draw(*leaf.shape), shapes)


def test_queries_of_one_sequence_meet_keys_of_another():
    x, seq, mask = draw(2, 3, 4), draw(2, 5, 7), np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)
    module = CrossAttention(2, inner=6)
    params = random(module, x, seq)
    q, k, v = (np.float64(tokens) @ params[name]["kernel"] for name, tokens in (("q", x), ("k", seq), ("v", seq)))
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        logits = q[..., part] @ k[..., part].transpose(0, 2, 1) / np.sqrt(3)
        heads.append(softmax(np.where(mask[:, None], logits, -np.inf), axis=-1) @ v[..., part])
    want = np.concatenate(heads, axis=-1) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x, seq, mask), want, atol=1e-5)


def test_the_last_part_of_a_block_is_a_gated_gelu():
    """Attention whose last layer is zero adds nothing."""
    h = draw(1, 3, 4)
    params = random(Block(2), h, None, None)
    for name in ("attn1", "attn2"):
        params[name]["out"] = jax.tree.map(np.zeros_like, params[name]["out"])
    normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    normed = normed * params["norm3"]["scale"] + params["norm3"]["bias"]
    a, gate = np.split(normed @ params["ff_in"]["kernel"] + params["ff_in"]["bias"], 2, axis=-1)
    want = h + (a * gate * (1 + erf(gate / np.sqrt(2))) / 2) @ params["ff_out"]["kernel"] + params["ff_out"]["bias"]
    np.testing.assert_allclose(jax.jit(Block(2).apply)({"params": params}, h, None, None), want, atol=1e-5)


def test_starts_as_the_identity_and_sees_no_hidden_token():
    module, x, seq = SpatialTransformer(2, groups=2), draw(1, 2, 3, 4), draw(1, 3, 5)
    mask = np.array([[True, True, False]])
    params, apply = random(module, x, seq), jax.jit(module.apply)
    assert params["block_0"]["attn2"]["k"]["kernel"].shape == (5, 4)
    hidden = apply({"params": params}, x, seq, mask)
    np.testing.assert_allclose(apply({"params": params}, x, seq + ~mask[..., None] * np.float32(9), mask), hidden, atol=1e-5)
    assert jnp.abs(apply({"params": params}, x, seq + 1, mask) - hidden).max() > 1e-3
    fresh = jax.jit(lambda key: module.init(key, x, seq)["params"]["proj"])(KEY)
    np.testing.assert_array_equal(apply({"params": {**params, "proj": fresh}}, x, seq, mask), x)
