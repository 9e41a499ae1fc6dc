"""Which times are refused or warned of, of which sampler, and that what the warning names does."""
import re
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import reach
from diffusion_jax.diffusion.process import DDPM, EDM, Cosine, Flow
from diffusion_jax.pipelines import grid
from diffusion_jax.pipelines.grid import check_grid, strain_of, warn
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.spelling import SAMPLERS

LINEAR, SQUARED, SCALED = DDPM(), DDPM("squaredcos"), DDPM("scaled_linear")


def check(p, variance="fixed_small", **options):
    recipe = Recipe(**options)
    warn.cache_clear()
    check_grid(p, recipe.grid(p), recipe.sampler, variance)


@pytest.fixture
def silent(capsys):
    """`check`, without a warning."""
    def checked(*args, **options):
        check(*args, **options)
        assert not capsys.readouterr().err

    return checked


@pytest.mark.parametrize(("p", "options", "remedy"), [
    (SQUARED, dict(sampler="plms", steps=10), "times 'karras'"),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (SQUARED, dict(sampler="edm", steps=10), "more steps"),
        (SQUARED, dict(sampler="edm", steps=20), "times 'karras'"),
        (LINEAR, dict(sampler="ancestral,variance=fixed_large", steps=3), "more steps"),
        (SQUARED, dict(sampler="edm,s_churn=5", steps=20, times="trailing"), "times 'karras'"),
        (SQUARED, dict(sampler="plms", steps=20), "times 'karras'"),
        (Cosine(), dict(sampler="edm", steps=10), "times 'karras'"),
        (LINEAR, dict(sampler="edm", steps=2), "more steps"),
        (EDM(), dict(sampler="edm", steps=2, times="karras"), "more steps"),
        (LINEAR, dict(sampler="dpm_solver,form=eps,sde=True", steps=5), "more steps"))),
], ids=str)
def test_of_steps_that_a_sampler_cannot_make_a_warning_says_what_can(p, options, remedy, silent, capsys):
    check(p, **options)
    check_grid(p, Recipe(**options).grid(p), options["sampler"], "fixed_small")                # said once
    text = capsys.readouterr().err
    assert text.startswith("warning: ") and text.count("\n") == 1 and "further than it can: choose " in text
    assert remedy in text and "sampler 'dpmpp_2m' or 'ddim'" in text
    for times in re.findall("times '(\\w+)'", text):
        silent(p, **{**options, "times": times})
    for sampler in ("dpmpp_2m", "ddim"):
        silent(p, **{**options, "sampler": sampler})
    for times in ("karras", "log_snr"):
        silent(p, **{**options, "times": times, "steps": 100})


@pytest.mark.parametrize(("p", "options"), [
    (SQUARED, dict(sampler="edm", steps=20, times="karras")), (SQUARED, dict(sampler="edm", steps=500)),
    (SQUARED, dict(sampler="heun", steps=3)), (SQUARED, dict(sampler="dpmpp_2m", steps=2)),
    (EDM(), dict(sampler="edm", steps=18, times="karras")), (EDM(), dict(sampler="edm", steps=5)),
    (LINEAR, dict(sampler="edm", steps=10)), (LINEAR, dict(sampler="plms", steps=10)), (LINEAR, dict(sampler="plms", steps=4)),
    (SCALED, dict(sampler="plms", steps=50, times="leading,offset=1,last=0")),
    (SCALED, dict(sampler="ddim", steps=2, times="leading,offset=1,last=0")),
    (SCALED, dict(sampler="dpm_solver,form=eps,sde=True", steps=25, times="karras")),
    (LINEAR, dict(sampler="ancestral,variance=fixed_large", steps=50)), (Flow(), dict(sampler="heun", steps=1)),
], ids=str)
def test_what_is_published_goes_through(p, options, silent):
    silent(p, **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("p", [LINEAR, SQUARED, Cosine(), EDM(), Flow()], ids=["linear", "squaredcos", "cosine", "edm", "flow"])
def test_one_step_by_default_begins_in_noise(p, sampler, silent):
    np.testing.assert_array_equal(Recipe(steps=1).grid(p), np.asarray([p.t_max, p.t_clean]))
    silent(p, sampler=sampler, steps=1)


@pytest.mark.parametrize(("options", "says"), [
    (dict(steps=1, times="respace"), "choose times 'trailing'"),
    (dict(steps=1, times="leading"), "choose times 'trailing'"),
    (dict(steps=1, times="leading,offset=1,last=0"), "choose times 'trailing'"),
    (dict(steps="ddim1", times="respace"), "choose times 'trailing'"),
    (dict(steps="1,1", times="respace"), "sigma / alpha is 1.*choose times 'trailing'"),
    (dict(steps=2, times="leading"), "the times begin at t = 500, where sigma / alpha is 1.*choose times 'trailing'"),
    (dict(steps=9, times="karras,sigma_max=0.5"), "sigma / alpha is 0.5"),
    (dict(steps=9, times="log_snr,sigma_max=0.1"), "sigma / alpha is 0.1"),
], ids=str)
def test_times_that_do_not_begin_in_noise_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        check(SQUARED, **options)


def test_the_variance_counts_where_the_ancestral_sampler_reads_it():
    assert strain_of("ancestral", "fixed_large") is reach.large_variance is strain_of("ancestral,variance=fixed_large", "learned")
    assert strain_of("ancestral,variance=fixed_small", "fixed_large") is strain_of("ddim", "fixed_large") is None


class Few:
    """A model of few steps that takes one sampler."""

    def check_sampler(self, name):
        if name != "lcm":
            raise ConfigError("lcm alone")


def test_a_model_of_few_steps_says_which_samplers_it_takes(monkeypatch):
    monkeypatch.setattr(grid.kinds, "FewSteps", Few)
    grid.check_task(Few(), "lcm,scaling=5")
    with pytest.raises(ConfigError, match="lcm alone"):
        grid.check_task(Few(), "ddim")


def test_mean_velocities_are_asked_of_those_who_know_them():
    grid.check_task(SimpleNamespace(), "ddim")
    with pytest.raises(ConfigError, match="choose ddim"):
        grid.check_task(SimpleNamespace(), "meanflow")
