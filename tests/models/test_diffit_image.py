"""DiffiT of images: what a window sees, sizes, start, options, refusals. The numbers are goldens."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.diffit_image import ImageDiffiT, ResBlock

IMAGE = dict(width=8, mults=(1, 2), depth=1, windows=(4, 2), head_channels=4, groups=4, mlp_ratio=2.0)
RNG, KEY = np.random.RandomState(1), jax.random.key(0)
NOISE = np.float32([0, 999])
PIXELS = np.float32(RNG.randn(2, 8, 12, 3))
BESIDE = {"vec": np.float32(RNG.randn(2, 32)), "cat": np.float32(RNG.randn(2, 2, 3, 1))}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random(model, *args, scale=0.3):
    """Parameters without zeros, so that every part shows in the output."""
    rng, shapes = np.random.RandomState(0), jax.eval_shape(model.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: np.asarray(scale * rng.randn(*leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize("learn_sigma, dtype", [(True, "float32"), pytest.param(False, "bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size, windows, mults", [
    ((8, 12), (4, 2), (1, 2)), pytest.param((16, 16), (8, 8, 4), (1, 2, 4), marks=pytest.mark.slow), ((6, 6), (3,), (1,)),
])
def test_output_has_the_size_of_the_image(size, windows, mults, learn_sigma, dtype):
    model = ImageDiffiT(**IMAGE | dict(windows=windows, mults=mults), learn_sigma=learn_sigma, dtype=dtype)
    out, _ = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((2, *size, 3)), NOISE, {})
    assert out.shape == (2, *size, 6 if learn_sigma else 3) and out.dtype == jnp.float32


@functools.cache
def image_output_and_gradient(remat, dtype="float32"):
    model = ImageDiffiT(**IMAGE, remat=remat, dtype=dtype)

    def loss(params):
        out = model.apply({"params": params}, PIXELS, NOISE, BESIDE)
        return jnp.mean(out**2), out

    (_, out), grad = quick(jax.value_and_grad(loss, has_aux=True))(random(model, PIXELS, NOISE, BESIDE))
    return out, grad


@pytest.mark.slow
def test_every_parameter_of_the_image_network_has_a_gradient():
    _, grad = image_output_and_gradient(None)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grad))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_neither_output_nor_gradient_of_the_image_network(remat):
    (want, want_grad), (got, got_grad) = image_output_and_gradient(None), image_output_and_gradient(remat)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), got_grad, want_grad)


@pytest.mark.slow
def test_the_image_network_starts_at_zero():
    out, _ = quick(ImageDiffiT(**IMAGE).init_with_output)(KEY, PIXELS, NOISE, BESIDE)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.slow
def test_the_image_network_in_bfloat16_is_close():
    want, got = image_output_and_gradient(None)[0], image_output_and_gradient(None, "bfloat16")[0]
    assert 0 < jnp.abs(got - want).max() < 0.1 * jnp.abs(want).max()


@pytest.mark.parametrize("change, cond, message", [
    (dict(windows=(4, 4)), {}, "an image of 8x12, 2 times smaller, does not divide into windows of 4x4"),
    (dict(windows=(4,)), {}, r"windows=\(4,\) are not one for each of the 2 mults"),
    (dict(head_channels=3), {}, "8 channels do not divide into heads of 3"),
    (dict(groups=3), {}, "8 channels do not divide into 3 groups"),
    (dict(remat="ful"), {}, "unknown remat 'ful': did you mean 'full'"),
    (dict(dtype="bfloat"), {}, "did you mean 'bfloat16'"),
    ({}, {"vec": jnp.zeros((2, 8))}, "adds a vec of 32 channels, not 8: set task.cond.width"),
    ({}, {"seq": jnp.zeros((2, 3, 16))}, "unknown condition of ImageDiffiT 'seq'"),
])
def test_the_image_network_refuses_in_one_line(change, cond, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(ImageDiffiT(**IMAGE | change).init, KEY, PIXELS, NOISE, cond)


def test_a_window_sees_no_other_window_but_what_the_convolution_carries():
    """A change of one pixel in the middle of a window, with norms of a channel each, which it leaves as they are."""
    block = ResBlock(2, 4, groups=4)
    x, emb = np.float32(RNG.randn(1, 8, 8, 4)), np.float32(RNG.randn(1, 5))
    other = x.copy()
    other[0, 1, 1], other[0, 2, 2] = x[0, 2, 2], x[0, 1, 1]                    # means and variances stay
    apply, params = quick(block.apply), {"params": random(block, x, emb)}
    changed = np.abs(apply(params, other, emb) - apply(params, x, emb)).max((0, -1)) > 1e-4
    assert changed[:4, :4].all() and not changed[4:].any() and not changed[:, 4:].any()
