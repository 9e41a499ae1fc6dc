"""Processes against independent formulas in float64, and the posterior against the tables of the published code."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process

STEPS = 1000


def betas_of(name: str, n: int) -> np.ndarray:
    """The papers' tables, one entry at a time."""
    if name == "linear":
        return np.array([(1e-4 + (0.02 - 1e-4) * i / (n - 1)) * 1000 / n for i in range(n)])
    if name == "scaled_linear":
        return np.array([(math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / (n - 1)) ** 2 for i in range(n)])
    if name == "sqrt":
        return np.array([math.sqrt(1e-4 + (0.02 - 1e-4) * i / (n - 1)) for i in range(n)])
    if name == "squaredcos":
        bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        return np.array([min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)])
    low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    bar = lambda t: (high - 1 / (1 + math.exp(3 - 6 * t))) / (high - low)  # noqa: E731
    return np.array([min(1 - bar((i + 1) / n) / bar(i / n), 0.999) for i in range(n)])


@pytest.mark.parametrize("name", process.SCHEDULES)
@pytest.mark.parametrize("n", [1000, 37])
def test_tables(name, n):
    p = process.DDPM(name, n)
    betas = betas_of(name, n)
    np.testing.assert_allclose(p.betas, betas, rtol=1e-4 if name == "sigmoid" else 1e-9, atol=1e-12)
    bar, t = np.cumprod(1 - betas), np.arange(n)
    np.testing.assert_allclose(p.alpha(t), np.sqrt(bar), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(p.sigma(t), np.sqrt(1 - bar), rtol=1e-5)


def test_table_ends():
    p = process.DDPM()
    ends = np.array([-1, p.steps])
    np.testing.assert_array_equal(p.alpha(ends), [1, 0])
    np.testing.assert_array_equal(p.sigma(ends), [0, 1])
    assert (p.t_clean, p.t_max) == (-1, 999)


def test_zero_terminal_snr():
    plain, zero = process.DDPM("scaled_linear"), process.DDPM("scaled_linear", zero_snr=True)
    root = np.sqrt(plain.alpha_bar[1:-1])
    want = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(np.sqrt(zero.alpha_bar[1:-1]), want, rtol=1e-9, atol=1e-15)
    assert zero.alpha(999) == 0 and zero.sigma(999) == 1
    assert process.starts_from_pure_noise(zero) and not process.starts_from_pure_noise(plain)


CONTINUOUS = {  # process -> (alpha, sigma) of the papers
    process.Cosine(): lambda t: (np.cos(t * math.atan(math.exp(7.5))), np.sin(t * math.atan(math.exp(7.5)))),
    process.EDM(): lambda t: (np.ones_like(t), t),
    process.Flow(): lambda t: (1 - t, t),
    process.Flow(shift=3.0): lambda t: (1 - 3 * t / (1 + 2 * t), 3 * t / (1 + 2 * t)),
}
IDS = ["cosine", "edm", "flow", "shifted"]


@pytest.mark.parametrize("p", CONTINUOUS, ids=IDS)
def test_continuous(p):
    t = np.linspace(p.t_clean, p.t_max, 50)
    for found, want in zip((p.alpha(t), p.sigma(t)), CONTINUOUS[p](t), strict=True):
        np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-6)
    assert p.alpha(jnp.asarray(p.t_clean)) == 1 and p.sigma(jnp.asarray(p.t_clean)) == 0


def test_cosine_ends_at_its_log_snr():
    p = process.Cosine(logsnr_min=-15.0)
    np.testing.assert_allclose(2 * np.log(p.alpha(1.0) / p.sigma(1.0)), -15, rtol=1e-3)


@pytest.mark.parametrize("p", [*CONTINUOUS, process.DDPM()], ids=[*IDS, "ddpm"])
def test_inverses(p):
    start = 0.002 if isinstance(p, process.EDM) else 0.02 * p.t_max
    t = np.linspace(start, 0.98 * p.t_max, 50).astype(np.float32)
    np.testing.assert_allclose(p.time(p.sigma(t) / p.alpha(t)), t, rtol=2e-5)
    if not isinstance(p, process.DDPM):
        np.testing.assert_allclose(p.at(p.unit(t)), t, rtol=1e-4)
    np.testing.assert_allclose(p.time(jnp.zeros(())), p.t_clean, atol=1e-6)
    unit = np.asarray(p.unit(t))
    assert (np.diff(unit) > 0).all() and unit[0] >= 0 and unit[-1] <= 1


def test_counted_times_invert_too():
    p = process.DDPM()
    t = np.arange(p.steps)
    np.testing.assert_array_equal(p.at((p.unit(t) + 0.5 / p.steps).astype(np.float32)), t)
    assert p.at(jnp.ones(())) == p.t_max                 # a uniform draw may round to 1: never pure noise


def test_float_times_agree_with_the_table():
    p = process.DDPM()
    t = np.arange(-1, p.steps)
    np.testing.assert_allclose(p.alpha(t.astype(np.float32)), p.alpha(t), rtol=1e-5)
    np.testing.assert_allclose(p.sigma(t.astype(np.float32)), p.sigma(t), rtol=2e-5)
    between = p.sigma(np.float32(500.5)) / p.alpha(np.float32(500.5))
    ends = p.sigma(np.array([500, 501])) / p.alpha(np.array([500, 501]))
    np.testing.assert_allclose(between, np.sqrt(np.prod(ends)), rtol=1e-5)


# Posterior ------------------------------------------------------------------------------------------------------------------


def tables(bar: np.ndarray, before: np.ndarray) -> dict[str, np.ndarray]:
    """DDPM's eq. 6-7 with beta = 1 - bar / before."""
    beta = 1 - bar / before
    return dict(
        small=beta * (1 - before) / (1 - bar), large=beta, x0=beta * np.sqrt(before) / (1 - bar),
        xt=(1 - before) * np.sqrt(1 - beta) / (1 - bar),
    )


@pytest.mark.parametrize("x64, rtol", [(True, 1e-9), (False, 1e-4)])
@pytest.mark.parametrize("schedule, steps, stride", [("linear", 1000, 1), ("linear", 1000, 40), ("squaredcos", 1000, 1),
                                                     ("linear", 4000, 1)])
def test_posterior_is_the_published_table(schedule, steps, stride, x64, rtol):
    with jax.enable_x64(x64):
        p = process.DDPM(schedule, steps)
        t = np.arange(0, steps, stride)
        s = np.append(-1, t[:-1])
        q = process.posterior(p, t, s)
        for name, want in tables(p.alpha_bar[t + 1], p.alpha_bar[s + 1]).items():
            np.testing.assert_allclose(getattr(q, name), want, rtol=rtol * steps / 1000, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("p", CONTINUOUS, ids=IDS)
def test_posterior_is_bayes(p):
    """q(x_s | x_t, x0) from the joint Gaussian of x_s and x_t = (alpha_t / alpha_s) x_s + noise."""
    with jax.enable_x64(True):
        t, s = 0.8 * p.t_max, 0.3 * p.t_max
        (a, sd), (b, sd_s) = ((float(p.alpha(v)), float(p.sigma(v))) for v in (t, s))
        step = a / b
        noise = sd**2 - (step * sd_s) ** 2
        gain = step * sd_s**2 / (step**2 * sd_s**2 + noise)
        q = process.posterior(p, jnp.asarray(t), jnp.asarray(s))
        np.testing.assert_allclose([q.xt, q.x0, q.small], [gain, b - gain * a, sd_s**2 - gain * step * sd_s**2], rtol=1e-9)
        np.testing.assert_allclose(q.large, noise, rtol=1e-9)


def test_a_rounded_process_has_a_posterior_between_its_times():
    t, s = jnp.float32(500.5), jnp.float32(480.25)
    exact, rounded = (process.posterior(process.DDPM("squaredcos", rounded=value), t, s) for value in (False, True))
    np.testing.assert_allclose(rounded, exact, rtol=1e-4)


def test_noised_and_bcast():
    x0, eps, t = jnp.ones((2, 3, 3, 1)), jnp.full((2, 3, 3, 1), 2.0), jnp.array([10, 900])
    p = process.DDPM()
    want = np.asarray(p.alpha(t) + 2 * p.sigma(t))
    np.testing.assert_allclose(process.noised(p, x0, t, eps)[:, 0, 0, 0], want, rtol=1e-6)
    np.testing.assert_allclose(process.noised(p, x0, t[0], eps)[:, 0, 0, 0], want[0], rtol=1e-6)


REFUSED = [
    (lambda: process.DDPM(schedule="liner"), "did you mean 'linear'"),
    (lambda: process.DDPM("squaredcos", end=0.1), "no 'end'"),
    (lambda: process.DDPM(steps=0), "1 ... 1000000, got 0"),
    (lambda: process.DDPM(steps=10**10), "1 ... 1000000, got 10000000000"),
    (lambda: process.DDPM(steps=1e10), "1 ... 1000000"),
    (lambda: process.DDPM(steps=2.5), "whole number"),
    (lambda: process.DDPM(steps=20), "use more steps"),
    (lambda: process.DDPM(start=float("nan")), "start is nan"),
    (lambda: process.DDPM(end="much"), "end is a number, got 'much'"),
    (lambda: process.DDPM(start=0.0), "betas outside"),
    (lambda: process.DDPM("squaredcos", 1, zero_snr=True), "2 ... 1000000, got 1"),
    (lambda: process.Cosine(float("-inf")), "logsnr_min is -inf"),
    (lambda: process.Cosine(1.0), "-80 ... 0"),
    (lambda: process.EDM(0.0), "sigma_min > 0"),
    (lambda: process.EDM(80.0, 80.0), "sigma_min > 0"),
    (lambda: process.EDM(0.002, float("inf")), "not finite"),
    (lambda: process.Flow(0.0), "above 0"),
    (lambda: process.Flow(float("nan")), "not finite"),
]


@pytest.mark.parametrize("call, message", REFUSED)
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_whole_number_of_json_is_an_int():
    assert process.DDPM(steps=1000.0) == process.DDPM() and type(process.DDPM(steps=1000.0).t_max) is int


EVERYWHERE = {
    "ddpm": (process.DDPM(), (-1, 0, 500, 999)), "rounded": (process.DDPM("squaredcos", rounded=True), (-1, 0, 500, 999)),
    "zero_snr": (process.DDPM(zero_snr=True), (-1, 999)), "float": (process.DDPM(), (-1.0, -0.5, 0.0, 500.5, 999.0)),
    "cosine": (process.Cosine(), (0.0, 0.5, 1.0)), "edm": (process.EDM(), (0.0, 1.0, 80.0)),
    "flow": (process.Flow(3.0), (0.0, 0.5, 1.0)),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_posterior_of_a_step_of_length_zero_is_the_identity(name):
    """At a clean time and at one without signal too."""
    p, moments = EVERYWHERE[name]
    t = jnp.asarray(moments)
    q = process.posterior(p, t, t)
    np.testing.assert_array_equal(process.ratio(p, t, t), 1)
    np.testing.assert_array_equal(q, np.array([[0], [1], [0], [0]]) * np.ones(len(moments)))


def test_rounding_changes_little_but_at_the_noisy_end():
    exact, rounded = (process.DDPM("squaredcos", rounded=value) for value in (False, True))
    np.testing.assert_allclose(rounded.alpha_bar[:-3], exact.alpha_bar[:-3], rtol=1e-4)
    for t, s, rtol in ((500, 480, 1e-5), (500, 499, 1e-4)):
        a, b = (process.posterior(p, jnp.int32(t), jnp.int32(s)) for p in (exact, rounded))
        np.testing.assert_allclose(np.array(b), np.array(a), rtol=rtol)
    a, b = (process.posterior(p, jnp.int32(999), jnp.int32(832)) for p in (exact, rounded))
    assert abs(float(b.xt / a.xt) - 1.275) < 0.01                              # 1 - (1 - bar_t / bar_s) has lost its digits
