"""Mode `train`: what a run leaves, that it goes on, what it measures of itself, and which pages it refuses first."""
import functools
import json
import math
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pages import ROOT, ask, files, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data import loader
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import features
from diffusion_jax.evaluation.report import Gallery, Measured
from diffusion_jax.modes import train
from diffusion_jax.runs import held_out
from diffusion_jax.runs.broken import NOTES
from diffusion_jax.runs.folder import Model, Run, open_run
from diffusion_jax.train import trackers
from diffusion_jax.train.checkpoint import available, digest_of
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.log import Writer
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import TrainState

SHARES = ("accuracy[pixel SVC]", "accuracy[pixel SVC] of held-out images")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_metrics_checkpoints_a_grid_and_a_report(tiny_run):
    assert [line["step"] for line in lines(tiny_run)] == [1, 2, 3, 4]
    for line in lines(tiny_run):
        assert {"loss", "mse", "lr", "grad_norm", "update_norm", "param_norm"} <= line.keys()
        assert all(map(math.isfinite, line.values()))
    assert 0.3 < lines(tiny_run)[0]["loss"] < 3                            # a zero network's, of v: about the data's variance + 1
    assert available(tiny_run) == [2, 4]
    assert [path.name for path in (tiny_run / "samples").iterdir()] == ["00000004.png"]
    with Image.open(tiny_run / "samples" / "00000004.png") as grid:
        assert (grid.size, grid.mode) == ((5 * 10 - 2, 4 * 10 - 2), "L")     # 20 images of 8x8, lines of 2 between
    assert list((tiny_run / "tensorboard").iterdir())


def test_the_report_holds_the_documented_figures(tiny_run):
    report = json.loads((tiny_run / "report.json").read_text())
    assert report.keys() == {"samples", "sampler", "steps", "guidance", *SHARES, "variance[pixels] by class",
                             "novelty[pixels]", "closer[pixels]", "copies[pixels]"}
    assert (report["samples"], report["sampler"], report["steps"], report["guidance"]) == (20, "ddim", 5, 1.0)
    assert report[SHARES[1]] > 0.95 and 0 <= report[SHARES[0]] <= 1      # the SVC knows digits; a network of 4 steps does not
    assert report["novelty[pixels]"] > 1
    assert list(report["variance[pixels] by class"]) == list("0123456789")


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(tiny_run, tmp_path, capsys):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    ask("train", copy, config=page("digits"))
    assert lines(copy) == lines(tiny_run) and available(copy) == [2, 4]
    assert (copy / "report.json").read_bytes() == (tiny_run / "report.json").read_bytes()
    assert "resuming from step 4" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_can_be_made_longer_and_a_tracker_gets_all_of_it(tiny_run, tmp_path, monkeypatch):
    copy, calls = shutil.copytree(tiny_run, tmp_path / "copy"), []

    class Tracker:
        def __init__(self, folder, config):
            calls.append(("begin", str(folder), config["steps"]))

        def __getattr__(self, name):
            return lambda *arguments: calls.append((name, *arguments))

    monkeypatch.setattr(trackers, "KINDS", {"json": Tracker})                 # by the name of a library that is there
    ask("train", copy, config=page("digits", steps=6, evaluate=dict(num=0, guidance=1.0)), track="json")
    assert calls[:2] == [("begin", str(copy), 6), ("resume", 4)] and calls[-1] == ("close",)
    rows = [{"step": step, **values} for name, step, values in calls[2:-1] if name == "scalars"]
    assert rows == lines(copy)
    assert [(step, set(images)) for name, step, images in calls[2:-1] if name == "images"] == [(6, {"samples"})]
    assert [line["step"] for line in lines(copy)] == [1, 2, 3, 4, 5, 6]
    assert lines(copy)[:4] == lines(tiny_run) and available(copy) == [2, 4, 6]
    assert sorted(path.name for path in (copy / "samples").iterdir()) == ["00000004.png", "00000006.png"]


def changed(path, value=...):
    """The page as plain data with one key set, or taken away."""
    config = page("digits").to_dict()
    *sections, key = path.split(".")
    place = config
    for section in sections:
        place = place[section]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return config


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("modle", 1), "unknown config key 'modle': did you mean 'model'"),
        (("optim",), "lacks 'optim'"),
        (("mesh.tenser", 1), "unknown config key 'mesh.tenser': did you mean 'mesh.tensor'"),
        (("checkpoint.keeep", 3), "did you mean 'checkpoint.keep'"),
        (("evaluate.guidence", 1.0), "did you mean 'evaluate.guidance'"),
        (("evaluate.guidance",), "lacks 'evaluate.guidance'"),
        (("data.valid", {}), "unknown config key 'data.valid'"),
        (("data.test",), "lacks 'data.test'"),
        (("sample.smapler", "ddim"), "did you mean 'sampler'"),
        (("sample.sampler", "ddmi"), "did you mean 'ddim'"),
        (("sample.sampler", "edm,s_chrun=3"), "did you mean 's_churn'"),
        (("sample.times", "karas"), "did you mean 'karras'"),
        (("sample.every", 0), "config.sample.every is 1 ... 2147483647, got 0"),
        (("sample.num",), "lacks 'sample.num'"),
        (("log_every", 0), "config.log_every"),
        (("steps", 2.5), "config.steps"),
        (("workers", -1), "config.workers is 0 ... 1024, got -1"),
        (("batch", 20), "batch 20 is no multiple of accumulate 1 x 8 devices"),
        (("accumulate", 3), "no multiple of accumulate 3"),
        (("mesh.data", 3), "exactly 8 devices"),
        (("model.dpeth", 3), "did you mean 'depth'"),
        (("task.cond.num_classes", 7), "the data has 10 classes, the model 7"),
        (("task.shape", (16, 16, 1)), "task.shape"),
        (("data.decode.channels", 3), "task.shape"),
        (("data.train.split", "tarin"), "did you mean 'train'"),
        (("optim.method", "adamm"), "did you mean 'adam'"),
        (("ema.ema.decay", 2.0), "decay"),
        (("evaluate.num", 9), "9 samples do not cover the 10 classes"),
        (("sharding", (("no such parameter", "fsdp"), (".*", "replicate"))), "decides nothing"),
        (("task.scale.name", "os:system"), "'os:system' is of Python itself, of which configs name nothing"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_page_that_cannot_be_trained_is_refused_before_anything_is_written(tmp_path, change, says):
    with pytest.raises(ConfigError, match=says) as error:
        ask("train", tmp_path / "run", config=changed(*change))
    assert "\n" not in str(error.value)
    assert not files(tmp_path)


def test_training_takes_no_options_of_sampling(tmp_path):
    with pytest.raises(ConfigError, match="--steps belongs to modes edit, .*: what a run is, its page says"):
        ask("train", tmp_path, config=page("digits"), steps="100")


def test_data_must_hold_what_the_model_is_conditioned_on(tmp_path):
    for i in range(16):
        save_png(tmp_path / "images" / f"{i}.png", np.full((8, 8, 1), i, np.uint8))
    config = changed("data.train", dict(name="diffusion_jax.data.folder:Folder", path=str(tmp_path / "images")))
    with pytest.raises(ConfigError, match="condition needs 'label', but Folder.* has only: image"):
        ask("train", tmp_path / "run", config=config)


def test_a_run_measures_itself_while_it_trains(stub, tmp_path):
    config = page("digits", evaluate=dict(num=0, guidance=1.0, features="stub", every=2, samples=20))
    ask("train", tmp_path, config=config)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "FID[stub]" in line] == [2, 4]
    assert (tmp_path / "checkpoints").exists() and not (ROOT / features.FOLDER).exists()


def test_copies_are_said_once_while_a_run_trains(monkeypatch, tmp_path, capsys):
    pairs = np.zeros((1, 2, 8, 8, 1), np.uint8)
    copied = Measured({"closer[pixels]": 0.9, "warnings": ["too close (closer[pixels] 0.90)"]}, Gallery(pairs=pairs))
    monkeypatch.setattr(train.metrics, "measured", lambda run, options, training: copied)
    config = plain(page("digits"))
    run = Run(str(tmp_path), 0, "params", config, Model(params={}, first=None, task=task_of(config)))
    with Writer(tmp_path) as writer:
        for step in (2, 4):
            train.measure(train.Watch(run, None, {}, writer), step, TrainState(step, {}, {}, {}))
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(said) == 1 and "step 2: too close" in said[0] and "samples/00000002_nearest.png" in said[0]
    assert lines(tmp_path) == [{"step": step, "closer[pixels]": 0.9} for step in (2, 4)]
    assert len(list((tmp_path / "samples").iterdir())) == 2


@pytest.mark.parametrize(("name", "change", "says"), [
    ("digits", dict(num=0, every=2, samples=5), "5 samples do not cover the 10 classes"),
    ("digits", dict(num=20, features="stub", reference="missing.npz"), "missing.npz: no such file"),
    ("digits_dvae", dict(num=20), "no metric of a discrete VAE: set evaluate.num"),
])
def test_what_a_run_cannot_measure_is_said_before_it_starts(stub, tmp_path, name, change, says):
    section = change if name == "digits_dvae" else dict(guidance=1.0) | change
    with pytest.raises(ConfigError, match=says):
        ask("train", tmp_path / "run", config=page(name, evaluate=section))
    assert not (tmp_path / "run").exists()


# One writer, its data, its end ----------------------------------------------------------------------------------------------


def small(**changes):
    """Two steps of a small network, nothing sampled or measured."""
    config = page("digits", steps=2).to_dict()
    config["model"].update(width=16)
    config["task"]["cond"].update(width=16)
    config["sample"]["every"], config["evaluate"] = 1000, dict(num=0, guidance=1.0)
    for path, value in changes.items():
        *sections, key = path.split("__")
        functools.reduce(lambda place, name: place.setdefault(name, {}), sections, config)[key] = value
    return config


def test_a_second_trainer_is_refused_and_writes_nothing(tmp_path):
    with one_writer(tmp_path / "run", "trained"):
        before = files(tmp_path)
        says = f"being trained by process {os.getpid()} on .* since"
        with ThreadPoolExecutor(1) as other, pytest.raises(ConfigError, match=says):
            other.submit(ask, "train", tmp_path / "run", config=small()).result()
        assert files(tmp_path) == before


@pytest.mark.parametrize(("change", "says"), [
    (dict(init="nowhere"), "there is no folder .*nowhere"), (dict(first_stage="nowhere"), "there is no folder .*nowhere"),
    (dict(optim__schedule="cosin"), "did you mean 'cosine'"), (dict(snapshots=dict(every=1)), "snapshots are of power averages"),
    (dict(ema__ema__name="diffusion_jax.train.ema:Powerr"), "did you mean 'Power'"),
    (dict(checkpoint__keep_every=3), "keep_every"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_refused_start_leaves_nothing_at_all(tmp_path, change, says):
    with pytest.raises(ConfigError, match=says):
        ask("train", tmp_path / "run", config=small(**change))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def images(tmp_path):
    for name in ("cat", "dog", "emu"):
        for i in range(6):
            save_png(tmp_path / "images" / name / f"{i}.png", np.full((8, 8, 1), 40 * i, np.uint8))
    return tmp_path / "images"


def test_a_run_that_was_trained_on_other_data_is_refused(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    for meta in copy.glob("checkpoints/*/meta/metadata"):
        stored = json.loads(meta.read_text())
        stored["data"]["records"] = 18
        meta.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="trained on other data .18 records then, .*--config.data.changed=True"):
        train.checked(page("digits").to_dict(), copy)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_data_only_unless_that_is_meant(images, tmp_path):
    config, run = small(data__train=dict(name="diffusion_jax.data.folder:Folder", path=str(images))), tmp_path / "run"
    ask("train", run, config=config)
    before = files(run)
    train.checked(config | dict(steps=3), run)                                 # nothing happened to them
    (images / "cat").rename(images / "zebra")                                  # all labels shift
    notes = before.pop(NOTES)
    with pytest.raises(ConfigError, match="trained on other data .3 classes then, 3 now; without 'cat'; new: 'zebra'.: .*"
                                          "--config.data.changed=True") as error:
        ask("train", run, config=config | dict(steps=4))
    after = files(run)
    assert "\n" not in str(error.value) and after.pop(NOTES) != notes and after == before
    start = train.checked(config | dict(steps=4, data=config["data"] | dict(changed=True)), run)
    assert start.data["classes"] == ["dog", "emu", "zebra"]                    # from here on these are its data
    assert "changed" not in start.run.config["data"] and start.initial is None
    (images / "dog" / "3.png").unlink()
    with pytest.raises(ConfigError, match="18 records then, 17 now"):
        train.checked(config, run)
    with pytest.raises(ConfigError, match="another config .*seed"):            # which is the graver of two
        train.checked(config | dict(seed=9), run)
    meta = next(run.glob("checkpoints/*/meta/metadata"))                       # of an older version: it has no fingerprint
    stored = json.loads(meta.read_text())
    assert stored.pop("data")["records"] == 18
    meta.write_text(json.dumps(stored))
    assert train.checked(config, run).data["records"] == 17


def test_broken_files_stop_a_run_or_are_left_out_of_it_and_of_what_measures_it(images, tmp_path, capsys):
    folder, run = dict(name="diffusion_jax.data.folder:Folder", path=str(images), holdout=0.3), tmp_path / "run"
    config = small(data__train=folder | dict(split="train"), data__test=folder | dict(split="test"), batch=8)
    for name in ("cat/0.png", "dog/2.png"):                                    # the first of all, too
        (images / name).write_bytes(b"text")
    del config["task"]["cond"]["num_classes"], config["task"]["shape"]         # so that they are those of the pictures
    with pytest.raises(ConfigError, match="2 of 18 pictures cannot be read: .*cat/0.png: .*dog/2.png: .*config.data.broken=skip"):
        ask("train", run, config=config)
    with pytest.raises(ConfigError, match="unknown config.data.broken 'skpi': did you mean 'skip'"):
        ask("train", run, config=config | dict(data=config["data"] | dict(broken="skpi")))
    config["data"]["broken"] = "skip"
    start = train.checked(config, run)
    assert "2 of 18 pictures cannot be read" in capsys.readouterr().out
    stored = start.run.config["data"]
    assert stored["train"]["without"] == stored["test"]["without"] == ["cat/0.png", "dog/2.png"] and "broken" not in stored
    test = held_out.pictures(stored, "test")[0]
    assert start.data["records"] + len(test) == 16 and start.data["records"] == len(start.batches.source) and len(test)


@pytest.mark.slow
def test_a_run_that_leaves_files_out_goes_on_bit_for_bit(images, tmp_path):
    folder = dict(name="diffusion_jax.data.folder:Folder", path=str(images), split="train", holdout=0.3)
    config = small(data__train=folder, data__test=folder | dict(split="test"), data__broken="skip", batch=8, checkpoint__every=2)
    (images / "cat" / "0.png").write_bytes(b"text")
    ask("train", tmp_path / "whole", config=config | dict(steps=4))
    ask("train", tmp_path / "parts", config=config)
    (tmp_path / "parts" / NOTES).unlink()                                      # which the next start makes again
    ask("train", tmp_path / "parts", config=config | dict(steps=4))
    whole, parts = ((digest_of(tmp_path / name), [row["loss"] for row in lines(tmp_path / name)]) for name in ("whole", "parts"))
    assert whole == parts
    assert open_run(tmp_path / "parts").class_names == ("cat", "dog", "emu")
    shutil.rmtree(images)
    assert open_run(tmp_path / "parts").class_names == ("cat", "dog", "emu")


def fails(*_, **__):
    raise OSError(28, "No space left on device")


POWER = dict(name="diffusion_jax.train.ema:Power", std=0.1)
PLACES = {
    "grid": ("diffusion_jax.data.pictures.save_png", dict(sample__every=1)),
    "measure": ("diffusion_jax.evaluation.metrics.measured", dict(evaluate=dict(num=0, guidance=1.0, every=1, samples=20))),
    "snapshot": ("diffusion_jax.train.posthoc.Snapshots.offer", dict(snapshots=dict(every=1), ema=dict(ema=POWER))),
    "writer": ("diffusion_jax.train.log.Writer.scalars", {}),
    "data": ("diffusion_jax.data.loader._stack", {}),
    "save": ("diffusion_jax.train.checkpoint.Checkpoints.save", {}),
    "final evaluation": ("diffusion_jax.evaluation.report.write", dict(evaluate=dict(num=20, guidance=1.0))),
}


@pytest.mark.parametrize("place", [
    pytest.param(place, marks=() if place == "data" else pytest.mark.slow) for place in PLACES])
@pytest.mark.slow
def test_an_error_anywhere_ends_the_run_with_everything_closed(tmp_path, monkeypatch, place):
    what, changes = PLACES[place]
    monkeypatch.setattr(loader, "RETRIES", ())
    monkeypatch.setattr(what, fails)
    threads = set(threading.enumerate())
    with pytest.raises((ConfigError, OSError), match="No space left"):
        ask("train", tmp_path / "run", config=small(**changes))
    left = [thread for thread in set(threading.enumerate()) - threads if not thread.daemon]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]
    monkeypatch.undo()
    if place != "final evaluation":
        ask("train", tmp_path / "run", config=small(**changes | dict(evaluate=dict(num=0, guidance=1.0), sample__every=1000)))
        assert available(tmp_path / "run")[-1] == 2                            # nobody holds it, and it goes on
