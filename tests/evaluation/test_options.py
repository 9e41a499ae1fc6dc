"""What a measurement is asked: made of groups, and which of it was set."""
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation.metrics import METRICS
from diffusion_jax.evaluation.options import OF_SAMPLES, RUN, Features, Measure, Options, of_page


def test_options_are_made_of_groups():
    options = Options.of(Features(features="runs/judge"), Measure(blur=2.0), num=100)
    assert options == Options(features="runs/judge", blur=2.0, num=100)
    with pytest.raises(ConfigError, match="blur is 0 or more"):
        Measure(blur=-1.0)


def test_what_was_set_is_known_by_its_flags():
    assert Options().flags == Options(swept="guidance").flags == ()
    assert Options(seed=0, upsampler=("x",), changes={"steps": 5, "guidance": 1.0}).flags == (
        "seed", "upsampler", "steps", "guidance")


def test_every_option_belongs_to_a_metric():
    looked_at = {flag for metric in METRICS.values() for flag in metric.takes} | set(RUN) | {"images"}
    names = set(Options.__dataclass_fields__) - {"changes", "swept"}
    assert names | set(OF_SAMPLES) == looked_at


def test_a_page_says_what_its_run_measures():
    section = dict(num=20, guidance=2.0, features="stub", resize="", every=5)
    assert of_page({"evaluate": section}, 7) == Options(num=7, features="stub")
