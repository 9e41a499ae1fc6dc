"""What cannot be written is refused before the work, and what was written is not lost to the next command."""
import json

import numpy as np
import pytest
from pages import ask, page, without_data
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import compare, likelihood, metrics
from diffusion_jax.evaluation.likelihood import Likelihood
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.metrics import extract
from diffusion_jax.modes import encode, plan
from diffusion_jax.modes import likelihood as likelihood_mode
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pretrained import systems

FOLDER, FILE = "a folder", "a file"

pytestmark = pytest.mark.usefixtures("stub")


def block(root, name, kind):
    """Something else lies where a command writes to."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if kind == FOLDER else path.touch()


@pytest.fixture
def idle(monkeypatch):
    """No mode does any of its work."""
    def worked(*_, **__):
        pytest.fail("the work is done")

    monkeypatch.setattr(Pipeline, "start", worked)
    monkeypatch.setattr(extract, "_see", worked)
    monkeypatch.setattr(encode, "encoded", worked)
    monkeypatch.setattr(plan, "work_of", worked)
    monkeypatch.setattr(systems, "load", worked)
    monkeypatch.setattr(likelihood, "measured", worked)
    for name, metric in metrics.METRICS.items():
        monkeypatch.setitem(metrics.METRICS, name, metric._replace(measure=worked))


SAMPLES = [
    ("sample", dict(out="x.png"), "x.png", FOLDER), ("sample", dict(out="x.npz"), "x.npz", FOLDER),
    ("sample", dict(out="x/"), "x", FILE), ("sample", dict(out="x/y.png"), "x", FILE), ("sample", dict(out="x/y/z/"), "x", FILE),
    ("evaluate", dict(num=20), "run/report.json", FOLDER), ("evaluate", dict(num=20), "run/report.html", FOLDER),
    ("evaluate", dict(num=20), "run/reports", FILE),
    ("sweep", dict(over="guidance", values="1,2", num=20, out="x"), "x.csv", FOLDER),
    ("sweep", dict(over="guidance", values="1,2", num=20, out="x"), "x.png", FOLDER),
    ("sweep", dict(over="guidance", values="1,2", num=20, out="x/y"), "x", FILE),
]


@pytest.mark.parametrize(("mode", "options", "name", "kind"), SAMPLES)
def test_outputs_of_samples_are_tried_before_the_first_is_made(tiny_run, idle, tmp_path, monkeypatch, mode, options, name, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tiny_run / "checkpoints")
    block(tmp_path, name, kind)
    with pytest.raises(ConfigError, match="choose another"):
        ask(mode, "run", **options)


OTHERS = [
    ("reference", dict(features="stub", images="digits.npz", out="x.npz"), "x.npz", FOLDER),
    ("reference", dict(features="stub", images="digits.npz", out="x/y.npz"), "x", FILE),
    ("reference", dict(features="stub", images="digits.npz"), "run/reference.npz", FOLDER),
    ("reference", dict(features="stub", images="digits.npz"), "run/evaluate", FILE),
    ("evaluate", dict(features="stub", images="digits.npz", reference="digits.npz"), "run/report.json", FOLDER),
    ("evaluate", dict(features="stub", images="digits.npz", reference="digits.npz"), "run/evaluate", FILE),
    ("evaluate", dict(features="stub", images="digits.npz", reference="digits.npz"), "run", FILE),
    ("plan", dict(program="estimate"), "run", FILE),
    ("likelihood", dict(), "run/likelihood.json", FOLDER), ("likelihood", dict(), "run/reconstructions.png", FOLDER),
    ("likelihood", dict(), "run/reports", FILE),
    ("encode", dict(out="x"), "x", FILE), ("encode", dict(out="x/y"), "x", FILE),
    ("import_weights", dict(system="vae", source="x"), "run", FILE),
    ("export_weights", dict(to="original", out="x"), "x", FILE),
]


@pytest.mark.parametrize(("mode", "options", "name", "kind"), OTHERS)
def test_outputs_are_tried_before_the_work(digits, idle, tmp_path, monkeypatch, mode, options, name, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.npz").symlink_to(digits / "digits.npz")
    coder = without_data("digits_vae", tmp_path / "run", data=page("digits_vae").to_dict()["data"])
    for module in (likelihood_mode, encode):
        monkeypatch.setattr(module, "opened", lambda *_: coder)
    if mode == "plan":
        options = {"config": page("digits"), **options}
    block(tmp_path, name, kind)
    with pytest.raises(ConfigError, match="choose another"):
        ask(mode, "run", **options)


# What was there -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def white(monkeypatch):
    """Samples are white, and made at once: (how many so far)."""
    made = []

    def images(self, raw, total, *_):
        made.append(total)
        yield np.ones((total, 8, 8, 1), np.float32) - 0.01 * len(made)

    monkeypatch.setattr(Pipeline, "images", images)
    return made


def test_samples_without_a_name_have_the_next_free_one(tiny_run, white, tmp_path, capsys):
    (tmp_path / "checkpoints").symlink_to(tiny_run / "checkpoints")
    for name in ("samples.png", "samples-2.png", "samples-3.png"):
        ask("sample", tmp_path, num=2)
        assert f"2 samples: {tmp_path / name}" in capsys.readouterr().out
    assert len({np.asarray(Image.open(path)).mean() for path in tmp_path.glob("samples*.png")}) == 3


def test_a_name_is_written_over_and_a_folder_is_not(tiny_run, white, tmp_path):
    for count in (1, 2):
        ask("sample", tiny_run, num=count, out=str(tmp_path / "x.npz"))
        assert len(np.load(tmp_path / "x.npz")["arr_0"]) == count
    ask("sample", tiny_run, num=2, out=f"{tmp_path}/x/")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    made = len(white)
    with pytest.raises(ConfigError, match="holds 3 files of other pictures, 000000_0.png for example: choose another folder"):
        ask("sample", tiny_run, num=1, out=f"{tmp_path}/x/")
    assert len(white) == made and {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_samples_for_adms_evaluator_are_rounded_as_its_own(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "images", lambda *_: iter([np.full((1, 8, 8, 1), 0.5045, np.float32)]))    # 191.82
    for rounding, value in (("nearest", 192), ("down", 191)):
        ask("sample", tiny_run, num=1, out=str(tmp_path / f"{rounding}.npz"), rounding=rounding)
        assert np.load(tmp_path / f"{rounding}.npz")["arr_0"].max() == value
    with pytest.raises(ConfigError, match="--rounding is for pictures that no --rerank"):
        ask("sample", tiny_run, rerank="x", candidates=2, rounding="down")


def test_reports_of_other_options_stay(tiny_run, tmp_path, monkeypatch):
    """Under names that say which they are; report.json is the newest."""
    (tmp_path / "checkpoints").symlink_to(tiny_run / "checkpoints")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n[]\n{"step": "x", "loss": 2}\n{"step": 2, "lo')
    monkeypatch.setattr(metrics, "METRICS", {name: metric._replace(measure=lambda run, options: Measured(
        {"guidance": options.changes.get("guidance", 1.0), "step": run.step})) for name, metric in metrics.METRICS.items()})
    for options in ({}, {"guidance": 2.0}, {"guidance": 2.0, "step": 2}, {"metric": "bpd"}, {"guidance": 3.0}):
        ask("evaluate", tmp_path, **options)
    assert json.loads((tmp_path / "report.json").read_text()) == {"guidance": 3.0, "step": 4}
    names = {path.stem for path in (tmp_path / "reports").glob("*.json")}
    assert names == {"pixels-step4-weightsema", "pixels-step4-weightsema-guidance=2.0", "pixels-step2-weightsema-guidance=2.0",
                     "bpd-step4-weightsema", "pixels-step4-weightsema-guidance=3.0"}


def test_likelihoods_of_other_options_stay(tmp_path, monkeypatch):
    coder = without_data("digits_vae", tmp_path, data=page("digits_vae").to_dict()["data"])
    monkeypatch.setattr(likelihood_mode, "opened", lambda *_: coder)
    monkeypatch.setattr(likelihood, "measured", lambda model, batches: Likelihood(
        {"PSNR (dB)": float(len(batches))}, np.full((8, 8, 1), len(batches), np.uint8)))
    for num in (4, 8):
        ask("likelihood", tmp_path, num=num, batch=4)
    assert json.loads((tmp_path / "likelihood.json").read_text()) == {"images": 8, "PSNR (dB)": 2.0}
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        f"likelihood-step0-weightsparams-num={num}.{suffix}" for num in (4, 8) for suffix in ("json", "png")]
    assert np.asarray(Image.open(tmp_path / "reconstructions.png")).max() == 2


@pytest.mark.slow
def test_plans_stay(tmp_path, capsys):
    for name in ("plan.json", "plan-2.json"):
        ask("plan", tmp_path, config=page("digits"), program="estimate", topology=("h100:8",))
        said = capsys.readouterr().out
        assert f"written to {tmp_path / name}" in said and "MFLOP" in said and " 0.00 " not in said and "0.0 TFLOP" not in said
    assert (tmp_path / "plan.json").read_text() == (tmp_path / "plan-2.json").read_text()


def test_images_that_cannot_be_compared_are_said_before_anything(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "compared", lambda *_: pytest.fail("they are compared"))
    images = str(digits / "digits.npz")
    for options, says in ((dict(), "need a --reference"), (dict(reference="missing"), "no such file"),
                          (dict(reference=images, features="runs/c=ls"), "no such folder"),
                          (dict(reference=images, seed=1), "--seed is for samples")):
        with pytest.raises(ConfigError, match=says):
            ask("evaluate", tmp_path / "new", **{"images": images, "features": "stub"} | options)
        assert not (tmp_path / "new").exists()
