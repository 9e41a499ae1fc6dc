"""Layer normalisation against float64, also where eps decides."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn.norm import layer_norm


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 1e3])
def test_is_its_definition(scale):
    x = np.random.RandomState(0).randn(3, 4, 10) * scale + scale
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer_norm(jnp.asarray(x, jnp.float32)), want, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_normalised_in_float32():
    x = (100 + jnp.arange(8.0))[None].astype("bfloat16")
    got = layer_norm(x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype("float32"), layer_norm(x.astype("float32")), rtol=0.01)
