"""From configuration to objects, and options that are checked."""
import dataclasses

import pytest
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError, build, check_options, option, unknown
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


# Options --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Oven:
    """What a dataclass of options looks like."""

    heat: float = option(180.0, "Degrees", least=0, most=300)
    minutes: int | None = option(None, "How long; the recipe's own by default", least=1)
    way: str = option("fan", "How the air goes", choices=("fan", "top", "bottom"))
    light: bool = option(False, "Whether one sees the cake")
    shelf: int = 2

    def __post_init__(self):
        check_options(self)


def test_an_option_is_a_field_with_its_default_and_help():
    fields = {field.name: field for field in dataclasses.fields(Oven)}
    assert Oven() == Oven(180.0, None, "fan", False, 2)
    assert fields["heat"].metadata == {"help": "Degrees", "least": 0, "most": 300, "choices": ()}
    assert fields["way"].metadata["choices"] == ("fan", "top", "bottom") and not fields["shelf"].metadata


@pytest.mark.parametrize("options", [
    dict(heat=0), dict(heat=300), dict(heat=300.0), dict(minutes=1), dict(minutes=None), dict(way="top"), dict(light=True),
    dict(shelf=float("nan"))], ids=str)
def test_options_within_their_bounds(options):
    oven = Oven(**options)
    assert all(getattr(oven, name) is value for name, value in options.items())


@pytest.mark.parametrize(("options", "says"), [
    (dict(heat=-1), "heat is 0 ... 300, got -1"),
    (dict(heat=300.5), "heat is 0 ... 300, got 300.5"),
    (dict(heat=float("nan")), "heat is nan, which is not finite: give a number"),
    (dict(heat=float("inf")), "heat is inf, which is not finite"),
    (dict(heat=float("-inf")), "heat is -inf, which is not finite"),
    (dict(minutes=0), "minutes is 1 or more, got 0"),
    (dict(way="fna"), "unknown way 'fna': did you mean 'fan'"),
    (dict(way="x"), "unknown way 'x': known: bottom, fan, top"),
], ids=str)
def test_options_out_of_bounds_are_one_line(options, says):
    with pytest.raises(ConfigError, match=says) as error:
        Oven(**options)
    assert "\n" not in str(error.value)


def test_a_bound_above_alone_is_said_as_such():
    @dataclasses.dataclass(frozen=True)
    class Cold:
        degrees: float = option(-18.0, "Degrees", most=0)

    with pytest.raises(ConfigError, match="degrees is 0 or less, got 4"):
        check_options(Cold(4))
