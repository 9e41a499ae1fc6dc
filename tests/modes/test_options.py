"""Options and flags: every flag says what it is, belongs to a mode, and does something or is refused."""
import importlib
import re
from dataclasses import fields

import pytest
from pages import ROOT, ask, page, refused

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
    of_all = ("workdir", "distributed", "compiled", "allow")
    assert shown == {f"--{name}" for name in (*leaves(options_of(mode)), *page_flag, *of_all)}
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
    ("edit", dict(op="mix", to_label=3, values=(0.5,), schedule="dynamic_cfg"), "schedule .* is of guidance"),
    ("edit", dict(op="mix", to_label=3, values=(0.5,), augment=0.3), "augment .* is for an upsampler"),
    ("edit", dict(op="mix", to_label=3, values=(0.5,), negative="x"), "negative"),
    ("edit", dict(op="guidance", values=(2,), guidance=3.0), "takes its own from --values"),
    ("sample", dict(clip=1.0, threshold=0.9), "clip .* finds nothing beyond 1 after threshold"),
    ("sample", dict(guidance=3.0, channels=1), "channels .* are all that the model has"),
    ("sample", dict(guidance=3.0, channels=99), "channels .* are all that the model has"),
    ("sample", dict(sampler="edm,s_noise=2"), "s_noise changes nothing where s_churn is 0"),
    ("sample", dict(plus_plus=True, sampler="dpmpp_2m"), "DPM-Solver.. do not read"),
    ("sample", dict(top_p=0.5), "unknown sampling option 'top_p'"),
    ("sample", dict(prior="text"), "a prior .* is for a decoder of unCLIP"),
    ("sample", dict(prompt=("a three",)), "reads no text"),
    ("sample", dict(rerank="RUN", candidates=2), "holds a diffusion model"),
    ("sample", dict(upsampler=("RUN",)), "must read low_res: no upsampler"),
    ("evaluate", dict(phi=0.7, num=20), "phi .* is of guidance"),
    ("evaluate", dict(sampler="edm,s_min=2", num=20), "s_min changes nothing"),
    ("evaluate", dict(weak="RUN", num=20), "a weak model .* guidance is 1"),
    ("evaluate", dict(classifier_scale=3.0, num=20), "needs a --classifier"),
    ("evaluate", dict(candidates=3, num=20), "reranking needs both"),
    ("evaluate", dict(metric="bpd", guidance=3.0), "--guidance is for samples"),
    ("sweep", dict(over="steps", values="2,3", phi=0.7, num=20), "phi .* is of guidance"),
    ("sweep", dict(over="steps", values="2,3", augment=0.5, num=20), "augment .* is for an upsampler"),
    ("likelihood", dict(step=-1), "step is 0 or more"),
])
def test_what_changes_nothing_or_has_no_such_value_is_refused(tiny_run, mode, given, says):
    run = {"RUN": str(tiny_run), ("RUN",): (str(tiny_run),)}
    given = {name: run.get(value, value) if isinstance(value, str | tuple) else value for name, value in given.items()}
    with pytest.raises(ConfigError, match=says):
        ask(mode, tiny_run, **given)


NUMBERS = {
    "guidance": ("nan", "inf", "1e400", "1_000", "\u0663", "\u00b2", "", " ", "0x10", "1,5", "True"),
    "seed": ("-1", "4294967296", "9223372036854775808", "1e3", "1.0", "1_0", "\u0663", "nan", "", "9" * 5000),
    "num": ("0", "-1", "1e12", "1000000000000", "2.5", "\u0663", ""),
    "batch": ("0", "1_0"),
    "step": ("-1", "1.5"),
    "steps": ("00", ",,,", "\u00b2", "1_0", "-3", "5.0", "1e9", "9" * 50),
    "label": ("-1", "--3", "\u0663", "9" * 40),
    "interval": ("nan,1", "-1,2"),
    "sampler": ("ddim,eta=nan", "heun,s_churn=-1", "edm,s_churn=-1"),
    "times": ("karras,rho=0", "leading,offset=0.5"),
    "schedule": ("power_cosine,power=nan",),
    "cads": ("s=-1", "psi=2"),
    "clip": ("-1",),
    "threshold": ("2",),
    "channels": ("1.5",),
    "temperature": ("-1",),
    "keep_parallel": ("-1",),
    "phi": ("inf",),
    "augment": ("1_0",),
    "candidates": ("0", "\u0663"),
    "weak_step": ("-1",),
    "prior_guidance": ("nan",),
    "prior_best": ("0",),
}


@pytest.mark.parametrize(
    ("flag", "text"), [(flag, text) for flag, texts in NUMBERS.items() for text in texts], ids=lambda value: ascii(value)[:30])
def test_numbers_of_flags_are_checked_in_one_place(cli, tiny_run, tmp_path, flag, text):
    """Finite, in range, whole where they count, and in the digits 0 to 9: refused in a line that names the flag."""
    done = cli("--workdir", tiny_run, "--mode", "sample", "--out", tmp_path / "x.png", f"--{flag}={text}")
    named = repr(text) if "=" in text else "class" if flag == "label" and text != "-1" else flag
    assert refused(done, named), done
    assert not list(tmp_path.iterdir())


def test_space_around_a_number_is_none_of_it():
    options = built(options_of("sample"), dict(num=" 3 ", guidance=" 2", seed="07"))
    assert (options.num, options.sampling.changes, options.seed) == (3, {"guidance": 2.0}, 7)


READ_PAGES = ("train", "plan", "reference", "encode", "likelihood", "page", "lineage")


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in READ_PAGES])
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
