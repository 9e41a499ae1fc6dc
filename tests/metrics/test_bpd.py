"""Bits/dim of denoisers whose error is known, term by term in NumPy and SciPy."""
import jax
import numpy as np
import pytest
from scipy.stats import norm

from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.metrics.bpd import bits_per_dim
from diffusion_jax.types import Prediction

PROCESS = DDPM(steps=8, start=0.01, end=0.3)
BETAS = np.linspace(0.01, 0.3, 8)
BAR = np.cumprod(1 - BETAS)
X0 = (np.random.default_rng(0).integers(20, 235, (3, 4, 4, 1)) / 127.5 - 1).astype(np.float32)
TIMES = np.arange(7, -2, -1)


@pytest.mark.parametrize("miss", [0.0, 0.02])
def test_a_constant_error_costs_what_the_gaussians_say(miss):
    found = jax.jit(lambda key: bits_per_dim(lambda x, t, cond, key: Prediction(X0 + miss), PROCESS, X0, TIMES, {}, key))(
        jax.random.key(0))
    before = np.append(1.0, BAR[:-1])                                            # of the time stepped to
    variance = BETAS * (1 - before) / (1 - BAR)
    kl = (np.sqrt(before) * BETAS / (1 - BAR) * miss) ** 2 / (2 * np.append(np.nan, variance[1:]))
    scale = variance[1] ** 0.5                                                   # the last step has that of the one before
    low, high = (norm.cdf((edge - miss) / scale) for edge in (-1 / 255, 1 / 255))
    terms = np.append(kl[:0:-1], -np.log(high - low)) / np.log(2)
    np.testing.assert_allclose(found.terms, np.broadcast_to(terms, (3, 8)), rtol=1e-2, atol=1e-6)   # tanh in place of erf
    np.testing.assert_allclose(found.x0_mse, miss**2, rtol=1e-4, atol=1e-12)
    eps_mse = (BAR / (1 - BAR) * miss**2)[::-1]
    np.testing.assert_allclose(found.eps_mse, np.broadcast_to(eps_mse, (3, 8)), rtol=1e-3, atol=1e-9)

    mean, var = np.sqrt(BAR[-1]) * X0, 1 - BAR[-1]
    prior = np.mean((mean**2 + var - 1 - np.log(var)) / 2, axis=(1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-4)
    np.testing.assert_allclose(found.total, prior + found.terms.sum(1), rtol=1e-5)


def test_a_chain_has_a_term_for_each_of_its_steps():
    def bits(times):
        return bits_per_dim(lambda x, t, cond, key: Prediction(x), PROCESS, X0, times, {}, jax.random.key(0))

    short = jax.eval_shape(lambda: bits(TIMES[::4]))
    assert {name: value.shape for name, value in short._asdict().items()} == {
        "total": (3,), "prior": (3,), "terms": (3, 2), "x0_mse": (3, 2), "eps_mse": (3, 2)}
