"""Loss weights against their papers, and the bound against numerical integration."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import Gaussian

from diffusion_jax.diffusion import losses, process, scales, times
from diffusion_jax.types import Prediction

P = process.DDPM()
T = jnp.array([0, 10, 300, 700, 990])
SNR = np.asarray(P.alpha_bar[1:][np.asarray(T)] / (1 - P.alpha_bar[1:][np.asarray(T)]))
SIGMA = SNR**-0.5

WEIGHTS = {     # (weight, parametrisation) -> the weight of |F - F*|^2 in its paper
    "simple": (losses.Simple(), scales.Eps(), np.ones(5)),
    "min-snr eps": (losses.MinSNR(5.0), scales.Eps(), np.minimum(SNR, 5) / SNR),
    "min-snr v": (losses.MinSNR(5.0), scales.V(), np.minimum(SNR, 5) / (SNR + 1)),
    "min-snr x0": (losses.MinSNR(5.0), scales.X0(), np.minimum(SNR, 5)),
    "snr v": (losses.MinSNR(np.inf), scales.V(), SNR / (SNR + 1)),
    "p2 eps": (losses.P2(1.0, 0.5), scales.Eps(), 1 / (1 + SNR) ** 0.5),
    "p2 x0": (losses.P2(2.0, 1.0), scales.X0(), SNR / (2 + SNR)),
    "edm x0": (losses.EDM(0.5), scales.X0(), (SIGMA**2 + 0.25) / (0.5 * SIGMA) ** 2),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    weight, scale, want = WEIGHTS[name]
    np.testing.assert_allclose(weight(P, T, scale(P, T)), want, rtol=1e-4)


def test_edm_weighs_its_own_target_by_1():
    p, t = process.EDM(), jnp.array([0.002, 0.1, 1.0, 80.0])
    np.testing.assert_allclose(losses.EDM(0.5)(p, t, scales.EDM(0.5)(p, t)), 1, rtol=1e-4)


def test_normal_kl_is_the_integral():
    x = np.linspace(-12, 12, 200001)
    m1, v1, m2, v2 = 0.3, 0.5, -0.7, 1.7
    log = lambda m, v: -0.5 * (np.log(2 * np.pi * v) + (x - m) ** 2 / v)  # noqa: E731
    want = np.trapezoid(np.exp(log(m1, v1)) * (log(m1, v1) - log(m2, v2)), x)
    np.testing.assert_allclose(losses.normal_kl(m1, np.log(v1), m2, np.log(v2)), want, rtol=1e-5)


@pytest.mark.parametrize("mean, scale, mode", [(0.0, 0.02, 0.0), (0.97, 0.3, 1.0), (-2.0, 0.1, -1.0)])
def test_grey_values_have_total_mass_1(mean, scale, mode):
    values = jnp.arange(256) / 127.5 - 1
    mass = jnp.exp(losses.discretized_log_likelihood(values, jnp.float32(mean), jnp.log(scale)))
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-4)
    assert abs(float(values[jnp.argmax(mass)]) - mode) < 0.01             # the outer two values take the tails


def steps(t):
    return jnp.array([t]), jnp.array([t - 1]), jnp.array([t + 1])


def draw(n=4):
    k1, k2 = jax.random.split(jax.random.key(0))
    x0 = jnp.round(jax.random.uniform(k1, (1, n, n, 3)) * 255) / 127.5 - 1
    return x0, jax.random.normal(k2, x0.shape)


@pytest.mark.parametrize("t", [1, pytest.param(500, marks=pytest.mark.slow), 999])
def test_a_perfect_prediction_has_no_bound(t):
    x0, eps = draw()
    xt = process.noised(P, x0, jnp.array([t]), eps)
    np.testing.assert_allclose(losses.bound(P, Prediction(x0), x0, xt, *steps(t), "fixed_small"), 0, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_bound_of_a_wrong_mean(variance):
    """KL of two Gaussians whose means differ by c.x0 times the error of x0."""
    t, (x0, eps) = 500, draw()
    xt = process.noised(P, x0, jnp.array([t]), eps)
    raw = jnp.full_like(x0, 0.3) if variance == "learned_range" else None
    found = losses.bound(P, Prediction(x0 + 0.1, logvar=raw), x0, xt, *steps(t), variance)
    bar, before = P.alpha_bar[t + 1], P.alpha_bar[t]
    beta = 1 - bar / before
    small = beta * (1 - before) / (1 - bar)
    model = {"fixed_small": small, "fixed_large": beta, "learned_range": small**0.35 * beta**0.65}[variance]
    shift = 0.1 * beta * np.sqrt(before) / (1 - bar)
    want = 0.5 * (np.log(model / small) + (small + shift**2) / model - 1)
    np.testing.assert_allclose(found, [want], rtol=1e-2)


def test_the_last_term_is_the_decoders():
    x0, eps = draw()
    xt = process.noised(P, x0, jnp.array([0]), eps)
    found = losses.bound(P, Prediction(x0), x0, xt, *steps(0), "fixed_large")
    beta, bar = P.betas, np.cumprod(1 - P.betas)
    width = np.sqrt(beta[1] * (1 - bar[0]) / (1 - bar[1]))            # the clipped variance
    mass = jnp.exp(losses.discretized_log_likelihood(x0, x0, jnp.log(width)))
    np.testing.assert_allclose(found, [-np.log(mass).mean()], rtol=1e-4)


def test_prior_bound():
    x0, _ = draw()
    bar = P.alpha_bar[-2]
    want = 0.5 * (bar * np.asarray(x0) ** 2 + (1 - bar) - 1 - np.log1p(-bar)).mean()
    with jax.enable_x64(True):
        np.testing.assert_allclose(losses.prior_bound(P, x0.astype(jnp.float64), jnp.array(999)), [want], rtol=1e-6)


def test_the_bound_of_an_exact_denoiser_is_the_loss_in_snr():
    """2107.00630 eq. 14: half the step's difference in SNR times the error of x0, whose mean is known for Gaussian data."""
    data, t = Gaussian(0.1, 0.6), jnp.array([1, 10, 100, 500, 900])
    k1, k2 = jax.random.split(jax.random.key(0))
    x0 = data.mean + data.std * jax.random.normal(k1, (len(t), 20000))
    xt = process.noised(P, x0, t, jax.random.normal(k2, x0.shape))
    exact = jnp.stack([data.x0(P, x, at) for x, at in zip(xt, t, strict=True)])
    found = losses.bound(P, Prediction(exact), x0, xt, t, t - 1, t + 1, "fixed_small")
    bar = P.alpha_bar[1:]
    snr = bar / (1 - bar)
    t = np.asarray(t)
    left = 1 / (1 / data.std**2 + snr[t])                                    # the variance of x0 given x_t
    np.testing.assert_allclose(found, (snr[t - 1] - snr[t]) / 2 * left, rtol=0.05)


ENDS = {                       # processes whose last time holds no signal, a parametrisation of them, and EDM's weight there
    "flow, velocity": (process.Flow(), scales.Velocity(), 1.0, 4.0), "flow, x0": (process.Flow(), scales.X0(), 1.0, 4.0),
    "flow, v": (process.Flow(3.0), scales.V(), 1.0, 4.0), "flow, edm": (process.Flow(), scales.EDM(0.5), 1.0, 1.0),
    "zero terminal snr, v": (process.DDPM("linear", zero_snr=True), scales.V(), 999, 4.0),
    "zero terminal snr, x0": (process.DDPM("linear", zero_snr=True), scales.X0(), 999, 4.0),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("weight", [losses.Simple(), losses.MinSNR(), losses.P2(), losses.EDM(0.5)], ids=repr)
def test_weights_are_finite_where_nothing_of_x0_is_left(name, weight):
    p, scale, last, edm = ENDS[name]
    t = jnp.asarray([last])
    assert p.alpha(t) == 0
    got = weight(p, t, scale(p, t))
    assert np.isfinite(got).all()
    if isinstance(weight, losses.EDM):
        np.testing.assert_allclose(got, edm, rtol=1e-6)             # out^2 / sigma_data^2
        near = weight(process.Flow(), jnp.array([1 - 1e-4]), scales.Velocity()(process.Flow(), jnp.array([1 - 1e-4])))
        np.testing.assert_allclose(near, 4, rtol=1e-3)


@pytest.mark.parametrize("draws", [times.Stratified(), times.Uniform(), times.LogitNormal(0.0, 60.0), times.LogitNormal(50.0)])
@pytest.mark.parametrize("largest", [1 - 2.0**-23, 0.0])
def test_draws_stay_between_the_ends(draws, largest, monkeypatch):
    """With the largest number that a float32 uniform draw gives, and the smallest, in each of 1 to 4,096 strata."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype=None: jnp.full(shape, largest, jnp.float32))
    for n in (1, 3, 64, 4096):
        t = draws(process.Flow(), jax.random.key(0), n)
        assert t.shape == (n,) and t.min() > 0 and t.max() < 1
        counted = draws(process.DDPM(), jax.random.key(0), n)
        assert counted.min() >= 0 and counted.max() <= 999
