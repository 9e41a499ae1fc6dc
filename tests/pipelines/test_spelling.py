"""Samplers, times and guidance as text: what is read, and what is refused."""
import inspect

import pytest

from diffusion_jax.build import ConfigError, symbol
from diffusion_jax.pipelines.spelling import (
    BOUNDS,
    CADS,
    GRIDS,
    SAMPLERS,
    SCHEDULES,
    constant,
    defaults_of,
    named,
    parse,
    spec_of,
    takes_noise,
)

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
        ("dpm_solver, form = 'eps', sde=False", ("dpm_solver", {"form": "eps", "sde": False})),
        ("x,a=1_0,b=\u0663,c=nan,d=true,e=+.5", ("x", {"a": "1_0", "b": "\u0663", "c": "nan", "d": "true", "e": 0.5})),
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
    assert {name for name, where in SAMPLERS.items() if not takes_noise(where)} == {
        "heun", "plms", "dpmpp_2m", "unipc", "deis", "meanflow"}


def test_options_go_with_the_name():
    assert named("sampler", "ddim,eta=0.5", SAMPLERS) == {"name": SAMPLERS["ddim"], "eta": 0.5}
    assert spec_of(CADS, {"s": 0.1, "tau1": 1}, "s=0.1,tau1=1") == {"name": CADS, "s": 0.1, "tau1": 1}
    assert constant(3.0, None)(0.7) == 3.0


@pytest.mark.parametrize(("kind", "text", "says"), [
    ("sampler", "ddmi", "unknown sampler 'ddmi': did you mean 'ddim'"),
    ("sampler", "", "unknown sampler ''"),
    ("sampler", "ddim,etaa=0.5", "unknown option of ddim 'etaa': did you mean 'eta'"),
    ("sampler", "ddim,noise=1", "unknown option of ddim 'noise'"),
    ("sampler", "ddim,eta=[1]", r"eta takes a number, not '\[1\]'"),
    ("sampler", "ddim,eta=None", "eta takes a number, not 'None'"),
    ("sampler", "ddim,eta=(", "eta takes a number, not '\\('"),
    ("sampler", "dpm_solver,form=2", "form takes a word, not 2"),
    ("sampler", "plms,order=2", "plms takes no options"),
    ("times", "karras,rhoo=7", "did you mean 'rho'"),
    ("schedule", "constant,w=3", "constant takes no options"),
    ("sampler", "ddim,eta=nan", "eta takes a number, not 'nan'"),
    ("sampler", "ddim,eta=1e400", "eta is inf, which is not finite"),
    ("sampler", "ddim,eta=-0.1", "eta is 0 ... 1, got -0.1"),
    ("sampler", "euler_ancestral,eta=2", "eta is 0 ... 1, got 2"),
    ("sampler", "ddim,eta=True", "eta takes a number, not True"),
    ("sampler", "ddim,eta=1_0", "eta takes a number, not '1_0'"),
    ("sampler", "ddim,eta=\u00b2", "eta takes a number"),
    ("sampler", "ddim,eta=", "eta takes a number, not ''"),
    ("sampler", "ddim,eta=" + "(" * 5000, "eta takes a number"),
    ("sampler", "ddim,eta=" + "-" * 5000 + "1", "eta takes a number"),
    ("sampler", "ddim,eta=" + "9" * 5000, "eta is inf"),
    ("sampler", "edm,s_churn=-1", "s_churn is 0 or more, got -1"),
    ("sampler", "edm,s_noise=-1", "s_noise is 0 or more"),
    ("sampler", "euler,s_churn=-3", "s_churn is 0 or more"),
    ("sampler", "dpm_solver,order=2.5", "order is a whole number, got 2.5"),
    ("sampler", "dpm_solver,order=True", "order takes a number, not True"),
    ("sampler", "dpm_solver,sde=3", "sde takes True or False, not 3"),
    ("sampler", "dpm_solver,sde=yes", "sde takes True or False, not 'yes'"),
    ("sampler", "ddim,name=diffusion_jax.files:whole", "unknown option of ddim 'name'"),
    ("times", "karras,rho=0", "rho is 0.1 ... 1000, got 0"),
    ("times", "karras,rho=-1", "rho is 0.1 ... 1000"),
    ("times", "karras,rho=1e9", "rho is 0.1 ... 1000"),
    ("times", "karras,sigma_min=-1", "sigma_min is 0 or more"),
    ("times", "karras,sigma_max=inf", "sigma_max takes a number, not 'inf'"),
    ("times", "log_snr,sigma_max=1e400", "sigma_max is inf, which is not finite"),
    ("times", "leading,offset=0.5", "offset is a whole number, got 0.5"),
    ("times", "leading,offset=-1", "offset is 0 or more"),
    ("times", "leading,last=3", "last is -1 ... 0, got 3"),
    ("times", "leading,last=-5", "last is -1 ... 0"),
    ("schedule", "power_cosine,power=nan", "power takes a number"),
    ("schedule", "power_cosine,power=-1", "power is 0 or more"),
    ("schedule", "dynamic_cfg,tau1=1e999", "tau1 is inf"),
])
def test_names_and_options_that_are_none_are_one_line(kind, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        named(kind, text, TABLES[kind])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "says"), [
    ("s=-1", "s is 0 or more, got -1"),
    ("s=nan", "s takes a number, not 'nan'"),
    ("psi=2", "psi is 0 ... 1, got 2"),
    ("psi=-0.5", "psi is 0 ... 1"),
    ("rescale=7", "rescale takes True or False, not 7"),
    ("statistics=1", "statistics takes a word, not 1"),
    ("keys=vec", "unknown option of CADS 'keys'"),
], ids=str)
def test_options_of_cads_have_ranges(text, says):
    with pytest.raises(ConfigError, match=says):
        spec_of(CADS, parse(text)[1], text)


def test_every_bound_is_that_of_an_option():
    functions = {where.partition(":")[2]: where for table in (*TABLES.values(), {"CADS": CADS}) for where in table.values()}
    for function, options in BOUNDS.items():
        assert set(options) <= defaults_of(functions[function]).keys(), function
