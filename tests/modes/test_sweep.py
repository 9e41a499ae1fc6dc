"""Modes `sweep` and `posthoc_ema`, guidance by a weaker model, and metrics in a classifier's features."""
import csv

import numpy as np
import pytest
from pages import page

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image
from diffusion_jax.modes import evaluate, posthoc_ema, sample, sweep, train
from diffusion_jax.train.checkpoint import load

QUICK = dict(num=20, steps=2)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_measures_each_value_and_draws_them(tiny_run, tmp_path, capsys):
    sweep.run(None, str(tiny_run), dict(over="guidance", values=["1", "3.5"], out=str(tmp_path / "x" / "guided"), **QUICK))
    rows = table(tmp_path / "x" / "guided.csv")
    assert [row["guidance"] for row in rows] == ["1", "3.5"] and "accuracy[pixel SVC]" in rows[0]
    alone = evaluate.measured(str(tiny_run), dict(guidance=3.5, **QUICK))
    assert abs(float(rows[1]["novelty[pixels]"]) - alone["novelty[pixels]"]) < 1e-6
    assert image.read(tmp_path / "x" / "guided.png").shape[1] > 300
    assert "guidance = 3.5" in capsys.readouterr().out


def test_an_option_of_an_option_is_added_to_what_is_given(tiny_run):
    given = dict(cads="tau1=0.5", guidance=2.0)
    assert sweep.changed(str(tiny_run), given, "cads.s", "0.2") == (str(tiny_run), dict(cads="tau1=0.5,s=0.2", guidance=2.0))
    assert sweep.changed(str(tiny_run), {}, "sampler.eta", "0.5")[1] == dict(sampler="ddim,eta=0.5")
    assert sweep.changed(str(tiny_run), {}, "step", "2")[1] == dict(step=2)
    assert sweep.changed("runs", {}, "run", "A") == ("runs/A", {})


@pytest.mark.parametrize(("options", "says"), [
    (dict(values=["1"]), "needs --over"), (dict(over="guidance"), "needs --values"),
    (dict(over="guidence", values=["1"]), "did you mean 'guidance'"),
    (dict(over="guidance", values=["one"]), "guidance takes a number"),
    (dict(over="guidance.x", values=["1"]), "guidance has no options"),
    (dict(over="guidance", values=["1"], metric="features"), "needs --features"),
])
def test_wrong_sweeps_are_refused(tiny_run, options, says):
    with pytest.raises(ConfigError, match=says):
        sweep.run(None, str(tiny_run), options)


@pytest.mark.slow
def test_a_weaker_model_guides(tiny_run, tmp_path):
    """Away from itself nothing changes; away from an earlier checkpoint something does; interval and scale act on it."""
    def made(**options):
        sample.run(None, str(tiny_run), dict(out=str(tmp_path / "x.npz"), num=4, steps=3, **options))
        return np.load(tmp_path / "x.npz")["arr_0"].astype(int)

    plain = made()
    assert np.abs(made(weak=str(tiny_run), guidance=3.0) - plain).max() <= 1
    early = made(weak=str(tiny_run), weak_step=2, guidance=300.0)
    assert np.abs(early - plain).max() > 1
    assert np.abs(made(weak=str(tiny_run), weak_step=2, guidance=300.0, interval="1e3,1e4") - plain).max() <= 1
    with pytest.raises(ConfigError, match="give that too"):
        made(weak_step=2)


@pytest.mark.slow
def test_features_of_a_classifier_measure_samples(tiny_run, tmp_path):
    train.run(page("digits_classifier"), str(tmp_path / "cnn"), {})
    report = evaluate.measured(str(tiny_run), dict(metric="features", features=str(tmp_path / "cnn"), **QUICK))
    names = [f"{name}[cnn]" for name in ("FID", "precision", "recall", "density", "coverage", "distance", "accuracy")]
    assert set(names) <= report.keys() and report["FID[cnn]"] > 0
    with pytest.raises(ConfigError, match="give the folder of a noisy classifier"):
        evaluate.measured(str(tiny_run), dict(metric="features", features=str(tiny_run), **QUICK))


@pytest.mark.slow
def test_averages_made_afterwards_sample_like_any_other(tmp_path, capsys):
    train.run(page("digits_edm2"), str(tmp_path), {})
    posthoc_ema.run(None, str(tmp_path), dict(std=["0.05", "0.2"]))
    for std in ("0.05", "0.2"):
        folder = str(tmp_path / "posthoc" / std)
        sample.run(None, folder, dict(out=str(tmp_path / "x.npz"), num=2, steps=2))
    tracked, made = (load(folder, which)[2] for folder, which in ((tmp_path, "short"), (tmp_path / "posthoc" / "0.05", "ema")))
    np.testing.assert_allclose(made["model"]["enc_0_conv"]["weight"], tracked["model"]["enc_0_conv"]["weight"], atol=1e-5)
    with pytest.raises(ConfigError, match="holds an average already"):
        posthoc_ema.run(None, str(tmp_path), dict(std=["0.05"]))
    other = dict(std=["0.1"], label=3)
    for options, says in (({}, "needs --std"), (dict(std=["a"]), "list of numbers"), (other, "--label is not for")):
        with pytest.raises(ConfigError, match=says):
            posthoc_ema.run(None, str(tmp_path), options)


def test_a_run_without_snapshots_has_no_averages_to_make(tiny_run):
    with pytest.raises(ConfigError, match="train with config.snapshots"):
        posthoc_ema.run(None, str(tiny_run), dict(std=["0.1"]))
