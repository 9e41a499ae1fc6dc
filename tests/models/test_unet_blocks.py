"""The blocks of UNets: their start, their formulas written out, hidden tokens and dropout."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.unet_blocks import ATTENTION, Attention, ResBlock, TimeEmbedding, waves
from diffusion_jax.nn.resample import double, halve

RNG = np.random.RandomState(1)
X, EMB = np.float32(RNG.randn(2, 4, 6, 3)), np.float32(RNG.randn(2, 12))
COND = {"seq": np.float32(RNG.randn(2, 3, 5)), "seq_mask": np.array([[True, True, False], [True, True, True]])}
KEY = jax.random.key(0)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random(module, *args, scale=0.3):
    """Parameters without zeros, so that every part shows in the output."""
    rng = np.random.RandomState(0)
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.randn(*leaf.shape), leaf.dtype), shapes)


STARTS = [
    ("res", ResBlock(3, groups=3), (EMB,), X),
    ("res without scale-shift", ResBlock(3, scale_shift=False, groups=3), (EMB,), X),
    ("res down", ResBlock(3, "down", groups=3), (EMB,), halve(X)),
    ("res up", ResBlock(3, "up", groups=3), (EMB,), double(X)),
    *((f"attention {kind}", Attention(3, kind, groups=3), (COND["seq"], COND["seq_mask"]), X) for kind in ATTENTION),
]
OF_EACH = ("res", "res down", f"attention {next(iter(ATTENTION))}")


@pytest.mark.parametrize("name, block, args, want", [
    pytest.param(*row, marks=() if row[0] in OF_EACH else pytest.mark.slow) for row in STARTS])
def test_blocks_start_as_the_identity(name, block, args, want):
    out, _ = quick(block.init_with_output)(KEY, X, *args)
    np.testing.assert_array_equal(out, want)


def test_the_time_embedding_of_ddpm_has_sines_first_and_its_own_frequencies():
    module = TimeEmbedding(8, ddpm=True)
    eye = {"fc1": {"kernel": jnp.eye(8, 32), "bias": jnp.zeros(32)}, "fc2": {"kernel": jnp.eye(32), "bias": jnp.zeros(32)}}
    angle = np.array([0.0, 37.5])[:, None] * np.array([1, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3), 1e-4])
    waves = np.concatenate([np.sin(angle), np.cos(angle), np.zeros((2, 24))], axis=1)
    np.testing.assert_allclose(module.apply({"params": eye}, jnp.array([0, 37.5])), waves / (1 + np.exp(-waves)), atol=2e-6)


@pytest.mark.parametrize("kind", ATTENTION)
def test_hidden_tokens_are_as_good_as_missing(kind):
    block = Attention(2, kind, groups=2)
    x, seq, mask = X.repeat(2, axis=-1)[..., :4], COND["seq"], np.array([[True, True, False]] * 2)
    apply, params = quick(block.apply), {"params": random(block, x, seq)}
    hidden = apply(params, x, seq, mask)
    np.testing.assert_allclose(hidden, apply(params, x, seq[:, :2]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply(params, x, seq + ~mask[..., None] * np.float32(9), mask), hidden, rtol=1e-5, atol=1e-6)
    assert np.abs(apply(params, x, seq, mask[:, ::-1]) - hidden).max() > 1e-3


def test_dropout_acts_with_a_key_only_and_keeps_the_mean():
    block = ResBlock(3, groups=3, dropout=0.5)
    params = {"params": random(block, X, EMB)}
    without = quick(block.apply)(params, X, EMB)
    np.testing.assert_array_equal(quick(block.clone(dropout=0.0).apply)(params, X, EMB), without)
    drawn = quick(jax.vmap(lambda key: block.apply(params, X, EMB, rngs={"dropout": key})))(jax.random.split(KEY, 4000))
    spread = np.std(drawn, axis=0)
    assert (spread > 0).all()
    assert (np.abs(np.mean(drawn, axis=0) - without) < 6 * spread / 4000**0.5).all()


@pytest.mark.parametrize("width", [8, 9])
def test_cosines_come_before_sines_and_their_frequencies_fall_to_a_ten_thousandth(width):
    t, half = np.array([0.0, 1.0, 250.0]), width // 2
    angle = t[:, None] * 1e4 ** (-np.arange(half) / half)
    want = np.concatenate([np.cos(angle), np.sin(angle), np.zeros((3, width % 2))], axis=1)
    np.testing.assert_allclose(waves(jnp.asarray(t, jnp.float32), width), want, atol=3e-5)


def test_an_embedding_scales_and_shifts_or_is_added():
    """Kernels of one pixel in the middle turn both convolutions into the identity."""
    tap = np.zeros((3, 3, 3, 3), np.float32)
    tap[1, 1] = np.eye(3)
    conv, plain = {"kernel": tap, "bias": np.zeros(3)}, {"scale": np.ones(3), "bias": np.zeros(3)}
    emb = np.float32(RNG.randn(2, 4))
    e = emb / (1 + np.exp(-emb))

    def normed(x):
        return (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)

    def silu(x):
        return x / (1 + np.exp(-x))

    for scale_shift in (True, False):
        kernel = np.float32(RNG.randn(4, 6 if scale_shift else 3))
        linear = {"kernel": kernel, "bias": np.zeros(kernel.shape[1])}
        params = {"norm1": plain, "norm2": plain, "conv1": conv, "conv2": conv, "emb": linear}
        out = quick(ResBlock(3, scale_shift=scale_shift, groups=3).apply)({"params": params}, X, emb)
        film, h = (e @ kernel)[:, None, None], silu(normed(X))
        h = (1 + film[..., :3]) * normed(h) + film[..., 3:] if scale_shift else normed(h + film)
        np.testing.assert_allclose(out, X + silu(h), atol=2e-5)
