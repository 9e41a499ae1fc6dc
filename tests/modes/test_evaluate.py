"""Mode `evaluate` on the command line: samples and images against data, and what is refused."""
import json
import shutil

import pytest
from pages import ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import metrics
from diffusion_jax.modes import evaluate
from diffusion_jax.modes.options import built
from diffusion_jax.runs import held_out

QUICK = dict(features="stub", num=40, steps="2", batch=16)
SHARES = ("accuracy[pixel SVC]", "accuracy[pixel SVC] of held-out images")

pytestmark = pytest.mark.usefixtures("stub")


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, to write reports to."""
    return shutil.copytree(tiny_run, tmp_path / "run")


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


@pytest.mark.slow
def test_features_of_a_classifier_measure_samples(tiny_run, tmp_path):
    ask("train", tmp_path / "cnn", config=page("digits_classifier"))
    figures = measured(tiny_run, metric="features", features=str(tmp_path / "cnn"), num=20, steps="2")
    names = [f"{name}[cnn]" for name in ("FID", "precision", "recall", "density", "coverage", "distance", "accuracy")]
    assert set(names) <= figures.keys() and figures["FID[cnn]"] > 0
    with pytest.raises(ConfigError, match="give the folder of a noisy classifier"):
        measured(tiny_run, metric="features", features=str(tiny_run), num=20, steps="2")


@pytest.mark.slow
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
