"""Mode `sweep`: every value is checked, then measured, and the table grows."""
import csv
from pathlib import Path

import pytest
from pages import ask

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image
from diffusion_jax.evaluation import metrics
from diffusion_jax.evaluation import options as measurement
from diffusion_jax.modes import evaluate, sweep
from diffusion_jax.modes.options import built
from diffusion_jax.pipelines.sampling import draw

QUICK = dict(num=20, steps="2")


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_sweep_measures_each_value_and_draws_them(tiny_run, tmp_path, cli):
    done = cli("--workdir", tiny_run, "--mode", "sweep", "--over", "guidance", "--values", "1,3.5", "--num=20", "--steps=2",
               "--out", tmp_path / "x" / "guided")
    assert done.code == 0 and "guidance = 3.5" in done.out
    rows = table(tmp_path / "x" / "guided.csv")
    assert [row["guidance"] for row in rows] == ["1", "3.5"] and "accuracy[pixel SVC]" in rows[0]
    alone = evaluate.measured(built(evaluate.Options, dict(guidance=3.5, **QUICK)), str(tiny_run)).figures
    assert abs(float(rows[1]["novelty[pixels]"]) - alone["novelty[pixels]"]) < 1e-6
    assert image.read(tmp_path / "x" / "guided.png").shape[1] > 300


@pytest.mark.slow
def test_strengths_of_cads_are_one_program(tiny_run, tmp_path):
    before = draw._cache_size()
    ask("sweep", tiny_run, over="cads.s", values="0,0.1,0.5", out=str(tmp_path / "x"), **QUICK)
    assert draw._cache_size() == before + 1 and len(table(tmp_path / "x.csv")) == 3


def test_the_table_grows_with_every_value(tiny_run, tmp_path, monkeypatch):
    def measure(run, options):
        if options.changes["guidance"] == 3.0:
            raise KeyboardInterrupt
        return metrics.Measured({"guidance": 1.0, "FID[x]": float(options.changes["guidance"])})

    monkeypatch.setattr(metrics, "measured", measure)
    with pytest.raises(KeyboardInterrupt):
        ask("sweep", tiny_run, over="guidance", values="1,2,3", out=str(tmp_path / "x"), num=20)
    assert table(tmp_path / "x.csv") == [{"guidance": "1", "FID[x]": "1.0"}, {"guidance": "2", "FID[x]": "2.0"}]


def test_a_sweep_that_was_ended_half_way_is_not_lost(tiny_run, tmp_path, monkeypatch, capsys):
    """Without --out the next one has another name; with it the command says what it writes over."""
    (tmp_path / "checkpoints").symlink_to(tiny_run / "checkpoints")
    ending: list = [None]

    def measure(run, options):
        if options.changes["guidance"] == ending[0]:
            raise KeyboardInterrupt
        return metrics.Measured({"FID[x]": float(options.changes["guidance"])})

    monkeypatch.setattr(metrics, "measured", measure)
    for out in (None, str(tmp_path / "named")):
        ending[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            ask("sweep", tmp_path, over="guidance", values="1,2", num=20, out=out)
        ending[0] = None
        ask("sweep", tmp_path, over="guidance", values="1,2,3", num=20, out=out)
    assert [len(table(tmp_path / name)) for name in ("sweep.csv", "sweep-2.csv", "named.csv")] == [1, 3, 3]
    assert f"{tmp_path / 'named.csv'} holds 1 values of an earlier sweep" in capsys.readouterr().out


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(("options", "says"), [
    (dict(over="blur", values="0,1"), "need a --reference"),
    (dict(over="guidance", values="1,2", reference="x.npz"), "for samples"),
    (dict(over="blur", values="0,1", reference="missing"), "no such file"),
])
def test_all_values_of_images_are_checked_too(digits, tmp_path, monkeypatch, options, says):
    monkeypatch.setattr("diffusion_jax.evaluation.compare.of_images", None)
    monkeypatch.chdir(digits)
    with pytest.raises(ConfigError, match=says):
        ask("sweep", tmp_path, images="digits.npz", features="stub", **options)


@pytest.mark.parametrize(("options", "says"), [
    (dict(over="sampler", values="ddim,ddum"), "did you mean 'ddim'"),
    (dict(over="step", values="2,3"), "step 3"),
    (dict(over="run", values=".,missing"), "missing"),
    (dict(over="which", values="ema,emma"), "emma"),
    (dict(over="run", values=".,,."), "value 2 is empty"),
    (dict(over="cads.s", values="0.1,x", guidance=2.0), "'x'"),
    (dict(over="guidance", values="1,,2"), "--values '1,,2': value 2 is empty"),
    (dict(over="guidance", values="1,2,,"), "value 3 is empty"), (dict(over="guidance", values=","), "value 1 is empty"),
    (dict(over="guidance", values='1,"2'), "--values"), (dict(over="guidance", values="1\n2"), "--values"),
    *((dict(over="guidance", values=f"1,{value}"), "guidance .--values. is") for value in ("nan", "inf", "x", "1_0", "\u00b2")),
    *((dict(over="step", values=f"2,{value}"), "step .--values. is") for value in ("nan", "-3", "1.7", "x")),
    *((dict(over="channels", values=f"1,{value}", guidance=2.0), "channels") for value in ("nan", "-3", "1.7", "x")),
    *((dict(over="candidates", values=f"1,{value}", rerank="x"), "candidates .--values. is") for value in ("nan", "0", "1.7")),
    *((dict(over="steps", values=f"2,{value}"), "steps") for value in ("nan", "-3", "0", "1.7", "x")),
    *((dict(over="blur", values=f"1,{value}", features="stub"), "blur") for value in ("nan", "-1", "1e9", "x")),
    (dict(over="plus_plus", values="true,maybe", guidance=2.0), "plus_plus is true or false"),
    (dict(over="guidance", values="1,2", num=5), "5 samples do not cover the 10 classes"),
    (dict(over="guidance", values="1,2", metric="features", features="stub", reference="missing"), "no such file"),
    (dict(over="phi", values="0,0.5"), "phi .* is of guidance, which is 1 here"),
    (dict(over="sampler", values='"ddim,eta=0.5",plms', metric="bpd"), "--sampler is for samples"),
])
@pytest.mark.usefixtures("stub")
def test_all_values_are_checked_before_the_first_is_measured(tiny_run, monkeypatch, options, says):
    monkeypatch.setattr(metrics, "measured", None)
    with pytest.raises(ConfigError, match=says):
        ask("sweep", tiny_run, **{"num": 20} | options)


def changed(folder, over, value, changes=()):
    options = measurement.Options(changes=dict(changes))
    return sweep.changed(sweep.Point(value, str(folder), "ema", None, options), over)


def test_every_value_has_its_place(tiny_run):
    given = dict(cads="tau1=0.5", guidance=2.0)
    assert changed(tiny_run, "cads.s", "0.2", given).options.changes == dict(cads="tau1=0.5,s=0.2", guidance=2.0)
    assert changed(tiny_run, "sampler.eta", "0.5").options.changes == dict(sampler="ddim,eta=0.5")
    assert changed(tiny_run, "guidance", "2").options.changes == dict(guidance=2.0)
    assert changed(tiny_run, "plus_plus", "false").options.changes == dict(plus_plus=False)
    assert changed(tiny_run, "steps", "10,15").options.changes == dict(steps="10,15")
    assert changed(tiny_run, "step", "2").step == 2 and changed(tiny_run, "which", "params").which == "params"
    assert changed(tiny_run, "blur", "0.5").options.measure.blur == 0.5
    assert changed(tiny_run, "candidates", "4").options.helpers.candidates == 4
    assert changed("runs", "run", "A").folder == str(Path("runs/A"))


def test_values_that_have_commas_stand_in_quotes():
    assert sweep.split("1, 2,3,") == sweep.split("1, 2,3") == ["1", "2", "3"]
    assert sweep.split('"ddim,eta=0.5", plms') == ["ddim,eta=0.5", "plms"]


@pytest.mark.parametrize(("options", "says"), [
    (dict(values="1"), "needs --over"), (dict(over="guidance"), "needs --values"),
    (dict(over="guidence", values="1"), "did you mean 'guidance'"),
    (dict(over="guidance", values="one"), "guidance .--values. is a number, got 'one'"),
    (dict(over="guidance.x", values="1"), "guidance has no options"),
    (dict(over="guidance", values="1", metric="features"), "needs --features"),
    (dict(over="step", values="1", images="x.npz"), "--over step is of a run"),
    (dict(over="guidance", values="1,2", guidance=3.0), "--over guidance takes its own from --values: leave --guidance out"),
    (dict(over="candidates", values="1,2", rerank="x", candidates=3), "--over candidates takes its own"),
    (dict(over="step", values="2,4", step=2), "--over step takes its own"),
    (dict(over="which", values="ema", which="params"), "--over which takes its own"),
    (dict(over="blur", values="0,1", blur=2.0), "--over blur takes its own"),
    (dict(over="guidance", values="1,nan"), "guidance"),
    (dict(over="guidance", values="1,1_0"), "guidance"),
    (dict(over="guidance", values="1,2,1"), "--values has 1 twice, the second as 1: give each value once"),
    (dict(over="guidance", values="1,2,1.0"), "--values has 1 twice, the second as 1.0: give each value once"),
    (dict(over="run", values="a,./a"), "--values has a twice"),
    (dict(over="steps", values="5,00"), "at least 1"),
    (dict(over="cads.s", values="0.1,-1"), "s is 0 or more, got -1"),
    (dict(over="guidance", values="1,2", out="photos/"), "is a folder: give the name of the files, photos/sweep"),
    (dict(over="guidance", values="1,2", out=""), "is a folder"),
])
def test_wrong_sweeps_are_refused(tiny_run, options, says):
    with pytest.raises(ConfigError, match=says):
        ask("sweep", tiny_run, **options)
