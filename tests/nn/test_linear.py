"""The dense layer against an einsum in float64, forward and backward."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nn.linear import Linear


@pytest.mark.parametrize("lead", [(2, 1, 4), *(pytest.param(lead, marks=pytest.mark.slow) for lead in ((5,), (2, 3)))])
def test_is_a_contraction_over_the_last_axis(lead):
    layer = Linear(4)
    x = jax.random.normal(jax.random.key(0), (*lead, 6))
    params = layer.init(jax.random.key(1), x)["params"]
    params["bias"] += 0.5
    wide = {key: np.asarray(value, np.float64) for key, value in params.items()}
    want = np.einsum("...i,io->...o", np.asarray(x, np.float64), wide["kernel"]) + wide["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), want, rtol=1e-5, atol=1e-6)

    cotangent = np.random.RandomState(0).randn(*want.shape)
    grads = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x) * cotangent))(params)
    np.testing.assert_allclose(grads["bias"], cotangent.reshape(-1, 4).sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads["kernel"], x.reshape(-1, 6).T @ cotangent.reshape(-1, 4), rtol=1e-5, atol=1e-5)


def test_computes_in_its_type_and_keeps_float32_parameters():
    layer, x = Linear(4, dtype="bfloat16"), jnp.ones((2, 3))
    out, variables = layer.init_with_output(jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
