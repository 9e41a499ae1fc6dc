"""Grids against published values, and draws against their distributions."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, times

DDPM = process.DDPM()
KEY = jax.random.key(0)

KEPT = {        # (string, length) -> what the published respacing keeps
    ("8", 1000): [0, 143, 285, 428, 571, 714, 856, 999],
    ("ddim8", 1000): range(0, 1000, 125),
    ("ddim25", 1000): range(0, 1000, 40),
    ("3", 102): [0, 50, 101],                              # 50.5 rounds to even
    ("2", 1000): [0, 999],
    ("1,1", 10): [0, 5],
    ("5,4,3", 1001): [0, 83, 166, 250, 333, 334, 445, 556, 667, 668, 834, 1000],
    ("10,15,20", 300): [
        0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 107, 114, 121, 128, 135, 142, 149, 157, 164, 171, 178, 185, 192, 199, 200,
        205, 210, 216, 221, 226, 231, 236, 242, 247, 252, 257, 263, 268, 273, 278, 283, 289, 294, 299,
    ],
    ("fast27", 1000): [
        0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377, 399, 400, 500, 599, 600, 799,
        800, 997,
    ],
    ("", 7): range(7),
    ((2, 3), 10): [0, 4, 5, 7, 9],
}


@pytest.mark.parametrize("spec, steps", KEPT)
def test_space(spec, steps):
    found = times.space(spec, steps)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, KEPT[spec, steps])


GRIDS = {       # (grid, steps) -> its times
    ("respace", 8): [999, 856, 714, 571, 428, 285, 143, 0, -1],
    ("leading", 4): [750, 500, 250, 0, -1],
    ("trailing", 4): [999, 749, 499, 249, -1],
    ("trailing", 7): [999, 856, 713, 570, 428, 285, 142, -1],
    ("linspace", 4): [999, 666, 333, 0, -1],
    ("uniform", 2): [999, 0, -1],
    ("uniform", 1): [999, -1],
    ("linspace", 1): [999, -1],
    ("trailing", 1): [999, -1],
}


@pytest.mark.parametrize("name, steps", GRIDS)
def test_counted_grids(name, steps):
    found = getattr(times, name)(DDPM, steps)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, GRIDS[name, steps])


def test_leading_with_an_offset_and_strings():
    np.testing.assert_array_equal(times.leading(DDPM, 4, offset=1)[:-1], [751, 501, 251, 1])
    np.testing.assert_array_equal(times.respace(DDPM, "ddim4"), [750, 500, 250, 0, -1])


@pytest.mark.parametrize("steps", [2, 3, 7, 30, 999, 1000])
@pytest.mark.parametrize("name", times.GRIDS[:4])
def test_counted_grids_descend(name, steps):
    grid = getattr(times, name)(DDPM, steps)
    assert len(grid) == steps + 1 and grid[-1] == -1 and grid[0] <= 999
    assert (np.diff(grid) < 0).all()


@pytest.mark.parametrize("p", [process.DDPM("squaredcos", 4), process.Cosine(), process.EDM(), process.Flow(3.0)])
def test_a_single_step_leads_from_the_noisiest_time_to_a_clean_one(p):
    for name in ("uniform", "karras", "log_snr") + (("linspace", "trailing") if isinstance(p, process.DDPM) else ()):
        grid = getattr(times, name)(p, 1)
        assert len(grid) == 2 and grid[1] == p.t_clean
        np.testing.assert_allclose(grid[0], min(p.t_max, p.time(process.LARGEST_RATIO)), rtol=1e-4)


@pytest.mark.parametrize(("total", "count"), [(1000, 300), (1000, 501), (1000, 999), (1000, 5000), (100, 30), (4, 3), (7, 6)])
def test_a_stride_that_there_is_not_names_one_that_there_is(total, count):
    with pytest.raises(ConfigError, match="is the nearest that there is") as error:
        times.space(f"ddim{count}", total)
    near = str(error.value).split("'")[1]
    assert len(times.space(near, total)) == int(near[4:])


def test_trailing_takes_any_number_of_steps():
    for steps in range(1, 1001):
        grid = times.trailing(DDPM, steps)
        assert len(grid) == steps + 1 and grid[0] == 999 and (np.diff(grid) < 0).all(), steps


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.parametrize("p", [process.DDPM(zero_snr=True), process.Flow()], ids=["zero_snr", "flow"])
def test_level_grids_begin_where_a_table_of_infinite_noise_does(p, name):
    grid = getattr(times, name)(p, 50)
    assert (np.diff(grid) < 0).all()
    np.testing.assert_allclose(p.sigma(grid[0]) / p.alpha(grid[0]), process.LARGEST_RATIO, rtol=0.01)


@pytest.mark.parametrize("p", [DDPM, process.Cosine(), process.EDM()], ids=["ddpm", "cosine", "edm"])
@pytest.mark.parametrize("name", ["karras", "log_snr"])
def test_level_grids(name, p):
    n, low, high, rho = 10, 0.1, 10.0, 7.0
    grid = getattr(times, name)(p, n, low, high)
    i = np.arange(n) / (n - 1)
    levels = {
        "karras": (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho, "log_snr": high * (low / high) ** i,
    }
    np.testing.assert_allclose(p.sigma(grid[:-1]) / p.alpha(grid[:-1]), levels[name], rtol=1e-4)
    assert grid[-1] == p.t_clean and grid.dtype == np.float32


def test_level_grids_default_to_the_trained_range():
    grid = times.karras(process.EDM(), 18)
    np.testing.assert_allclose([grid[0], grid[-2]], [80, 0.002], rtol=1e-5)
    np.testing.assert_allclose(times.log_snr(DDPM, 5)[[0, -2]], [999, 0], atol=1e-3)


def test_uniform_in_continuous_time():
    np.testing.assert_allclose(times.uniform(process.Flow(), 4), [1, 0.75, 0.5, 0.25, 0])


REFUSED = [
    (lambda: times.space("ddim300", 1000), "no integer stride"),
    (lambda: times.space("1001", 1000), "cannot take 1001"),
    (lambda: times.space((0, 3), 10), "cannot take 0"),
    (lambda: times.space("ten", 1000), "no respacing"),
    (lambda: times.space("10,x", 1000), "no respacing"),
    (lambda: times.space("ddim", 1000), "no respacing"),
    (lambda: times.leading(process.Flow(), 10), "continuous"),
    (lambda: times.trailing(DDPM, 1001), "1 ... 1000"),
    (lambda: times.linspace(DDPM, 0), "1 ... 1000"),
    (lambda: times.leading(DDPM, 1000, offset=1), "1 ... 1000 leave 0 ... 999"),
    (lambda: times.leading(DDPM, 10, offset=-1), "-1 ... 899 leave"),
    (lambda: times.leading(DDPM, 10, offset=0.5), "whole number"),
    (lambda: times.leading(DDPM, 10, last=500), "-1, clean, or 0"),
    (lambda: times.leading(DDPM, 1), "choose times 'trailing'"),
    (lambda: times.leading(DDPM, 1, offset=1), "choose times 'trailing'"),
    (lambda: times.respace(DDPM, 1), "choose times 'trailing'"),
    (lambda: times.respace(DDPM, "ddim1"), "choose times 'trailing'"),
    (lambda: times.space(",,,", 1000), "no respacing"),
    (lambda: times.space("10,,5", 1000), "no respacing"),
    (lambda: times.space("ddim\u0663", 1000), "no respacing"),
    (lambda: times.space("9" * 5000, 1000), "no respacing"),
    (lambda: times.trailing(DDPM, 2.5), "1 ... 1000, got 2.5"),
    (lambda: times.uniform(process.Flow(), 0), "1 or more, got 0"),
    (lambda: times.uniform(DDPM, True), "whole number"),
    (lambda: times.karras(process.EDM(), 0), "1 or more"),
    (lambda: times.log_snr(process.EDM(), -1), "1 or more"),
    (lambda: times.karras(DDPM, 10, rho=0), "rho is 1.0 ... 1000.0"),
    (lambda: times.karras(DDPM, 10, rho=float("nan")), "rho is nan"),
    (lambda: times.karras(DDPM, 10, sigma_max=float("inf")), "sigma_max=inf"),
    (lambda: times.log_snr(DDPM, 10, sigma_min=float("nan")), "sigma_min=nan"),
    (lambda: times.karras(DDPM, 10, sigma_min=0), "sigma_min=0,"),
    (lambda: times.log_snr(process.EDM(), 10, 1.0, 0.5), "fall from sigma_max"),
]


@pytest.mark.parametrize("call, message", REFUSED)
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# Draws ----------------------------------------------------------------------------------------------------------------------

N = 4000


def distance(values, cdf) -> float:
    """The Kolmogorov-Smirnov statistic."""
    values = np.sort(np.asarray(values, np.float64))
    return np.abs(cdf(values) - (np.arange(len(values)) + 0.5) / len(values)).max()


def normal(mean, std):
    return lambda x: np.array([0.5 * (1 + np.vectorize(math.erf)((v - mean) / std / 2**0.5)) for v in x])


DRAWS = {
    "uniform": (times.Uniform(), process.Flow(), lambda t: t, lambda x: x),
    "uniform ddpm": (times.Uniform(), DDPM, lambda t: (t + 0.5) / 1000, lambda x: x),
    "uniform edm": (times.Uniform(), process.EDM(), process.EDM().unit, lambda x: x),
    "lognormal": (times.LogNormal(), process.EDM(), jnp.log, normal(-1.2, 1.2)),
    "lognormal cosine": (
        times.LogNormal(-0.4, 1.0), process.Cosine(),
        lambda t: jnp.log(process.Cosine().sigma(t) / process.Cosine().alpha(t)), normal(-0.4, 1.0),
    ),
    "logitnormal": (times.LogitNormal(0.5, 0.8), process.Flow(), lambda t: jnp.log(t / (1 - t)), normal(0.5, 0.8)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    draw, p, transform, cdf = DRAWS[name]
    t = draw(p, KEY, N)
    assert t.shape == (N,)
    assert distance(transform(t), cdf) < 1.63 / N**0.5          # 1 % level


def test_stratified_draws_once_per_stratum():
    t = times.Stratified()(process.Flow(), KEY, 64)
    np.testing.assert_array_equal(np.floor(t * 64), np.arange(64))


@pytest.mark.parametrize("p", [process.Flow(), process.Cosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("draw", [times.Uniform(), times.Stratified()], ids=["uniform", "stratified"])
def test_draws_have_noise_even_where_the_random_number_is_0(draw, p, monkeypatch):
    for u in (0.0, 1 - 2.0**-23):                                                  # the least and the largest that there are
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype=float, u=u: jnp.full(shape, u, dtype))
        t = draw(p, KEY, 1)
        assert 0 < t < 1 and p.sigma(t) > 0 and p.alpha(t) > 0


def test_counted_draws_are_integers_of_the_table():
    t = times.Uniform()(process.DDPM(steps=50), KEY, N)
    assert t.dtype == jnp.int32
    np.testing.assert_array_equal(np.unique(t), np.arange(50))


def test_second_moments_keep_the_last_losses_of_each_time():
    """Against a plain loop over the losses, in batches in which a time comes often."""
    rng, sampler = np.random.default_rng(0), times.SecondMoment(history=3, uniform=0.1)
    memory, kept = sampler.memory(process.DDPM("squaredcos", 20)), [[] for _ in range(20)]
    t_drawn, weights = sampler.draw(process.DDPM("squaredcos", 20), memory, KEY, 50)
    learn = jax.jit(sampler.learn)
    assert t_drawn.dtype == jnp.int32 and (weights == 1).all()                     # uniform at first
    for _ in range(30):
        t, loss = rng.integers(0, 20, 16) // rng.integers(1, 4), rng.random(16).astype(np.float32) + 0.1
        memory = learn(memory, jnp.asarray(t), jnp.asarray(loss))
        for i, value in zip(t, loss, strict=True):
            kept[i] = [*kept[i], value][-3:]
    counts = np.array([len(row) for row in kept])
    assert (counts == 3).all()
    np.testing.assert_allclose(np.sort(memory["losses"], axis=1), np.sort(np.array(kept), axis=1))
    r = np.sqrt(np.mean(np.square(kept), axis=1))
    p = 0.9 * r / r.sum() + 0.1 / 20
    np.testing.assert_allclose(sampler.probabilities(memory), p, rtol=1e-5)
    t, weights = sampler.draw(process.DDPM("squaredcos", 20), memory, KEY, N)
    np.testing.assert_allclose(np.bincount(t, minlength=20) / N, p, atol=4 * (p.max() / N) ** 0.5)
    np.testing.assert_allclose(weights, 1 / (20 * p[t]), rtol=1e-5)
    np.testing.assert_allclose(np.mean(weights), 1, atol=0.03)                     # an expectation stays what it was


def test_importance_sampling_needs_times_that_count():
    with pytest.raises(ConfigError, match="need a DDPM process"):
        times.SecondMoment().memory(process.Flow())
