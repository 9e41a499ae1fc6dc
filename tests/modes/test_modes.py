"""train, sample and evaluate on the digits: what they write, and that the folder alone is enough."""
import json
import math
import shutil

import jax
import numpy as np
import pytest
from pages import ask, files, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import grid, save_png
from diffusion_jax.evaluation import metrics
from diffusion_jax.pipelines import sampling
from diffusion_jax.runs import held_out
from diffusion_jax.train.checkpoint import available, load
from diffusion_jax.train.state import plain

SHARES = ("accuracy[pixel SVC]", "accuracy[pixel SVC] of held-out images")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def npz(folder, out, **options):
    ask("sample", folder, **{"out": str(out), "num": 12} | options)
    with np.load(out) as found:
        return dict(found)


# train ----------------------------------------------------------------------------------------------------------------------


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


# sample ---------------------------------------------------------------------------------------------------------------------


def test_npz_holds_what_an_evaluator_takes(tiny_run, tmp_path):
    found = npz(tiny_run, tmp_path / "new" / "x.npz")
    assert found.keys() == {"arr_0", "arr_1", "meta"}
    assert found["arr_0"].shape == (12, 8, 8, 1) and found["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(found["arr_1"], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    assert found["arr_0"].std() > 10
    np.testing.assert_array_equal(npz(tiny_run, tmp_path / "3.npz", label=3)["arr_1"], [3] * 12)


def test_folder_and_grid_hold_the_images_of_the_npz(tiny_run, tmp_path, capsys):
    images = npz(tiny_run, tmp_path / "x.npz")["arr_0"]
    ask("sample", tiny_run, out=f"{tmp_path}/many/", num=12)
    names = sorted(path.name for path in (tmp_path / "many").glob("*.png"))
    assert names == [f"{i:06d}_{i % 10}.png" for i in range(12)]
    np.testing.assert_array_equal([np.asarray(Image.open(tmp_path / "many" / name)) for name in names], images[..., 0])
    ask("sample", tiny_run, out=str(tmp_path / "grid.png"), num=12)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid(images)[..., 0])
    assert f"12 samples: {tmp_path / 'grid.png'}" in capsys.readouterr().out


def test_a_grid_in_the_run_is_the_default(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    ask("sample", copy, num=12)
    with Image.open(copy / "samples.png") as grid:
        assert grid.size == (4 * 10 - 2, 3 * 10 - 2)


def test_samples_are_a_function_of_the_seed(tiny_run, tmp_path):
    first = npz(tiny_run, tmp_path / "a.npz")["arr_0"]
    np.testing.assert_array_equal(npz(tiny_run, tmp_path / "b.npz", seed=0)["arr_0"], first)
    assert (npz(tiny_run, tmp_path / "c.npz", seed=1)["arr_0"] != first).mean() > 0.5
    smaller = npz(tiny_run, tmp_path / "d.npz", batch=5)["arr_0"]
    assert np.abs(smaller.astype(int) - first.astype(int)).max() <= 1


def test_the_recipe_comes_from_the_checkpoint_unless_asked_otherwise(tiny_run, tmp_path):
    options = ({}, dict(steps="4"), dict(sampler="heun"), dict(sampler="ancestral"))
    made = [npz(tiny_run, tmp_path / "x.npz", **asked)["arr_0"].tobytes() for asked in options]
    assert len(set(made)) == 4
    assert npz(tiny_run, tmp_path / "x.npz", sampler="ddim", steps="5", times="uniform")["arr_0"].tobytes() == made[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(which="emma"), "did you mean 'ema'"),
        (dict(step=3), "no checkpoint of step 3; it has: 2, 4"),
        (dict(label=10), "label 10 is outside 0 ... 9"),
        (dict(sampler="ddmi"), "did you mean 'ddim'"),
        (dict(cads="tau3=1"), "did you mean 'tau"),
        (dict(guidence=3.0), "did you mean 'guidance'"),
        (dict(sampler="plms", steps="1"), "at least 2 steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_of_sampling_are_refused(tiny_run, tmp_path, options, says):
    before = files(tiny_run)
    with pytest.raises(ConfigError, match=says):
        npz(tiny_run, tmp_path / "x.npz", **options)
    assert files(tiny_run) == before and not files(tmp_path)


@pytest.mark.parametrize("which", ["ema", "params"])
@pytest.mark.parametrize("step", [2, 4])
def test_samples_are_of_the_weights_asked_for(tiny_run, tmp_path, monkeypatch, which, step):
    seen = []
    blank = np.zeros((12, 8, 8, 1))
    monkeypatch.setattr(sampling, "generate", lambda model, *_: seen.append(model.params) or iter([blank]))
    npz(tiny_run, tmp_path / "x.npz", which=which, step=step)
    want = load(tiny_run, which, step)[2]
    jax.tree.map(np.testing.assert_array_equal, seen[0], want)
    others = [load(tiny_run, *other)[2]["model"]["final"] for other in (("ema", 2), ("params", 2), ("ema", 4), ("params", 4))]
    assert len({np.asarray(final["linear"]["kernel"]).tobytes() for final in others}) == 4


def test_the_folder_alone_is_enough(tiny_run, tmp_path, monkeypatch):
    first = npz(tiny_run, tmp_path / "x.npz")["arr_0"]
    shutil.copytree(tiny_run / "checkpoints" / "4", tmp_path / "elsewhere" / "renamed" / "4")      # nothing but one checkpoint
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(npz("renamed", "y.npz")["arr_0"], first)
    config, task, params = load("renamed")
    assert plain(config) == plain(page("digits"))
    assert task.shape == (8, 8, 1) and params.keys() == {"model", "cond"}


@pytest.mark.parametrize("out", ["x.jpg", "x", "x.npy", ".npz.gz"])
def test_what_cannot_be_written_is_refused_first(tmp_path, out):
    with pytest.raises(ConfigError, match="end it in .png"):
        ask("sample", tmp_path / "not even a run", out=out)


def test_samples_that_are_not_finite_are_not_written_as_black_ones(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="not finite"):
        npz(tiny_run, tmp_path / "x.npz", temperature=float("nan"))
    assert not files(tmp_path)


# evaluate -------------------------------------------------------------------------------------------------------------------


def test_evaluate_repeats_the_report_and_takes_options(tiny_run, tmp_path, capsys):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    (copy / "report.json").unlink()
    ask("evaluate", copy)
    assert (copy / "report.json").read_bytes() == (tiny_run / "report.json").read_bytes()
    ask("evaluate", copy, num=30, guidance=4.0)
    report = json.loads((copy / "report.json").read_text())
    assert (report["samples"], report["guidance"]) == (30, 4.0)
    printed = capsys.readouterr().out
    assert all(name in printed for name in SHARES) and f"report: {copy / 'report.json'}" in printed


def test_evaluate_needs_an_image_of_each_class(tiny_run):
    before = (tiny_run / "report.json").read_bytes()
    with pytest.raises(ConfigError, match="5 samples do not cover the 10 classes of the data: raise num"):
        ask("evaluate", tiny_run, num=5)
    assert (tiny_run / "report.json").read_bytes() == before


def test_measures_of_the_data_itself_are_those_of_perfect_samples():
    data = page("digits").to_dict()["data"]
    whole, test = (held_out.pictures(data, split) for split in ("train", "test"))
    report = metrics.of_pixels(*test, whole, test)
    assert report[SHARES[0]] == report[SHARES[1]] > 0.97
    assert report["novelty[pixels]"] == pytest.approx(1)
    assert all(0.7 < ratio < 1.4 for ratio in report["variance[pixels] by class"].values())
    assert metrics.of_pixels(*whole, whole, test)["novelty[pixels]"] == 0   # copies
