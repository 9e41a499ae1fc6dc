"""Attention against jax.nn.dot_product_attention, and the precision of its softmax."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn.attention import attention


def draw(b, h, t, s, d, dtype="float32"):
    rng = np.random.RandomState(0)
    return [jnp.asarray(rng.randn(b, h, n, d), dtype) for n in (t, s, s)]


@pytest.mark.parametrize("shape", [(2, 3, 5, 5, 8), (1, 2, 4, 7, 6), (3, 1, 1, 9, 4)])
def test_equals_the_library_function(shape):
    q, k, v = draw(*shape)
    library = jax.jit(jax.nn.dot_product_attention)
    want = library(*(np.swapaxes(a, 1, 2) for a in (q, k, v))).swapaxes(1, 2)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), want, rtol=1e-5, atol=1e-6)


def test_a_bias_is_added_to_the_scaled_products():
    (q, k, v), bias = draw(2, 3, 5, 7, 8), np.float32(np.random.RandomState(1).randn(3, 5, 7))
    want = jax.nn.dot_product_attention(*(np.swapaxes(a, 1, 2) for a in (q, k, v)), bias=bias[None]).swapaxes(1, 2)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v, bias), want, rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_its_type_and_a_float32_softmax():
    q, k, v = draw(2, 2, 6, 6, 16, "bfloat16")
    got = jax.jit(attention)(q, k, v)
    assert got.dtype == jnp.bfloat16
    wide = jax.jit(attention)(*(np.asarray(a, np.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got.astype("float32"), wide, atol=0.02)
