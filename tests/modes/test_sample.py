"""Mode `sample` on the digits: what it writes, of which weights, and that the folder alone is enough."""
import shutil

import jax
import numpy as np
import pytest
from pages import ask, files, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import grid
from diffusion_jax.pipelines import stream
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain


def npz(folder, out, **options):
    ask("sample", folder, **{"out": str(out), "num": 12} | options)
    with np.load(out) as found:
        return dict(found)


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


@pytest.mark.slow
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


@pytest.mark.parametrize(("step", "which"), [
    (2, "params"), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((2, "ema"), (4, "ema"), (4, "params")))])
def test_samples_are_of_the_weights_asked_for(tiny_run, tmp_path, monkeypatch, which, step):
    seen = []
    blank = np.zeros((12, 8, 8, 1))
    monkeypatch.setattr(stream, "generate", lambda model, *_: seen.append(model.params) or iter([blank]))
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


@pytest.mark.slow
def test_a_weaker_model_guides(tiny_run, tmp_path):
    """Away from itself nothing changes; away from an earlier checkpoint something does; interval and scale act on it."""
    def made(**options):
        ask("sample", tiny_run, out=str(tmp_path / "x.npz"), num=4, steps="3", **options)
        return np.load(tmp_path / "x.npz")["arr_0"].astype(int)

    plain = made()
    assert np.abs(made(weak=str(tiny_run), guidance=3.0) - plain).max() <= 1
    early = made(weak=str(tiny_run), weak_step=2, guidance=300.0)
    assert np.abs(early - plain).max() > 1
    assert np.abs(made(weak=str(tiny_run), weak_step=2, guidance=300.0, interval="1e3,1e4") - plain).max() <= 1
    with pytest.raises(ConfigError, match="give that too"):
        made(weak_step=2)
