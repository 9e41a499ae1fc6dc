"""Samplers, times and guidance as text: what is read, and what is refused."""
import inspect

import pytest

from diffusion_jax.build import ConfigError, symbol
from diffusion_jax.pipelines.spelling import CADS, DETERMINISTIC, GRIDS, SAMPLERS, SCHEDULES, constant, named, parse, spec_of

TABLES = {"sampler": SAMPLERS, "times": GRIDS, "schedule": SCHEDULES}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ddim", ("ddim", {})),
        ("ddim,eta=0.5", ("ddim", {"eta": 0.5})),
        (" edm , s_churn=40,s_max=1e2 ", ("edm", {"s_churn": 40, "s_max": 100.0})),
        ("dpm_solver,form=eps,sde=True", ("dpm_solver", {"form": "eps", "sde": True})),
        ("s=0.1,tau1=0.6", ("", {"s": 0.1, "tau1": 0.6})),
        ("karras,rho=-7", ("karras", {"rho": -7})),
        ("", ("", {})),
    ],
)
def test_parse(text, want):
    got = parse(text)
    assert got == want
    assert [type(v) for v in got[1].values()] == [type(v) for v in want[1].values()]


@pytest.mark.parametrize("text", ["ddim,0.5", "ddim,eta=1,x", "s=0.1,tau1"])
def test_options_are_key_and_value(text):
    with pytest.raises(ConfigError, match="write options as key=value, separated by commas") as error:
        parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table])
def test_every_name_is_that_of_a_function(kind, name):
    assert named(kind, name, TABLES[kind]) == {"name": TABLES[kind][name]}
    assert inspect.isfunction(symbol(TABLES[kind][name]))


def test_samplers_that_draw_nothing_take_no_noise():
    takes = {name for name, where in SAMPLERS.items() if "noise" in inspect.signature(symbol(where)).parameters}
    assert takes == set(SAMPLERS) - set(DETERMINISTIC)


def test_options_go_with_the_name():
    assert named("sampler", "ddim,eta=0.5", SAMPLERS) == {"name": SAMPLERS["ddim"], "eta": 0.5}
    assert spec_of(CADS, {"s": 0.1, "tau1": 1}, "s=0.1,tau1=1") == {"name": CADS, "s": 0.1, "tau1": 1}
    assert constant(3.0, None)(0.7) == 3.0


@pytest.mark.parametrize(("kind", "text", "says"), [
    ("sampler", "ddmi", "unknown sampler 'ddmi': did you mean 'ddim'"),
    ("sampler", "", "unknown sampler ''"),
    ("sampler", "ddim,etaa=0.5", "unknown option of ddim 'etaa': did you mean 'eta'"),
    ("sampler", "ddim,noise=1", "unknown option of ddim 'noise'"),
    ("sampler", "ddim,eta=[1]", r"eta takes a number, not \[1\]"),
    ("sampler", "ddim,eta=None", "eta takes a number, not None"),
    ("sampler", "ddim,eta=(", "eta takes a number, not '\\('"),
    ("sampler", "dpm_solver,form=2", "form takes a word, not 2"),
    ("sampler", "plms,order=2", "plms takes no options"),
    ("times", "karras,rhoo=7", "did you mean 'rho'"),
    ("schedule", "constant,w=3", "constant takes no options"),
])
def test_names_and_options_that_are_none_are_one_line(kind, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        named(kind, text, TABLES[kind])
    assert "\n" not in str(error.value)
