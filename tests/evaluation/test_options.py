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
    with pytest.raises(ConfigError, match="blur is 0 or more"):
        Measure(blur=-1.0)


def test_what_nobody_says_has_a_value():
    assert (Options().size, Options().seed) == (BATCH, SEED)
    options = Options(batch=Batch(seed=0, batch=7))
    assert (options.size, options.seed) == (7, 0)


def test_what_was_set_is_known_by_its_flags():
    assert Options().flags == Options(swept="guidance").flags == ()
    options = Options(batch=Batch(seed=0), helpers=Helpers(upsampler=("x",)), changes={"steps": 5, "guidance": 1.0})
    assert options.flags == ("seed", "upsampler", "steps", "guidance")


def test_every_option_belongs_to_a_metric():
    looked_at = {flag for metric in METRICS.values() for flag in metric.takes} | set(RUN) | {"images"}
    names = {leaf.name for group in (Measure, Features, Batch, Helpers) for leaf in fields(group)}
    assert names | set(OF_SAMPLES) == looked_at


def test_a_page_says_what_its_run_measures():
    section = dict(num=20, guidance=2.0, features="stub", resize="", every=5)
    assert of_page({"evaluate": section}, 7) == Options(features=Features("stub"), batch=Batch(num=7))
    section = dict(reference="data.npz", features="x", resize="clean_fid")
    assert of_page({"evaluate": section}, 7) == Options(Measure(reference="data.npz"), Features("x", "clean_fid"), Batch(num=7))
