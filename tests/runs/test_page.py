"""What a run's page must hold."""
import copy
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from pages import page as page_of

from diffusion_jax.build import ConfigError
from diffusion_jax.runs import page
from diffusion_jax.train.shard import make_mesh
from diffusion_jax.train.state import plain, task_of

DIGITS = plain(page_of("digits"))


def changed(path, value=None):
    """The tiny page of the digits with one entry changed, or taken out for None."""
    config = copy.deepcopy(DIGITS)
    *outer, last = path.split(".")
    section = config
    for name in outer:
        section = section[name]
    if value is None:
        section.pop(last)
    else:
        section[last] = value
    return config


@pytest.mark.parametrize(("path", "value", "says"), [
    ("stepz", 3, "unknown config key 'stepz': did you mean 'steps'"),
    ("checkpoint.evry", 3, "unknown config key 'checkpoint.evry': did you mean 'checkpoint.every'"),
    ("data.tets", {}, "did you mean 'data.test'"),
    ("evaluate.nmu", 3, "did you mean 'evaluate.num'"),
    ("mesh.dta", 3, "did you mean 'mesh.data'"),
    ("optim", None, "the config lacks 'optim' .the optimiser."),
    ("data.decode", None, "the config lacks 'data.decode'"),
    ("evaluate.guidance", None, "the config lacks 'evaluate.guidance'"),
    ("batch", 0, "config.batch is a number, at least 1: got 0"),
    ("batch", "16", "config.batch is a number, at least 1: got '16'"),
    ("sample.every", 0, "config.sample.every is a number, at least 1"),
    ("evaluate.samples", -1, "config.evaluate.samples is a number, at least 1"),
    ("workers", -1, "config.workers is a number of processes, 0 for none: got -1"),
    ("loss_scale", 0, "config.loss_scale is a number above 0: got 0"),
], ids=str)
def test_mistakes_in_a_page_are_one_line(path, value, says):
    with pytest.raises(ConfigError, match=says) as error:
        page.check(changed(path, value))
    assert "\n" not in str(error.value)


def test_what_may_be_left_out():
    page.check(DIGITS)
    for name in page.OPTIONAL:
        if name in DIGITS and name != "sample":
            page.check(changed(name))
    without = changed("sample")
    without["evaluate"].pop("guidance")
    page.check(without)                                                         # what makes no images needs no guidance
    page.check(changed("first_stage", "runs/x"))


def test_every_section_that_may_change_is_one():
    assert set(page.MAY_CHANGE) <= set(page.SECTIONS) and set(page.OPTIONAL) <= set(page.SECTIONS)
    assert not {"seed", "model", "task", "data", "batch", "optim", "ema"} & set(page.MAY_CHANGE)


def test_a_variant_that_a_page_has_not():
    page.variant("", "", "tiny")
    page.variant("tiny", "", "tiny")
    with pytest.raises(ConfigError, match="unknown variant of this page 'tinny': did you mean 'tiny'"):
        page.variant("tinny", "", "tiny")


def test_how_a_page_samples_is_a_recipe_without_how_often():
    assert page.recipe_fields({"sample": {"num": 9, "every": 3, "steps": 5, "guidance": 2.0}}) == {"steps": 5, "guidance": 2.0}
    assert page.recipe_fields({}) == {}


def test_data_that_holds_a_tokenizer_alone_is_none():
    assert page.data_of(DIGITS, "do this") == DIGITS["data"]
    for config in ({}, {"data": {"decode": {}}}):
        with pytest.raises(ConfigError, match="this model came without data: do this"):
            page.data_of(config, "do this")


class Source:
    """Two records."""

    def __init__(self, names=(), **record):
        self.names, self.record = names, record

    def __getitem__(self, i):
        return {"image": np.zeros((8, 8, 1), np.uint8), **self.record}

    def __str__(self):
        return "a source"


def batches(source, batch=16):
    return SimpleNamespace(source=source, decode=lambda record, rng: record, batch=batch)


@pytest.mark.parametrize(("source", "batch", "accumulate", "says"), [
    (Source(label=3), 16, 1, ""),
    (Source(label=3), 16, 2, ""),
    (Source(caption="a"), 16, 1, "the model's condition needs 'label', but a source has only: caption, image"),
    (Source(tuple("abcdefghijk"), label=3), 16, 1, "the data has 11 classes, the model 10: raise num_classes"),
    (Source(label=3), 15, 1, "batch 15 is no multiple of accumulate 1 x 4 devices: choose one"),
    (Source(label=3), 16, 3, "batch 16 is no multiple of accumulate 3 x 4 devices"),
], ids=str)
def test_data_model_and_devices_go_together(source, batch, accumulate, says):
    mesh = make_mesh(devices=jax.devices()[:4])
    if not says:
        return page.fits(task_of(DIGITS), batches(source, batch), mesh, accumulate)
    with pytest.raises(ConfigError, match=says):
        page.fits(task_of(DIGITS), batches(source, batch), mesh, accumulate)


def test_a_tiny_page_is_four_steps_of_the_digits():
    assert (DIGITS["steps"], DIGITS["batch"], DIGITS["task"]["shape"]) == (4, 16, [8, 8, 1])
    assert DIGITS["data"]["train"]["name"] == "diffusion_jax.data.digits:Digits"
    made = page.batches_of(DIGITS, 0, 1)
    assert made.batch == 16 and len(made.source) == 1500
