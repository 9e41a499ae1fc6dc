"""Times of schedulers that count noise levels: closed forms, ends, and what is refused. Those of diffusers are a golden."""
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import times
from diffusion_jax.diffusion.process import DDPM, EDM, Flow
from diffusion_jax.diffusion.scheduler_times import noise_levels, scheduler

SD = DDPM("scaled_linear", 1000, 0.00085, 0.012)
GRIDS = {                                  # options -> five times and where the last step ends
    "linspace": ({}, [999, 749.25, 499.5, 249.75, 0, -1]),
    "whole": (dict(whole=True), [999, 749, 500, 250, 0, -1]),
    "spare": (dict(whole=True, spare=1), [999, 799, 599, 400, 200, -1]),
    "leading": (dict(spacing="leading", offset=1), [801, 601, 401, 201, 1, -1]),
    "leading, spare": (dict(spacing="leading", spare=1), [830, 664, 498, 332, 166, -1]),
    "trailing": (dict(spacing="trailing"), [999, 799, 599, 399, 199, -1]),
    "last": (dict(last=0), [999, 749.25, 499.5, 249.75, 0, 0]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids(name):
    options, want = GRIDS[name]
    got = scheduler(SD, 5, **options)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert got.dtype == (np.float32 if 749.25 in want else np.int32)


def levels_of(t):
    return np.asarray(SD.sigma(t) / SD.alpha(t), np.float64)


LEVELS = {                                 # what is equally spaced of the levels
    "karras": lambda r: r ** (1 / 7),
    "exponential": np.log,
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("ends", [{}, dict(low=0.1, high=10.0), dict(spacing="leading", offset=1)])
def test_levels_are_equally_spaced_in_their_own_coordinate(name, ends):
    r = levels_of(scheduler(SD, 9, levels=name, **ends)[:-1])
    low, high = noise_levels(SD)[[1, 889] if "spacing" in ends else [0, 999]]
    want = ends.get("high", high), ends.get("low", low)
    np.testing.assert_allclose(r[[0, -1]], want, rtol=1e-4)
    np.testing.assert_allclose(np.diff(LEVELS[name](r)), np.diff(LEVELS[name](r)).mean(), rtol=2e-3)


def test_beta_levels_are_quantiles():
    from scipy.stats import beta

    table, r = noise_levels(SD), levels_of(scheduler(SD, 9, levels="beta")[:-1])
    share = (r - table[0]) / (table[-1] - table[0])
    np.testing.assert_allclose(beta.cdf(share, 0.6, 0.6), 1 - np.linspace(0, 1, 9), atol=2e-3)


def test_a_table_without_signal_has_finite_levels():
    p = DDPM("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True)
    assert noise_levels(p)[-1] == pytest.approx(4096, rel=1e-4)
    assert np.isfinite(scheduler(p, 10, levels="karras")).all()


def test_the_noisy_end_of_a_cosine_may_be_left_out():
    p = DDPM("squaredcos", 1000)
    t = scheduler(p, 5, whole=True, spare=1, lowest=-5.1)
    assert -np.log(noise_levels(p)[t[0]]) >= -5.1 > -np.log(noise_levels(p)[t[0] + 1])


def test_a_flow_has_equal_parts_below_one():
    np.testing.assert_allclose(scheduler(Flow(3.0), 4), [0.999, 0.74925, 0.4995, 0.24975, 0])


@pytest.mark.parametrize("steps", [1, 2, 3, 30, 999, 1000])
def test_trailing_times_of_any_number_are_those_of_times(steps):
    np.testing.assert_array_equal(scheduler(SD, steps, spacing="trailing"), times.trailing(SD, steps))


REFUSED = {
    "one step of both ends": (SD, 1, {}, "one step of linspace times begins where there is no noise: choose spacing=trailing"),
    "one step of leading": (SD, 1, dict(spacing="leading", offset=1), "one step of leading"),
    "no steps": (SD, 0, {}, "steps of a scheduler is 1 or more"),
    "too many": (SD, 1001, {}, "1000 times"),
    "a respacing": (SD, "ddim50", {}, "steps of a scheduler is a whole number"),
    "levels beyond the table": (SD, 5, dict(levels="karras", high=20.0), "leave those that were trained"),
    "levels below the table": (SD, 5, dict(levels="karras", low=0.001), "leave those that were trained"),
    "levels that rise": (SD, 5, dict(levels="karras", low=2.0, high=1.0), "leave those that were trained"),
    "an unknown spacing": (SD, 5, dict(spacing="trailin"), "did you mean 'trailing'"),
    "unknown levels": (SD, 5, dict(levels="karas"), "did you mean 'karras'"),
    "an offset out of the table": (SD, 5, dict(spacing="leading", offset=300), "leave 0 ... 999"),
    "another process": (EDM(), 5, {}, "need a DDPM process"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_scheduler_cannot_be_asked(name):
    process, steps, options, says = REFUSED[name]
    with pytest.raises(ConfigError, match=says) as error:
        scheduler(process, steps, **options)
    assert "\n" not in str(error.value)
