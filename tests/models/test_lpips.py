"""LPIPS: what any distance is, its formula over features of VGG and AlexNet, and what it refuses. VGG's numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.lpips import LPIPS, MULTS, NETS, VGG, _length

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
MODEL = LPIPS(width=2)


def test_the_distance_is_that_of_unit_features_and_of_an_image_to_itself_zero():
    x, y = RNG.uniform(-1, 1, (2, 2, 16, 16, 3)).astype(np.float32)
    shapes = jax.eval_shape(MODEL.init, KEY, x, y)["params"]
    params = jax.tree.map(lambda leaf: RNG.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32), shapes)
    params |= {f"w_{k}": RNG.random(2 * mult).astype(np.float32) for k, mult in enumerate(MULTS, 1)}

    @jax.jit
    def both(params):
        pairs = jnp.concatenate([x, x, y]), jnp.concatenate([y, x, x])
        return MODEL.apply({"params": params}, *pairs), VGG(2).apply({"params": params["vgg"]}, jnp.concatenate([x, y]))

    distance, features = both(params)
    forward, same, backward = distance.reshape(3, 2)
    want = 0
    for k, f in enumerate(features, 1):
        assert f.shape == (4, *(2 * (16 // 2 ** (k - 1),)), 2 * MULTS[k - 1])
        unit = np.float64(f) / (np.linalg.norm(np.float64(f), axis=-1, keepdims=True) + 1e-10)
        want += ((unit[:2] - unit[2:]) ** 2 @ params[f"w_{k}"]).mean((1, 2))
    np.testing.assert_allclose(forward, want, rtol=1e-4)
    np.testing.assert_array_equal(backward, forward)
    assert not same.any() and (forward > 0).all()


def windows(x, size, stride):
    """Every window of size x size pixels that lies in x [B, H, W, C], at a stride: [B, h, w, C, size, size]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def alexnet(x, params):
    """The five features of AlexNet by sums over windows, in float64."""
    h = (np.float64(x) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    features = []
    for k, (size, stride, padding) in enumerate([(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)], 1):
        h = windows(h, 3, 2).max((-1, -2)) if k in (2, 3) else h
        h = np.pad(h, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        layer = params[f"conv_{k}"]
        h = np.maximum(np.einsum("bhwcij,ijcf->bhwf", windows(h, size, stride), layer["kernel"]) + layer["bias"], 0)
        features.append(h)
    return features


def test_alexnet_is_sums_over_windows():
    """45 x 38 pixels fill neither the stride of 4 nor the pools."""
    model = LPIPS(2, net="alex")
    x, y = RNG.uniform(-1, 1, (2, 2, 45, 38, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, KEY, x, y)["params"]
    params = jax.tree.map(lambda leaf: RNG.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32), shapes)
    params |= {f"w_{k}": np.abs(params[f"w_{k}"]) for k in range(1, 6)}
    want = 0
    for k, (f, g) in enumerate(zip(alexnet(x, params["alex"]), alexnet(y, params["alex"]), strict=True), 1):
        f, g = (h / (np.linalg.norm(h, axis=-1, keepdims=True) + 1e-10) for h in (f, g))
        want += ((f - g) ** 2 @ params[f"w_{k}"]).mean((1, 2))
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x, y), want, rtol=1e-5)


def test_a_length_of_zero_has_no_gradient():
    f = jnp.array([[3.0, 4.0], [0.0, 0.0]])[:, None, None]
    np.testing.assert_allclose(_length(f).reshape(-1), [5, 0])
    grad = jax.grad(lambda f: jnp.sum(_length(f)))(f)
    np.testing.assert_allclose(grad.reshape(2, 2), [[0.6, 0.8], [0, 0]], atol=1e-6)


@pytest.mark.parametrize(("net", "side", "size"), [("vgg", 16, 14_714_688), ("alex", 31, 2_469_696)])
def test_the_network_of_the_published_weights_and_gray_images(net, side, size):
    gray = jax.ShapeDtypeStruct((2, side, 40, 1), jnp.float32)
    out, variables = jax.eval_shape(LPIPS(net=net).init_with_output, KEY, gray, gray)
    assert out.shape == (2,)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"][net])) == size             # without its head
    deepest = jax.eval_shape(NETS[net][0]().init_with_output, KEY, gray)[0][-1]
    assert deepest.shape[1] == 1, "one pixel less leaves none"


@pytest.mark.parametrize(("net", "least", "shape"), [
    ("vgg", 16, (1, 15, 16, 3)), ("vgg", 16, (1, 16, 8, 3)), ("vgg", 16, (1, 16, 16, 2)), ("alex", 31, (1, 31, 30, 3)),
])
def test_images_that_are_too_small_or_of_odd_channels_are_refused(net, least, shape):
    with pytest.raises(ConfigError, match=f"LPIPS compares images of 1 or 3 channels and {least} pixels or more"):
        jax.eval_shape(LPIPS(2, net=net).init, KEY, jnp.zeros(shape), jnp.zeros(shape))


def test_a_network_that_lpips_has_not_is_refused():
    with pytest.raises(ConfigError, match="unknown network of LPIPS 'alexnet': did you mean 'alex'"):
        LPIPS(net="alexnet").takes((64, 64, 3))
