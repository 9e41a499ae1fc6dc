"""The text encoder of latent diffusion's first model of texts, against NumPy. Its numbers are goldens."""
import jax
import numpy as np
from scipy.special import erf, softmax

from diffusion_jax.models.bert import TextEncoder

MODEL = TextEncoder(vocab=9, context=6, width=4, layers=1, heads=2, head_channels=3)
TOKENS = np.array([[3, 1, 8, 0], [5, 5, 2, 7]])
SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0), TOKENS)["params"]
RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(lambda leaf: (0.7 * RNG.normal(size=leaf.shape)).astype(np.float32), SHAPES)
APPLY = jax.jit(MODEL.apply)


def by_hand(tokens):
    def norm(h, name):
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        return h * PARAMS[name]["scale"] + PARAMS[name]["bias"]

    x = np.float64(PARAMS["token"])[tokens] + PARAMS["position"][: len(tokens)]
    h = norm(x, "norm1_0")
    q, k, v = (h @ PARAMS["attn_0"][name]["kernel"] for name in "qkv")
    heads = [softmax(q[:, part] @ k[:, part].T / np.sqrt(3), axis=-1) @ v[:, part] for part in (slice(0, 3), slice(3, 6))]
    x = x + np.concatenate(heads, axis=-1) @ PARAMS["attn_0"]["out"]["kernel"] + PARAMS["attn_0"]["out"]["bias"]
    h = norm(x, "norm2_0") @ PARAMS["fc1_0"]["kernel"] + PARAMS["fc1_0"]["bias"]
    x = x + h * (1 + erf(h / np.sqrt(2))) / 2 @ PARAMS["fc2_0"]["kernel"] + PARAMS["fc2_0"]["bias"]
    return norm(x, "norm")


def test_is_its_formula():
    np.testing.assert_allclose(APPLY({"params": PARAMS}, TOKENS), [by_hand(row) for row in TOKENS], atol=1e-4)


def test_a_token_beyond_the_vocabulary_is_loud_and_only_in_its_text():
    out = np.asarray(APPLY({"params": PARAMS}, np.array([[3, 1, 9, 0], [5, 5, 2, 7]])))
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()


def test_heads_do_not_depend_on_the_width():
    published = jax.eval_shape(TextEncoder(layers=1).init, jax.random.key(0), TOKENS)["params"]
    assert published["attn_0"]["q"]["kernel"].shape == (1280, 512) and published["token"].shape == (30522, 1280)
    assert set(published["attn_0"]["q"]) == {"kernel"}                          # no bias but that of the output
