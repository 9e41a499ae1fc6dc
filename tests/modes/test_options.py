"""Options and flags: every flag says what it is, belongs to a mode, and does something or is refused."""
import importlib
import re
from dataclasses import fields

import pytest
from pages import ROOT, ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import MODES
from diffusion_jax.modes.options import built, leaves
from diffusion_jax.runs import pages


def options_of(mode):
    return importlib.import_module(f"diffusion_jax.modes.{mode}").Options


@pytest.mark.parametrize("mode", MODES)
def test_every_flag_has_a_help(mode):
    for name, leaf in leaves(options_of(mode)).items():
        assert name.isidentifier() and leaf.types
        assert len(leaf.help) > 8 and leaf.help[-1] not in ".\n", (name, leaf.help)


@pytest.mark.parametrize("mode", MODES)
def test_help_shows_the_flags_of_the_mode_and_no_others(cli, mode):
    done = cli("--mode", mode, "--help")
    shown = {line.strip().partition(":")[0] for line in done.out.splitlines() if re.match(r"  --\w+:", line)}
    page_flag = ["config"] if "config" in {part.name for part in fields(options_of(mode))} else []
    assert (done.code, done.err) == (0, "")
    assert shown == {f"--{name}" for name in (*leaves(options_of(mode)), *page_flag, "workdir", "distributed", "compiled")}
    assert all(other in done.out.rpartition("Other modes")[2] for other in MODES if other != mode)


def test_help_of_edit_has_an_example_of_each_op(cli):
    from diffusion_jax.modes.edit import TAKES

    lines = [line.split() for line in cli("--mode", "edit", "--help").out.splitlines()]
    for op in TAKES:
        place = next(i for i, words in enumerate(lines) if words[:1] == [op])
        assert lines[place + 1][0].startswith("--"), op


def test_defaults_are_shown(cli):
    text = cli("--mode", "sample", "--help").out
    assert "--batch: Images at a time (default: 100)" in text and "--seed: Seed of all draws (default: 0)" in text
    assert "or params (default: ema)" in text


@pytest.mark.parametrize(("mode", "flag", "says"), [
    ("sample", "rect", "--rect belongs to mode edit: mode sample has no use for it"),
    ("edit", "classifier", "--classifier belongs to modes evaluate, sample, sweep"),
    ("edit", "temperature", "--temperature belongs to modes evaluate, sample"),
    ("train", "guidance", "its page says"),
    ("plan", "num", "--num belongs to modes"),
    ("likelihood", "prompt", "--prompt belongs to modes edit, sample"),
    ("posthoc_ema", "stds", "did you mean 'std'"),
    ("encode", "outt", "did you mean 'out'"),
])
def test_a_flag_of_another_mode_is_refused_by_name(cli, mode, flag, says):
    done = cli("--workdir", "run", "--mode", mode, f"--{flag}", "1")
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1


def test_options_of_absl_are_still_taken(cli):
    done = cli("--workdir", "no such run", "--mode", "sample", "--verbosity=-1", "--logtostderr")
    assert done.code == 2 and "there is no folder" in done.err


@pytest.mark.parametrize(("mode", "given", "says"), [
    ("sample", dict(phi=0.7), "phi .* is of guidance, which is 1"),
    ("sample", dict(interval="0,1"), "interval .* is of guidance"),
    ("sample", dict(schedule="dynamic_cfg"), "schedule .* is of guidance"),
    ("sample", dict(channels=1), "channels .* is of guidance"),
    ("sample", dict(keep_parallel=0.5), "keep_parallel .* is of guidance"),
    ("sample", dict(augment=0.3), "augment .* is for an upsampler"),
    ("sample", dict(low_res="x.npz"), "is for an upsampler"),
    ("sample", dict(truncate=True), "truncate .* cuts prompts"),
    ("sample", dict(negative="x"), "negative"),
    ("sample", dict(weak_step=2), "--weak_step is a step of the run --weak"),
    ("sample", dict(weak="RUN"), "a weak model .* guidance is 1"),
    ("sample", dict(classifier_scale=3.0), "needs a --classifier"),
    ("sample", dict(candidates=3), "reranking needs --rerank"),
    ("sample", dict(prior_guidance=2.0), "give --prior FOLDER"),
    ("sample", dict(complete="x.npz"), "complete .* is for a transformer"),
    ("sample", dict(top_k=3), "unknown sampling option 'top_k'"),
    ("sample", dict(num=0), "num is 1 or more, got 0"),
    ("sample", dict(seed=2**32), "seed is 0 ... 4294967295"),
    ("sample", dict(temperature=float("nan")), "not finite"),
    ("edit", dict(op="invert", images="x.png", guidance=3.0), "without guidance: leave --guidance out"),
    ("edit", dict(op="mix", to_label=3, values=(0.5,), phi=0.7), "phi .* is of guidance"),
    ("edit", dict(op="inpaint", images="x.png", rect=("0,0,4,4",), strength=2.0), "strength is 0 ... 1"),
    ("edit", dict(op="strength", images="x.png", values=(0.5,), seed=-1), "seed is 0"),
    ("likelihood", dict(step=-1), "step is 0 or more"),
])
def test_what_changes_nothing_or_has_no_such_value_is_refused(tiny_run, mode, given, says):
    given = {name: str(tiny_run) if value == "RUN" else value for name, value in given.items()}
    with pytest.raises(ConfigError, match=says):
        ask(mode, tiny_run, **given)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("train", "plan", "reference", "encode")])
def test_a_mode_that_reads_no_page_takes_none(cli, tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    for given in (("--config", "digits"), ("--config.steps=3",)):
        done = cli("--workdir", "run", "--mode", mode, *given)
        assert done.code == 2 and f"mode {mode} reads no page" in done.err and done.err.count("\n") == 1


def test_options_hold_what_was_given_and_defaults():
    options = built(options_of("sample"), dict(num=3, prompt=("a", "b"), guidance=2.0, which="params"))
    assert (options.num, options.request.prompts, options.weights.which) == (3, ("a", "b"), "params")
    assert options.sampling.changes == {"guidance": 2.0} and options.helpers.upsampler == ()


# Pages from anywhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py", str(ROOT / "configs" / "digits.py")])
def test_pages_have_names_and_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pages.read(f"{name}:tiny") == page("digits")
    assert pages.read(name).model.depth == page("digits", "").model.depth


def test_a_file_goes_before_a_page_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text("def get_config():\n    return {'steps': 3}\n")
    assert pages.read("digits.py").to_dict() == {"steps": 3}
    assert pages.read("digits:tiny") == page("digits")


@pytest.mark.parametrize("name", ["digts", "elsewhere/digits.py", "digits.txt"])
def test_an_unknown_page_names_the_nearest_and_all(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'digits'?.*stable_diffusion") as error:
        pages.read(name)
    assert "\n" not in str(error.value)


def test_what_a_page_refuses_is_one_line(cli):
    done = cli("--workdir", "run", "--config", "digits:tinny")
    assert done.code == 2 and "did you mean 'tiny'" in done.err and done.err.count("\n") == 1


def test_overrides_may_stand_before_the_page(cli, tmp_path):
    done = cli("--config.stpes=3", "--config", "digits:tiny", "--workdir", tmp_path / "run")
    assert done.code == 2 and "did you mean 'steps'" in done.err


def test_pages_of_release_0_1_find_what_they_import():
    tiny = importlib.import_module("diffusion_jax.modes.config").tiny
    from diffusion_jax.modes.config import tiny as imported
    from diffusion_jax.modes.config import variant
    from diffusion_jax.runs import page as runs_page

    assert imported is tiny is runs_page.tiny and variant is runs_page.variant
    assert not (ROOT / "diffusion_jax" / "modes" / "config.py").exists()
