"""Magnitude-preserving layers: what they promise, measured on large normal draws."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn import mp

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))))


@pytest.mark.parametrize(("dtype", "size"), [
    ("float32", 3), ("bfloat16", 1), *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("float32", 1), ("bfloat16", 3), ("float16", 1), ("float16", 3)))])
def test_a_layer_preserves_magnitude_whatever_its_weights(size, dtype):
    x, layer = normal(4, 32, 32, 64), mp.MPLayer(64, size, dtype)
    params = layer.init(jax.random.key(0), x)["params"]
    scaled = {"weight": params["weight"] * jnp.resize(jnp.linspace(0.5, 9, 64), params["weight"].shape)}     # output by output
    inside = slice(size // 2, 32 - size // 2)                                   # padding takes magnitude away
    out, same = (layer.apply({"params": p}, x)[:, inside, inside] for p in (params, scaled))
    assert out.dtype == dtype and abs(rms(out) - 1) < 0.05
    np.testing.assert_allclose(out.astype("float32"), same.astype("float32"), atol=1e-3 if dtype == "float32" else 0.1)


def test_the_gradient_is_at_right_angles_to_the_weights():
    x, layer = normal(8, 16), mp.MPLayer(4)
    params = mp.normalize_weights(layer.init(jax.random.key(0), x)["params"])
    grad = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) ** 3))(params)
    along = jnp.sum(grad["weight"] * params["weight"], axis=0)
    assert jnp.max(jnp.abs(along)) < 1e-3 * jnp.max(jnp.abs(grad["weight"])) * 16


def test_nothing_but_weights_is_forced():
    params = {"a": {"weight": 3 * normal(5, 2), "emb_gain": jnp.float32(2.0)}, "b": {"kernel": 3 * normal(5, 2)}}
    got = mp.normalize_weights(params)
    want = np.sqrt(np.mean(np.square(params["a"]["weight"]), axis=0))
    np.testing.assert_allclose(got["a"]["weight"], params["a"]["weight"] / (want + 1e-4)[None], rtol=1e-6)
    assert got["a"]["emb_gain"] == 2 and (got["b"]["kernel"] == params["b"]["kernel"]).all()


def test_a_vector_of_zeros_stays_zero_and_has_a_finite_gradient():
    value, grad = jax.value_and_grad(lambda x: jnp.sum(mp.normalize(x)))(jnp.zeros((2, 3)))
    assert value == 0 and jnp.isfinite(grad).all()


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_concatenations_preserve_magnitude(t):
    a, b, wide = normal(1000, 16), normal(1000, 16), normal(1000, 48)
    assert abs(rms(mp.mp_sum(a, b, t)) - 1) < 0.02
    joined = mp.mp_cat(a, wide, t)
    assert joined.shape == (1000, 64) and abs(rms(joined) - 1) < 0.02
    parts = [jnp.sum(joined[:, part] ** 2) for part in (slice(16), slice(16, None))]
    assert abs(parts[1] / sum(parts) - t**2 / ((1 - t) ** 2 + t**2)) < 0.02     # the share does not depend on the widths


def test_silu_and_fourier_features_preserve_magnitude():
    assert abs(rms(mp.mp_silu(normal(100, 1000))) - 1) < 0.01
    waves, noise = mp.Fourier(256), normal(64)
    params = waves.init(jax.random.key(0), noise)
    assert abs(rms(waves.apply(params, noise)) - 1) < 0.05
    grads = jax.grad(lambda p: jnp.sum(waves.apply(p, noise) ** 2))(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))
