"""Mode `train`: what a run leaves, that it goes on, what it measures of itself, and which pages it refuses first."""
import json
import math
import shutil

import numpy as np
import pytest
from pages import ROOT, ask, files, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import features
from diffusion_jax.train.checkpoint import available

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
    assert report.keys() == {"samples", "sampler", "steps", "guidance", *SHARES, "novelty[pixels]", "variance[pixels] by class"}
    assert (report["samples"], report["sampler"], report["steps"], report["guidance"]) == (20, "ddim", 5, 1.0)
    assert report[SHARES[1]] > 0.95 and 0 <= report[SHARES[0]] <= 1      # the SVC knows digits; a network of 4 steps does not
    assert report["novelty[pixels]"] > 1
    assert list(report["variance[pixels] by class"]) == list("0123456789")


def test_the_same_command_again_changes_nothing(tiny_run, tmp_path, capsys):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    ask("train", copy, config=page("digits"))
    assert lines(copy) == lines(tiny_run) and available(copy) == [2, 4]
    assert (copy / "report.json").read_bytes() == (tiny_run / "report.json").read_bytes()
    assert "resuming from step 4" in capsys.readouterr().out


def test_a_run_can_be_made_longer(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    ask("train", copy, config=page("digits", steps=6, evaluate=dict(num=0, guidance=1.0)))
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
        (("sample.every", 0), "config.sample.every is a number, at least 1: got 0"),
        (("sample.num",), "config.sample.num is a number, at least 1: got None"),
        (("log_every", 0), "config.log_every"),
        (("steps", 2.5), "config.steps"),
        (("workers", -1), "config.workers is a number of processes, 0 for none: got -1"),
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
        (("task.scale.name", "os:system"), "symbols of this package only"),
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


def test_a_task_without_labels_cannot_be_measured_and_says_so_before_it_trains(tmp_path):
    config = changed("task.cond", dict(name="diffusion_jax.models.cond:Nothing"))
    config["task"]["drop"] = {}
    with pytest.raises(ConfigError, match="set evaluate.num to 0"):
        ask("train", tmp_path / "run", config=config)


def test_a_run_measures_itself_while_it_trains(stub, tmp_path):
    config = page("digits", evaluate=dict(num=0, guidance=1.0, features="stub", every=2, samples=20))
    ask("train", tmp_path, config=config)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "FID[stub]" in line] == [2, 4]
    assert (tmp_path / "checkpoints").exists() and not (ROOT / features.FOLDER).exists()


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
