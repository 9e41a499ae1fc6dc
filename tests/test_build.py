"""From configuration to objects."""
import pytest
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.diffusion.process import DDPM, Flow

FLOW = "diffusion_jax.diffusion.process:Flow"


def test_builds_what_it_names_and_what_lies_inside():
    assert build(dict(name=FLOW, shift=3.0)) == Flow(3.0)
    assert build([dict(name=FLOW), 1, "a"]) == (Flow(), 1, "a")
    nested = build({"process": dict(name=FLOW), "list": [1, 2]})
    assert nested == FrozenDict({"process": Flow(), "list": (1, 2)})
    assert hash(nested) is not None


def test_positional_arguments_and_parts_come_from_outside_the_config():
    times = build(dict(name="diffusion_jax.diffusion.times:trailing"), DDPM(), 4)
    assert times.tolist() == [999, 749, 499, 249, -1]
    task = dict(name="diffusion_jax.diffusion.process:Flow")
    assert build(task, shift=2.0) == Flow(2.0)


@pytest.mark.parametrize(
    "name",
    ["os:system", "os.path:join", "diffusion_jax.build:importlib", "diffusion_jax_evil.x:f", "subprocess:run", "diffusion_jax",
     "diffusion_jax.build:__import__", "diffusion_jax.diffusion.process:jnp", "diffusion_jax.diffusion.process:DDPM.betas", ""],
)
def test_refuses_symbols_that_are_not_defined_in_this_package(name):
    with pytest.raises(ConfigError):
        build(dict(name=name))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (dict(name="diffusion_jax.diffusion.process:Flwo"), "did you mean 'Flow'"),
        (dict(name=FLOW, shfit=3.0), "did you mean 'shift'"),
        (dict(name="diffusion_jax.diffusion.proces:Flow"), "no module"),
        (dict(name="diffusion_jax.tasks.diffusion:Diffusion"), "missing"),
        (dict(name="diffusion_jax.diffusion.process:DDPM", schedule="lienar"), "did you mean 'linear'"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(spec, says):
    with pytest.raises(ConfigError, match=says) as error:
        build(spec)
    assert "\n" not in str(error.value)


def test_unknown_lists_all_where_nothing_is_near():
    assert str(unknown("thing", "zzz", ["b", "a"])) == "unknown thing 'zzz': known: a, b"
