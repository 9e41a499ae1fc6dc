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


def dit(**options):
    return dict(name="diffusion_jax.models.dit:DiT", patch=2, width=32, depth=1, heads=2) | options


def task(**options):
    label = dict(name="diffusion_jax.models.cond:Label", num_classes=10, width=32)
    scale = dict(name="diffusion_jax.diffusion.scales:V")
    return dict(name="diffusion_jax.tasks.diffusion:Diffusion", model=dit(), cond=label, process=dict(name=FLOW), scale=scale,
                shape=[8, 8, 1]) | options


def deep(levels):
    tree = 1
    for _ in range(levels):
        tree = {"a": tree}
    return tree


NAN, INF = float("nan"), float("inf")
DDPM_SPEC = {"name": "diffusion_jax.diffusion.process:DDPM"}
DECODE = {"name": "diffusion_jax.data.image:Decode", "size": 8}


@pytest.mark.parametrize(("spec", "says"), [
    (dit(depth=-1), "depth of diffusion_jax.models.dit:DiT is 0 ... 1000, got -1"),
    (dit(depth=10**9), "depth of .* is 0 ... 1000, got 1000000000"),
    (dit(depth=2.0), "depth of .* is a whole number, got 2.0"),
    (dit(depth="2"), "depth of .* is a whole number, got '2'"),
    (dit(depth=True), "depth of .* is a whole number, got True"),
    (dit(depth=None), "depth of .* is a whole number, got None"),
    (dit(depth=[2]), "depth of .* is a whole number"),
    (dit(depth={}), "depth of .* is a whole number"),
    (dit(depth={"name": FLOW}), "depth of .* is a whole number"),
    (dit(depth=NAN), "depth of .* is a whole number, got nan"),
    (dit(depth=10**400), "depth of .* is 0 ... 1000, got 1000"),
    (dit(width=0), "width of .* is 1 ... 65536, got 0"),
    (dit(heads=-2), "heads of .* is 1 ... 4096, got -2"),
    (dit(mlp_ratio=INF), "mlp_ratio of .* is inf, which is not finite"),
    (dit(mlp_ratio="4"), "mlp_ratio of .* is a number, got '4'"),
    (dit(learn_sigma="no"), "learn_sigma of .* is true or false, got 'no'"),
    (dit(learn_sigma=2), "learn_sigma of .* is true or false, got 2"),
    (dit(dtype=32), "dtype of .* is a text, got 32"),
    (dit(grid="x"), "grid of .* is a whole number or null, got 'x'"),
    (dit(parent=None), "unknown option of .* 'parent'"),
    (task(shape="888"), "shape of .* is a list of 3 times a whole number, got '888'"),
    (task(shape=[8, 8]), "shape of .* is a list of 3 times"),
    (task(shape=[8, 8, -1]), "shape of .* is 0 ... 16384, got -1"),
    (task(shape=[8, 8, 1.0]), "shape of .* is a list of 3 times a whole number"),
    (task(shape=[10**6, 8, 1]), "shape of .* is 0 ... 16384"),
    (task(shape={"0": 8, "1": 8, "2": 1}), "shape of .* is a list of 3 times"),
    (task(drop={"label": 1.5}), "drop of .* is 0 ... 1, got 1.5"),
    (task(drop={"label": NAN}), "drop of .* is nan"),
    (task(drop={"label": "x"}), "drop of .* is a mapping to a number"),
    (task(drop=0.1), "drop of .* is a mapping to a number, got 0.1"),
    (task(process=dict(name=FLOW, shift={"name": FLOW})), "shift of .*Flow is a number"),
    (task(process=DDPM_SPEC | {"steps": 10**10}), "steps of .*DDPM is 1 ... 1000000, got 10000000000"),
    (task(process=DDPM_SPEC | {"steps": 0}), "steps of .*DDPM is 1 ... 1000000, got 0"),
    (task(process=dit()), "process of .* is one of the processes, {'name': ...}"),
    (task(process="flow"), "process of .* is one of the processes"),
    (task(process={"kind": "flow"}), "process of .* is one of the processes"),
    (task(cond=dict(name=FLOW)), "cond of .* is one of the conditioners"),
    (task(model=dict(name=FLOW)), "model of .* is one of the networks"),
    (task(scale=1.0), "scale of .* is one of the scales"),
    (task(uncertainty=dit(detph=1)), "unknown option of .*DiT 'detph': did you mean 'depth'"),
    (task(weight=dict(name="diffusion_jax.diffusion.losses:MinSNR", gamma=NAN)), "gamma of .* is nan"),
    (dict(name="diffusion_jax.tasks.dvae:DiscreteVAE", model=dit(), shape=[8, 8, 1], reconstruction="logit_laplace"),
     "DiscreteVAE is not made of such options"),
    (DECODE | {"size": 10**9}, "size of .* is 1 ... 16384"),
    (DECODE | {"tokenizer": dict(name=FLOW)}, "tokenizer of .* is one of the tokenizers"),
    (DECODE | {"tokenizer": "clip"}, "tokenizer of .* is one of the tokenizers, .* or null, got 'clip'"),
    (dict(name="diffusion_jax.data.arrays:Arrays", path=3), "path of .* is a text, got 3"),
    (dict(name="diffusion_jax.data.arrays:Arrays", path="x", meta=[1]), "meta of .* is a list of a text"),
    ([1, {"a": (dict(name=FLOW, shift=NAN),)}], "shift of .* is nan"),
    ({"a": {3: 1}}, "the keys of a config are texts, got 3"),
    (deep(41), "at most 40 levels"),
    (deep(100_000), "at most 40 levels"),
    ([0] * 100_001, "100,000 entries"),
    (task(cond=deep(50)), "at most 40 levels"),
], ids=lambda value: value[:50] if isinstance(value, str) else "")
def test_values_are_checked_before_anything_is_made(spec, says):
    with pytest.raises(ConfigError, match=says) as error:
        build(spec)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_nothing_is_made_where_anything_is_wrong(monkeypatch):
    """The last option of the last part is: none of the others was called."""
    monkeypatch.setattr(Flow, "__post_init__", lambda self: pytest.fail("made"), raising=False)
    for bad in (dict(name="os:system"), dict(name=FLOW, shfit=1), dict(name=FLOW, shift="x"), dict(name=FLOW, shift=NAN)):
        with pytest.raises(ConfigError):
            build([dict(name=FLOW), {"a": [dict(name=FLOW), bad]}])


@pytest.mark.parametrize("spec", [
    dit(depth=0), dit(learn_sigma=0), dit(mlp_ratio=4), dit(grid=None), dit(grid=4), task(drop={}), task(shape=(8, 8, 1)),
    task(weight=dict(name="diffusion_jax.diffusion.losses:MinSNR", gamma=INF)),
    task(times=dict(name="diffusion_jax.diffusion.times:Stratified")), task(process=DDPM()),
    task(times=dict(name="diffusion_jax.diffusion.times:SecondMoment")), deep(40), [], {}, None, 3, "x", NAN,
], ids=str)
def test_values_that_are_right(spec):
    build(spec)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (dict(name="diffusion_jax.diffusion.process:Flwo"), "did you mean 'Flow'"),
        (dict(name=FLOW, shfit=3.0), "did you mean 'shift'"),
        (dict(name="diffusion_jax.diffusion.proces:Flow"), "no module .* did you mean 'diffusion_jax.diffusion.process'"),
        (dict(name="diffusion_jax.modes.train:run"), "no module 'diffusion_jax.modes.train' that configs may name"),
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
