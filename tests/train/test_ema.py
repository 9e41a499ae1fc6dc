"""Averages against closed forms, and the power profile's width against its measured weights."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.train import ema


@pytest.mark.parametrize("profile,step,beta", [
    (ema.Constant(0.9999, warmup=False), 1, 0.9999), (ema.Constant(0.9999, warmup=False), 10**6, 0.9999),
    (ema.Constant(0.9999), 1, 2 / 11), (ema.Constant(0.9999), 8, 0.5), (ema.Constant(0.9999), 10**6, 0.9999),
    (ema.Constant(0.0), 5, 0.0),
    (ema.Power(0.1), 1, 0.0), (ema.Power(12**-0.5), 4, 0.75), (ema.Power(0.1), 2, 0.5**7.937),
    (ema.Power(0.05), 100, 0.99**17.97),
])
def test_beta_at_known_points(profile, step, beta):
    got = profile.beta(jnp.int32(step))
    assert got.shape == () and got.dtype == jnp.float32
    assert abs(got - beta) < 2e-4 * max(beta, 1e-3)


@pytest.mark.parametrize("std,gamma", [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_is_the_papers(std, gamma):  # EDM2, section 3.1
    assert abs(ema.Power(std).gamma - gamma) < 0.01


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.2, 0.288])
def test_power_has_the_width_that_was_asked_for(std):
    n = 4000
    steps = np.arange(1, n + 1)
    beta = np.asarray(ema.Power(std).beta(steps), np.float64)
    weights = (1 - beta) * np.append(np.cumprod(beta[:0:-1])[::-1], 1.0)   # (1 - beta_i) prod_{j > i} beta_j
    assert abs(weights.sum() - 1) < 1e-4
    t = steps / n
    assert abs(np.sqrt(weights @ t**2 - (weights @ t) ** 2) / std - 1) < 2e-3
    gamma = ema.Power(std).gamma
    np.testing.assert_allclose(weights, t ** (gamma + 1) - ((steps - 1) / n) ** (gamma + 1), atol=2e-6)  # the integral of i^gamma


def test_power_still_moves_after_a_million_updates():
    got = 1 - np.float64(ema.Power(0.05).beta(jnp.int32(2_000_000)))
    assert abs(got / (17.97 / 2e6) - 1) < 0.01


@pytest.mark.parametrize("profile", [ema.Constant(0.9), ema.Constant(0.7, warmup=False), ema.Power(0.1)])
def test_update_is_the_recursion(profile):
    values = np.random.default_rng(0).normal(size=(20, 3))
    params = {"a": jnp.asarray(values[0], jnp.float32)}
    got, want = params, values[0]
    for t in range(1, 20):
        got = jax.jit(ema.update, static_argnums=2)(got, {"a": jnp.asarray(values[t], jnp.float32)}, profile, jnp.int32(t))
        beta = float(profile.beta(t))
        want = beta * want + (1 - beta) * values[t]
    np.testing.assert_allclose(got["a"], want, rtol=1e-5, atol=1e-6)


def test_constant_without_warmup_in_closed_form():
    got = {"a": jnp.zeros(2)}
    for t in range(1, 31):
        got = ema.update(got, {"a": jnp.ones(2)}, ema.Constant(0.8, warmup=False), t)
    np.testing.assert_allclose(got["a"], 1 - 0.8**30, rtol=1e-5)


@pytest.mark.parametrize("profile,value", [(ema.Constant, 1.0), (ema.Constant, -0.1), (ema.Power, 0.0), (ema.Power, 0.3)])
def test_impossible_profiles_raise(profile, value):
    with pytest.raises(ConfigError):
        profile(value)


def test_profiles_are_built_from_configs():
    assert build({"name": "diffusion_jax.train.ema:Power", "std": 0.1}) == ema.Power(0.1)


@pytest.mark.parametrize("profile,step,delta,beta", [
    (ema.HalfLife(100.0), 10, 1, 2 ** (-1 / 0.45)), (ema.HalfLife(100.0), 1, 1, 0.0), (ema.HalfLife(100.0), 2, 1, 2.0**-20),
    (ema.HalfLife(0.2), 10, 1, 2.0**-5), (ema.HalfLife(3.0, None), 1, 1, 2 ** (-1 / 3)),
    (ema.HalfLife(3.0, 0.5), 7, 1, 2 ** (-1 / 3)),
    (ema.HalfLife(1000.0, 0.05), 640, 64, 2 ** (-64 / 28.8)), (ema.HalfLife(1000.0), 64, 64, 0.0),
    (ema.HalfLife(100.0, 0.05, "after"), 10, 1, 0.25), (ema.HalfLife(100.0, 0.05, "after"), 1, 1, 2.0**-20),
])
def test_half_life_counts_what_was_seen_before_the_update(profile, step, delta, beta):
    """EDM's: half = min(h, r seen), seen before this batch, beta = 0.5^(batch / max(half, 1e-8)); at t = 10, r = 0.05: 0.2143."""
    np.testing.assert_allclose(profile.beta(jnp.int32(step), delta), beta, rtol=1e-5, atol=1e-12)


def test_the_first_average_of_half_life_is_the_parameters_themselves():
    got = ema.update({"a": jnp.ones(3)}, {"a": jnp.arange(3.0)}, ema.HalfLife(500.0), jnp.int32(1))
    np.testing.assert_array_equal(got["a"], np.arange(3.0))


@pytest.mark.parametrize("rampup", [0.0, -0.05])
def test_a_ramp_that_is_none_is_refused(rampup):
    with pytest.raises(ConfigError, match="rampup of an average is a positive number"):
        ema.HalfLife(5.0, rampup)


def test_what_a_ramp_counts_is_one_of_two():
    with pytest.raises(ConfigError, match="did you mean 'before'"):
        ema.HalfLife(5.0, counted="befor")
