"""The FID Inception: its size, what it returns, its pools and its layer. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.inception import BLOCKS, CLASSES, STEM, Inception, Step, Unit, pool
from diffusion_jax.pretrained.shapes import shapes_of

RNG, KEY = np.random.RandomState(0), jax.random.key(0)
MODEL = Inception()
IMAGE = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
SHAPES = shapes_of(MODEL.init, KEY, IMAGE)["params"]


def test_the_network_has_the_published_size():
    units = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(SHAPES) if path[-1].key == "kernel"]
    assert len(units) == 94 and len(STEM) + len(BLOCKS) == 18
    assert sum(leaf.size for leaf in jax.tree.leaves(SHAPES)) == 23_850_960 + 2 * 17_216            # weights, running statistics


def test_every_output_has_its_shape():
    out, seen = jax.eval_shape(lambda p, x: MODEL.apply({"params": p}, x, capture_intermediates=True), SHAPES, IMAGE)
    assert {name: leaf.shape for name, leaf in out._asdict().items()} == dict(
        f64=(2, 64), f192=(2, 192), f768=(2, 768), pool3=(2, 2048), spatial=(2, 2023), logits=(2, CLASSES), unbiased=(2, CLASSES)
    )
    maps = seen["intermediates"]["trunk"]["__call__"][0]
    assert [leaf.shape[1:] for leaf in maps] == [(73, 73, 64), (35, 35, 192), (17, 17, 768), (8, 8, 2048), (17, 17, 7)]
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(1, 74, 299, 3), (1, 299, 299, 1), (299, 299, 3)])
def test_what_it_cannot_see_is_refused(shape):
    with pytest.raises(ConfigError, match="at least 75x75, got") as error:
        jax.eval_shape(MODEL.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert "\n" not in str(error.value)


def test_a_layer_is_convolution_norm_and_relu():
    x, unit = np.float32(RNG.randn(2, 5, 4, 3)), Unit(Step(6))
    params = {name: np.float32(RNG.rand(*leaf.shape) + 0.5) for name, leaf in jax.eval_shape(unit.init, KEY, x)["params"].items()}
    y = (x @ params["kernel"][0, 0] - params["mean"]) / np.sqrt(params["var"] + 1e-3) * params["scale"] + params["bias"]
    np.testing.assert_allclose(unit.apply({"params": params}, x), np.maximum(y, 0), rtol=1e-4, atol=1e-5)


def test_pools_see_the_pixels_of_the_image_only():
    x = np.float32(RNG.randn(1, 5, 4, 2)) - 10                                  # a zero of the padding would be the maximum
    for r, c in ((0, 0), (0, 2), (4, 3), (2, 1)):
        window = x[0, max(r - 1, 0):r + 2, max(c - 1, 0):c + 2]
        np.testing.assert_allclose(pool("mean", x)[0, r, c], window.mean((0, 1)), rtol=1e-5)
        np.testing.assert_array_equal(pool("max", x)[0, r, c], window.max((0, 1)))
    np.testing.assert_array_equal(pool("shrink", x)[0, :, 0], np.stack([x[0, r:r + 3, :3].max((0, 1)) for r in (0, 2)]))


@pytest.mark.slow
def test_features_do_not_depend_on_the_other_images():
    draw = jax.tree.map(lambda leaf: np.float32(RNG.rand(*leaf.shape)), SHAPES)
    params = jax.tree.map(lambda w: (w - 0.5) * (12 / w[..., 0].size) ** 0.5 if w.ndim > 1 else w + 0.5, draw)
    x, apply = np.float32(RNG.uniform(-1, 1, (3, 80, 96, 3))), jax.jit(MODEL.apply)
    first, second = apply({"params": params}, x), apply({"params": params}, np.stack([x[2], x[2], x[0]]))
    for name, value in first._asdict().items():
        assert np.ptp(value) > 0, name
        other = getattr(second, name)
        scale = np.abs(value).max()
        np.testing.assert_allclose(np.stack([value[2], value[0]]), other[1:], rtol=1e-4, atol=1e-5 * scale, err_msg=name)
