"""What a measurement is asked: groups, and which of their options were set."""
from dataclasses import fields

import pytest
from pages import measuring

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation.metrics import METRICS
from diffusion_jax.evaluation.options import BATCH, OF_SAMPLES, RUN, SEED, Features, Measure, Options, of_page
from diffusion_jax.pipelines.request import Batch, Helpers


def test_options_are_made_of_groups():
    options = Options(Measure(blur=2.0), Features("runs/judge"), Batch(num=100), changes={"steps": 5}, swept="steps")
    assert options == measuring(blur=2.0, features="runs/judge", num=100, changes={"steps": 5}, swept="steps")


@pytest.mark.parametrize(("name", "value", "says"), [
    ("blur", -1.0, "blur is 0 ... 100, got -1.0"), ("blur", 1e9, "blur is 0 ... 100"), ("blur", 101, "blur is 0 ... 100"),
    ("blur", float("nan"), "blur is .*not finite"), ("blur", float("inf"), "blur is .*not finite"),
    ("num", 1.7, "num is a whole number, got 1.7"), ("num", float("nan"), "num is"), ("num", -3, "num is 1 ... "),
    ("num", 10**12, "num is 1 ... 10000000, got"), ("batch", 0, "batch is 1 ... "), ("batch", 2.5, "batch is a whole number"),
    ("seed", -1, "seed is"), ("seed", 2**32, "seed is"), ("candidates", 1.5, "candidates is a whole number"),
    ("rounding", "up", "unknown rounding 'up'"),
])
def test_numbers_out_of_bounds_are_refused_before_anything_is_allocated(name, value, says):
    with pytest.raises(ConfigError, match=says):
        measuring(**{name: value})


def test_numbers_in_bounds():
    options = measuring(blur=0.0, num=1, batch=10**7, seed=2**32 - 1, rounding="down")
    assert (options.measure.blur, options.batch.num, options.size, options.measure.rounding) == (0, 1, 10**7, "down")


def test_what_nobody_says_has_a_value():
    assert (Options().size, Options().seed) == (BATCH, SEED)
    options = Options(batch=Batch(seed=0, batch=7))
    assert (options.size, options.seed) == (7, 0)


def test_what_was_set_is_known_by_its_flags():
    assert Options().flags == Options(swept="guidance").flags == {}
    options = Options(batch=Batch(seed=0), helpers=Helpers(upsampler=("x",)), changes={"steps": 5, "guidance": 1.0})
    assert options.flags == {"seed": 0, "upsampler": ("x",), "steps": 5, "guidance": 1.0}


def test_every_option_belongs_to_a_metric():
    looked_at = {flag for metric in METRICS.values() for flag in metric.takes} | set(RUN) | {"images"}
    names = {leaf.name for group in (Measure, Features, Batch, Helpers) for leaf in fields(group)}
    assert names | set(OF_SAMPLES) == looked_at


def test_a_page_says_what_its_run_measures():
    section = dict(num=20, guidance=2.0, features="stub", resize="", every=5)
    assert of_page({"evaluate": section}, 7) == Options(features=Features("stub"), batch=Batch(num=7))
    section = dict(reference="data.npz", features="x", resize="clean_fid")
    assert of_page({"evaluate": section}, 7) == Options(Measure(reference="data.npz"), Features("x", "clean_fid"), Batch(num=7))
