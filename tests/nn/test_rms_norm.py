"""The norm by the root of the mean square."""
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nn.rms_norm import RMSNorm


def test_the_norm_is_that_of_float64_for_any_axes_and_types():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
    scale = np.linspace(0.5, 2, 8)
    want = scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    params = {"params": {"scale": jnp.asarray(scale, jnp.float32)}}
    np.testing.assert_allclose(RMSNorm().apply(params, jnp.asarray(x, jnp.float32)), want, rtol=1e-5, atol=1e-6)
    half = RMSNorm().apply(params, jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(half), want, rtol=0.02, atol=0.02)


def test_eps_is_inside_of_the_root():
    tiny = np.full((1, 4), 1e-3, np.float32)
    made = RMSNorm(eps=1e-6).apply({"params": {"scale": jnp.ones(4)}}, tiny)
    np.testing.assert_allclose(made, 1e-3 / np.sqrt(2e-6), rtol=1e-5)
