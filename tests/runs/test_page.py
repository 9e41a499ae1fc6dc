"""What a run's page must hold."""
import copy
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from pages import page as page_of

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import Decode
from diffusion_jax.data.words import Bytes
from diffusion_jax.runs import page
from diffusion_jax.train.shard import make_mesh
from diffusion_jax.train.state import plain, task_of

DIGITS = plain(page_of("digits"))
NAN = float("nan")


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
    ("batch", 0, "config.batch is 1 ... 2147483647, got 0"),
    ("batch", "16", "config.batch is a whole number, got '16'"),
    ("sample.every", 0, "config.sample.every is 1 ... 2147483647, got 0"),
    ("evaluate.samples", -1, "config.evaluate.samples is 1 ... 2147483647, got -1"),
    ("workers", -1, "config.workers is 0 ... 1024, got -1"),
    ("loss_scale", 0, "config.loss_scale is a number above 0: got 0"),
    ("loss_scale", "1.0", "config.loss_scale is a number, got '1.0'"),
    ("loss_scale", NAN, "config.loss_scale is nan, which is not finite"),
    ("evaluate.guidance", NAN, "config.evaluate.guidance is nan, which is not finite"),
    ("evaluate.num", -1, "config.evaluate.num is 0 ... 2147483647, got -1"),
    ("steps", 2**31, "config.steps is 1 ... 2147483647, got 2147483648"),
    ("steps", 1e3, "config.steps is a whole number, got 1000.0"),
    ("batch", True, "config.batch is a whole number, got True"),
    ("batch", [16], "config.batch is a whole number"),
    ("sample.steps", 10**10, "config.sample.steps is 1 ... 1000000, got 10000000000"),
    ("checkpoint.keep", 0, "config.checkpoint.keep is 1 ... 2147483647, got 0"),
    ("mesh.data", 0.5, "config.mesh.data is a whole number, got 0.5"),
    ("seed", -1, "config.seed is 0 ... 4294967295, got -1"),
    ("seed", 2**32, "config.seed is 0 ... 4294967295, got 4294967296"),
    ("seed", 2**63, "config.seed is 0 ... 4294967295"),
    ("seed", 1.5, "config.seed is a whole number, got 1.5"),
    ("seed", True, "config.seed is a whole number, got True"),
    ("seed", "0", "config.seed is a whole number, got '0'"),
    ("gather", "stpe", "unknown config.gather 'stpe': did you mean 'step'"),
    ("snapshots", {"every": 2, "dtype": "float61"}, "unknown config.snapshots.dtype 'float61': did you mean 'float16'"),
    ("snapshots", {"every": 2, "averages": ["ema"]}, "unknown power average 'ema'"),
    ("snapshots", {}, "the config lacks 'snapshots.every'"),
    ("sharding", "replicate", "config.sharding is a list"),
    ("sharding", [["(", "replicate"]], "a rule of config.sharding is a pair .*unterminated"),
    ("sharding", [["a", "b", "c"]], "a rule of config.sharding is a pair"),
    ("sharding", [3], "a rule of config.sharding is a pair"),
    ("activations", {"a": 1}, "config.activations is a list"),
    ("data", 3, "config.data is a section"),
    ("checkpoint", 3, "config.checkpoint is a section"),
    ("sample", [], "config.sample is a section"),
    ("ema", [], "config.ema is a section"),
    ("first_stage", 3, "config.first_stage is a folder"),
    ("init", [1], "config.init is a folder"),
    ("ema.ema", 3, "config.ema.ema is one of the averages"),
    ("model", "DiT", "config.model is a section"),
    ("optim", DIGITS["model"], "config.optim is one of the optimisers"),
    ("data.train", {"name": "os:system"}, "of Python itself"),
    ("data.train", {"path": "x"}, "config.data.train is one of the data sets"),
    ("optim.schedule", "cosin", "unknown schedule 'cosin': did you mean 'cosine'"),
    ("optim.method", "adma", "unknown method of the optimizer 'adma'"),
    ("optim.lr", "fast", "lr of .*optimizer is a number, got 'fast'"),
    ("optim.lr", -1.0, "lr of .*optimizer is 0 ... 1000000.0, got -1.0"),
    ("optim.lr", NAN, "lr of .*optimizer is nan, which is not finite"),
    ("optim.warmup", -1, "warmup of .*optimizer is 0 ... 2147483647, got -1"),
    ("optim.steps", 1e3, "steps of .*optimizer is a whole number .*, got 1000.0"),
    ("optim.steps", 50, "leaves nothing after a warm-up of 100"),
    ("optim.clp", 1.0, "unknown option of .*optimizer 'clp': did you mean 'clip'"),
    ("ema.ema.decay", 1.0, "must lie in .0, 1., got 1.0"),
    ("ema.ema.std", 0.1, "unknown option of .*Constant 'std'"),
], ids=str)
def test_mistakes_in_a_page_are_one_line(path, value, says):
    with pytest.raises(ConfigError, match=says) as error:
        page.check(changed(path, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "says"), [
    ({"sharding": [[".*", "replicat"]]}, "unknown sharding 'replicat': did you mean 'replicate'"),
    ({"sharding": [["x", [None, "tensr"]], [".*", "fsdp"]]}, "unknown mesh axis 'tensr': did you mean 'tensor'"),
    ({"activations": [["attntion/q", ["data"]]]}, "activation rule 'attntion/q' decides nothing"),
    ({"activations": [["attention/q", ["dat"]]]}, "unknown mesh axis 'dat': did you mean 'data'"),
    ({"sharding": [["kernel$", [None, "tensor"]], [".*", "fsdp"]], "activations": [["attention/q", [["data", "fsdp"]]]]}, ""),
], ids=str)
def test_rules_are_checked_before_anything_compiles(changes, says):
    mesh = make_mesh(devices=jax.devices()[:4])
    if not says:
        return page.check_layout(DIGITS | changes, mesh)
    with pytest.raises(ConfigError, match=says):
        page.check_layout(DIGITS | changes, mesh)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_at_the_ends_of_their_range(seed):
    page.check(changed("seed", seed))


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

    def __len__(self):
        return 2

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


def test_labels_outside_the_classes_are_named():
    mesh = make_mesh(devices=jax.devices()[:4])
    for label in (-3, 10, 1000, 0.5, True):
        with pytest.raises(ConfigError, match=f"record 0 of a source: label {label} is none of the model's 10 classes"):
            page.fits(task_of(DIGITS), batches(Source(label=label)), mesh, 1)


def test_captions_that_are_cut_are_counted_and_said(capsys):
    mesh = make_mesh(devices=jax.devices()[:4])
    counted = "2 of 2 captions are longer than the 3 tokens that the model reads, the longest, record 0 of a source, has 5"
    with pytest.raises(ConfigError, match=f"^{counted}: .* truncate=True"):
        page.fits(task_of(DIGITS), reading(Bytes(3)), mesh, 1)
    page.fits(task_of(DIGITS), reading(Bytes(3, truncate=True)), mesh, 1)
    assert counted in capsys.readouterr().out
    page.fits(task_of(DIGITS), reading(Bytes(5)), mesh, 1)
    assert not capsys.readouterr().out


def reading(tokenizer):
    """Batches of two records of five letters."""
    decode = Decode(8, channels=1, tokenizer=tokenizer)
    return SimpleNamespace(source=Source(label=3, caption="abcde"), decode=decode, batch=16)


def test_a_tiny_page_is_four_steps_of_the_digits():
    assert (DIGITS["steps"], DIGITS["batch"], DIGITS["task"]["shape"]) == (4, 16, [8, 8, 1])
    assert DIGITS["data"]["train"]["name"] == "diffusion_jax.data.digits:Digits"
    made = page.batches_of(DIGITS, 0, 1)
    assert made.batch == 16 and len(made.source) == 1500
