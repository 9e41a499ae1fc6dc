"""LPIPS: what any distance is, its formula over the features of VGG, and what it refuses. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.lpips import LPIPS, MULTS, VGG, _length

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


def test_a_length_of_zero_has_no_gradient():
    f = jnp.array([[3.0, 4.0], [0.0, 0.0]])[:, None, None]
    np.testing.assert_allclose(_length(f).reshape(-1), [5, 0])
    grad = jax.grad(lambda f: jnp.sum(_length(f)))(f)
    np.testing.assert_allclose(grad.reshape(2, 2), [[0.6, 0.8], [0, 0]], atol=1e-6)


def test_the_network_of_the_published_weights_and_gray_images():
    gray = jax.ShapeDtypeStruct((2, 16, 24, 1), jnp.float32)
    out, variables = jax.eval_shape(LPIPS().init_with_output, KEY, gray, gray)
    assert out.shape == (2,)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["vgg"])) == 14_714_688      # VGG-16 without its head


@pytest.mark.parametrize("shape", [(1, 15, 16, 3), (1, 16, 8, 3), (1, 16, 16, 2)])
def test_images_that_are_too_small_or_of_odd_channels_are_refused(shape):
    with pytest.raises(ConfigError, match="LPIPS compares images of 1 or 3 channels and 16 pixels or more"):
        jax.eval_shape(MODEL.init, KEY, jnp.zeros(shape), jnp.zeros(shape))
