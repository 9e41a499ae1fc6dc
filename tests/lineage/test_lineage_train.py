"""The stages of a lineage trained in order: what is done is skipped, what fails is named, what is stale is refused.

Here a command writes a checkpoint and trains nothing; the real ones are in tests/modes/test_lineage.py.
"""
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.data.latents import ABOUT
from diffusion_jax.lineage import child, process, stages, train
from diffusion_jax.runs import pages
from diffusion_jax.runs.folder import save_start
from diffusion_jax.train.checkpoint import available, config_of
from diffusion_jax.train.state import plain

COST = 1e8
"""Operations of a step: ten of them are the budget of lineage:tiny."""


class Commands:
    """What is run in place of processes.

    Attributes:
      lines: the arguments of each.
      failing: key of a stage -> what its command says.
      draw: of the weights that are written, another one for other weights.
    """

    def __init__(self):
        self.lines, self.failing, self.draw = [], {}, 0.0

    def __call__(self, arguments, log, beat):
        flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
        self.lines.append(flags)
        name = Path(flags["--workdir"]).name
        if name in self.failing:
            return self.failing[name]
        if "--mode" in flags:
            Path(flags["--out"]).mkdir(parents=True)
            Path(flags["--out"], ABOUT).touch()
            return ""
        config = plain(pages.read(flags["--config"]))
        save_start(flags["--workdir"], config, {"w": np.float32([config["seed"] + self.draw])}, config["steps"])
        beat(1.0)
        return ""

    @property
    def trained(self):
        """The folders that were trained, in order."""
        return [Path(flags["--workdir"]).name for flags in self.lines if "--mode" not in flags]


@pytest.fixture
def commands(monkeypatch):
    fake = Commands()
    monkeypatch.setattr(train, "command", fake)
    monkeypatch.setattr(train, "counted", lambda stages, configs: {stage.key: COST for stage in stages})
    return fake


def lineage(*keys, **changes):
    """Some stages of lineage:tiny, and the classifier that measures."""
    whole = stages.read(pages.read("lineage:tiny"))
    chosen = tuple(stage for stage in whole.stages if stage.key in ("measure", *keys))
    return whole._replace(stages=chosen, judge=None, **changes)


def errors(rows):
    return {row.stage.key: row.error for row in rows if row.error}


def test_each_is_trained_once_behind_what_it_needs(commands, tmp_path):
    path = lineage("dvae", "dalle", "dit", "cads")
    rows = train.train(path, str(tmp_path), lambda line: None)
    assert commands.trained == ["measure", "dvae", "dalle", "dit"] and not errors(rows)
    assert config_of(tmp_path / "dalle")["first_stage"] == str(tmp_path / "dvae")
    by_key = {row.stage.key: row for row in rows}
    assert by_key["cads"].folder == by_key["dit"].folder and by_key["cads"].flops == by_key["dit"].flops
    assert by_key["dit"].steps == 10 and by_key["dit"].pictures == 160
    # The dVAE's four steps are the share of DALL-E alone.
    assert by_key["dalle"].steps == 6
    stored = json.loads((tmp_path / "trained.json").read_text())
    assert [(row["stage"]["key"], row["error"]) for row in stored] == [(row.stage.key, "") for row in rows]
    commands.lines.clear()
    again = train.train(path, str(tmp_path), lambda line: None)
    assert commands.lines == [] and [row.steps for row in again] == [row.steps for row in rows]


def test_a_model_of_latents_is_trained_in_those_of_its_autoencoder(commands, tmp_path):
    assert not errors(train.train(lineage("vae", "ldm"), str(tmp_path), lambda line: None))
    config = config_of(tmp_path / "ldm")
    assert {config["data"][part]["path"] for part in ("train", "test", "decode")} == {str(tmp_path / "vae/latents")}
    assert config["first_stage"] == str(tmp_path / "vae/latents/first_stage")
    encoded = [flags for flags in commands.lines if "--mode" in flags]
    assert [flags["--workdir"] for flags in encoded] == [str(tmp_path / "vae")]


def test_a_stage_that_fails_is_named_and_the_others_go_on(commands, tmp_path):
    commands.failing["dvae"] = "loss is nan at step 3"
    said = []
    path = lineage("dvae", "dalle", "dit", "cads")
    rows = train.train(path, str(tmp_path), said.append)
    assert errors(rows) == {"dvae": "loss is nan at step 3", "dalle": "it needs discrete VAE, which failed"}
    assert "dvae: failed: loss is nan at step 3" in said
    assert commands.trained == ["measure", "dvae", "dit"]
    commands.failing.clear()
    commands.lines.clear()
    assert not errors(train.train(path, str(tmp_path), said.append))
    assert commands.trained == ["dvae", "dalle"]


def test_seeds_have_folders_and_draws_of_their_own(commands, tmp_path):
    rows = train.train(lineage("dvae", "dalle", seeds=2), str(tmp_path), lambda line: None)
    assert commands.trained == ["measure", "dvae", "dalle", "dvae_seed1", "dalle_seed1"]
    assert config_of(tmp_path / "dalle_seed1")["first_stage"] == str(tmp_path / "dvae_seed1")
    assert config_of(tmp_path / "dalle_seed1")["seed"] - config_of(tmp_path / "dalle")["seed"] == train.SEED_APART
    assert [row.seed for row in rows] == [0, 0, 0, 1, 1]


def test_a_run_on_other_weights_of_its_helper_is_refused(commands, tmp_path):
    path = lineage("dvae", "dalle")
    train.train(path, str(tmp_path), lambda line: None)
    (tmp_path / "dvae").rename(tmp_path / "before")
    commands.draw = 0.5
    rows = train.train(path, str(tmp_path), lambda line: None)
    assert errors(rows) == {"dalle": f"{tmp_path}/dalle is of other weights of dvae: remove it, and it is trained anew"}


def test_a_lineage_may_be_moved(commands, tmp_path):
    path = lineage("dvae", "dalle")
    train.train(path, str(tmp_path / "a"), lambda line: None)
    (tmp_path / "a").rename(tmp_path / "b")
    commands.lines.clear()
    assert not errors(train.train(path, str(tmp_path / "b"), lambda line: None)) and commands.lines == []


def test_weights_that_are_not_those_that_were_trained_are_trained_on(commands, tmp_path):
    """Another run in the folder is no run of this lineage: the command is given it, and says what is wrong."""
    train.train(lineage("dit"), str(tmp_path), lambda line: None)
    record = json.loads((tmp_path / "dit/stage.json").read_text())
    (tmp_path / "dit/stage.json").write_text(json.dumps(record | {"weights": record["weights"] + 1}))
    commands.lines.clear()
    commands.failing["dit"] = "it holds another run"
    assert errors(train.train(lineage("dit"), str(tmp_path), lambda line: None)) == {"dit": "it holds another run"}


def test_a_run_that_ends_early_is_not_done(commands, tmp_path, monkeypatch):
    def stopped(arguments, log, beat):
        save_start(tmp_path / Path(arguments[3]).name, plain(pages.read(arguments[1])), {"w": np.zeros(1)}, 3)
        return ""

    monkeypatch.setattr(train, "command", stopped)
    rows = train.train(lineage("dit"), str(tmp_path), lambda line: None)
    assert errors(rows)["dit"] == "it stopped at step 3 of 10: the same command goes on"
    assert available(tmp_path / "dit") == [3]


def test_what_is_trained_reads_back_also_elsewhere(commands, tmp_path):
    path = lineage("dvae", "dalle", "dit", "cads", seeds=2)
    rows = train.train(path, str(tmp_path / "a"), lambda line: None)
    assert train.read(path, str(tmp_path / "a")) == rows
    (tmp_path / "a").rename(tmp_path / "b")
    assert [row.folder for row in train.read(path, str(tmp_path / "b"))] == [row.folder.replace("/a/", "/b/") for row in rows]


@pytest.mark.parametrize("keys", [("dit",), ("dvae", "dit", "cads")])
def test_rows_of_other_stages_are_refused(commands, tmp_path, keys):
    with pytest.raises(ConfigError, match="without --compare"):
        train.read(lineage("dit", "cads"), str(tmp_path))
    train.train(lineage("dit", "cads"), str(tmp_path), lambda line: None)
    with pytest.raises(ConfigError, match="without --compare"):
        train.read(lineage(*keys), str(tmp_path))


def test_what_runs_commands_may_be_another(commands, tmp_path):
    other = Commands()
    assert not errors(train.train(lineage("vae", "ldm"), str(tmp_path), lambda line: None, other))
    assert other.trained == ["measure", "vae", "ldm"] and not commands.lines


def test_operations_are_counted_once(commands, tmp_path, monkeypatch):
    path = lineage("dit")
    first = train.flops_of(path, str(tmp_path))
    monkeypatch.setattr(train, "counted", lambda stages, configs: pytest.fail("counted again"))
    assert train.flops_of(path, str(tmp_path)) == first == {"measure": COST, "dit": COST}


# Processes ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Lets `process.command` run a Python program in place of ours."""

    def programmed(text):
        file = tmp_path / "program.py"
        file.write_text(text)
        popen = process.subprocess.Popen
        monkeypatch.setattr(process.subprocess, "Popen", lambda line, **options: popen([sys.executable, file], **options))
        return tmp_path / "logs" / "x.log"

    return programmed


def test_a_command_says_its_error(program):
    log = program("print('step 1'); print('error: no room'); print('bye'); raise SystemExit(2)")
    assert process.command([], log, lambda seconds: None) == "no room"
    assert "step 1" in log.read_text()


def test_a_command_without_an_error_says_its_last_line(program):
    assert process.command([], program("1 / 0"), lambda seconds: None) == "ZeroDivisionError: division by zero"


def test_a_command_that_is_killed_says_by_what(program):
    log = program("import os, signal; print('step 3'); os.kill(os.getpid(), signal.SIGKILL)")
    assert process.command([], log, lambda seconds: None) == "SIGKILL ended it"


def test_a_command_that_goes_well_says_nothing_and_is_watched(program, monkeypatch):
    monkeypatch.setattr(process, "POLL", 0.05)
    beats = []
    assert process.command([], program("import time; print('error: not one'); time.sleep(0.5)"), beats.append) == ""
    assert beats and beats == sorted(beats)


def test_a_folder_that_is_let_go_of_is_tried_again(program, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "PAUSE", 0.0)
    log = program(
        f"import pathlib, sys; file = pathlib.Path({str(tmp_path / 'once')!r}); there = file.exists(); file.touch()\n"
        "if not there: print('error: x is being trained by process 7 on host since now: wait'); sys.exit(2)\n"
    )
    assert process.command([], log, lambda seconds: None) == ""


def test_a_process_whose_parent_is_gone_ends_itself(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "read", lambda file, most: b"")
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    child.follow()
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_accelerators_are_left_to_the_processes_and_then_taken(monkeypatch):
    cleared = []
    monkeypatch.setattr(process.backend, "clear_backends", lambda: cleared.append(jax.config.values["jax_platforms"]))
    before = jax.config.values["jax_platforms"]
    try:
        jax.config.update("jax_platforms", "cuda,cpu")
        with process.without_accelerators():
            assert jax.config.values["jax_platforms"] == "cpu"
        assert jax.config.values["jax_platforms"] == "cuda,cpu" and cleared == ["cpu"]
    finally:
        jax.config.update("jax_platforms", before)


def test_the_bar_does_not_count_what_was_done_before(monkeypatch):
    monkeypatch.setattr(process, "tqdm", lambda **options: Shown(options))
    bar = process.Bar([100.0, 300.0])
    bar.at(0, 1.0, "a", before=True)
    bar.at(1, 0.5, "b")
    assert (bar._bar.total, bar._bar.initial, bar._bar.n) == (400.0, 100.0, 250.0)


class Shown:
    """What the bar of a terminal is told."""

    def __init__(self, options):
        self.total, self.initial, self.n, self.disable = options["total"], 0.0, 0.0, False

    def set_description(self, text, refresh):
        self.text = text

    def update(self, grown):
        self.n += grown
