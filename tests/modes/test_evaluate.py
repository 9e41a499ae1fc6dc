"""Modes `evaluate` and `reference` on the command line, and what a run measures of itself while it trains."""
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from pages import ROOT, ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import features
from diffusion_jax.metrics.extract import Network
from diffusion_jax.modes import evaluate
from diffusion_jax.modes.options import built

WEIGHTS = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
QUICK = dict(features="stub", num=40, steps="2", batch=16)


def see(params, images):
    flat = images.reshape(len(images), -1) / 255
    return {"features": flat @ params, "spatial": flat[:, 10:13], "logits": jnp.tanh(flat @ params)}


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """A cheap network in place of the published ones."""
    original = features.network_of
    monkeypatch.setattr(features, "network_of", lambda where, resize=None: Network("stub", see, WEIGHTS) if where == "stub"
                        else original(where, resize))


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, to write reports to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Folders of classes, and an .npz, of the first digits."""
    root, source = tmp_path_factory.mktemp("digits"), Digits("test")
    records = [source[i] for i in range(60)]
    for i, record in enumerate(records):
        save_png(root / "folder" / str(record["label"]) / f"{i:03d}.png", record["image"])
    np.savez(root / "digits.npz", arr_0=np.stack([record["image"] for record in records]),
             arr_1=np.array([record["label"] for record in records]))
    return root


def measured(folder, **leaves):
    return evaluate.measured(built(evaluate.Options, leaves), str(folder)).figures


def flags(**options):
    return [f"--{name}={value}" for name, value in options.items()]


def test_samples_are_measured_against_the_training_data(run, cli):
    done = cli("--workdir", run, "--mode", "evaluate", *flags(**QUICK))
    assert done.code == 0 and "FID[stub]" in done.out and "sFID[stub]" in done.out and "report.html" in done.out
    report = json.loads((run / "report.json").read_text())
    assert report["reference"] == "train data" and len(report["classes"]) == 10 and "warnings" not in report
    page = (run / "report.html").read_text()
    for part in ("FID[stub]", "Samples", "Nearest images of the reference", "Classes", "Training", "data:image/png;base64"):
        assert part in page
    assert measured(run, **QUICK) == report


def test_a_flag_that_changes_nothing_is_refused(tiny_run, digits, cli):
    def error(*arguments):
        done = cli("--workdir", tiny_run, "--mode", "evaluate", *arguments)
        assert done.code == 2
        return done.err

    assert "--guidance is for samples: this metric makes none" in error("--metric=bpd", "--guidance=2")
    assert "--blur is for metric features, not for pixels" in error("--blur=1", "--num=20")
    assert "needs both --rerank" in error(*flags(**QUICK), "--candidates=2")
    batch = f"--images={digits / 'digits.npz'}"
    assert "--guidance is for samples: --images are measured" in error(batch, "--features=stub", "--guidance=2")
    assert "--which and --step are of a run's weights" in error(batch, "--features=stub", "--step=2")


def test_images_are_measured_against_statistics(digits, tmp_path):
    ask("reference", tmp_path, features="stub", images=str(digits / "folder"), batch=16)
    figures = measured(tmp_path, features="stub", images=str(digits / "digits.npz"), reference=str(tmp_path / "reference.npz"))
    assert abs(figures["FID[stub]"]) < 1e-6 and abs(figures["sFID[stub]"]) < 1e-6 and figures["samples"] == 60
    assert "coverage[stub]" not in figures


def test_a_reference_needs_images_and_a_place(tmp_path, digits):
    folder = str(digits / "folder")
    for options, says in ((dict(), "needs images"), (dict(images=folder, out="x.png"), "end it in .npz"),
                          (dict(images=folder, config=page("digits")), "leave one out"),
                          (dict(images=folder, seed=1), "--seed belongs to")):
        with pytest.raises(ConfigError, match=says):
            ask("reference", tmp_path, features="stub", **options)
    ask("reference", tmp_path, features="stub", config=page("digits"))
    with np.load(tmp_path / "reference.npz") as arrays:
        assert arrays["mu"].shape == (6,) and arrays["mu_s"].shape == (3,)
        assert arrays["images"] == 1500 and arrays["network"] == "stub"


def test_a_reference_of_files_that_changed_is_made_anew(tmp_path, digits):
    folder = shutil.copytree(digits / "folder", tmp_path / "folder")
    for count in (60, 59):
        ask("reference", tmp_path, features="stub", images=str(folder))
        with np.load(tmp_path / "reference.npz") as arrays:
            assert arrays["images"] == count
        next((folder / "3").iterdir()).unlink()


def test_a_run_measures_itself_while_it_trains(tmp_path):
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
def test_what_a_run_cannot_measure_is_said_before_it_starts(tmp_path, name, change, says):
    section = change if name == "digits_dvae" else dict(guidance=1.0) | change
    with pytest.raises(ConfigError, match=says):
        ask("train", tmp_path / "run", config=page(name, evaluate=section))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_features_of_a_classifier_measure_samples(tiny_run, tmp_path):
    ask("train", tmp_path / "cnn", config=page("digits_classifier"))
    figures = measured(tiny_run, metric="features", features=str(tmp_path / "cnn"), num=20, steps="2")
    names = [f"{name}[cnn]" for name in ("FID", "precision", "recall", "density", "coverage", "distance", "accuracy")]
    assert set(names) <= figures.keys() and figures["FID[cnn]"] > 0
    with pytest.raises(ConfigError, match="give the folder of a noisy classifier"):
        measured(tiny_run, metric="features", features=str(tiny_run), num=20, steps="2")
