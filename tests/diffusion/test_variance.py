"""Fixed and learned variances of a step."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, variance


def test_learned_range_interpolates_the_logs():
    p, t, s, above = process.DDPM(), jnp.int32(500), jnp.int32(400), jnp.int32(600)
    small, large = (variance.log_variance(p, kind, t, s, above, None) for kind in ("fixed_small", "fixed_large"))
    raw = jnp.array([-1.0, 0.0, 1.0])
    got = variance.log_variance(p, "learned_range", t, s, above, raw)
    np.testing.assert_allclose(got, [small, (small + large) / 2, large], rtol=1e-6)
    np.testing.assert_array_equal(variance.log_variance(p, "learned", t, s, above, raw), raw)


def test_the_last_log_variance_is_that_of_the_step_before():
    p = process.DDPM()
    last = variance.log_variance(p, "fixed_small", jnp.int32(0), jnp.int32(-1), jnp.int32(1), None)
    bar, beta = np.cumprod(1 - p.betas), p.betas
    np.testing.assert_allclose(last, np.log(beta[1] * (1 - bar[0]) / (1 - bar[1])), rtol=1e-5)


@pytest.mark.parametrize("raw", [-7.0, -1.0, 0.0, 1.0])
def test_the_log_variance_of_a_step_of_length_zero_is_a_number(raw):
    for p, t in ((process.DDPM(), 500), (process.DDPM(rounded=True), 0), (process.Flow(), 1.0), (process.DDPM(), -1)):
        t = jnp.asarray(t)
        for kind in variance.VARIANCES:
            assert np.isfinite(variance.log_variance(p, kind, t, t, t, jnp.full(3, raw))).all(), (kind, t)


@pytest.mark.parametrize(("kind", "says"), [("learned", "needs a network that learned it"), ("fixed", "did you mean 'fixed_")])
def test_refusals(kind, says):
    with pytest.raises(ConfigError, match=says):
        variance.log_variance(process.DDPM(), kind, 5, 4, 6, None)
