"""The command line as a program: it starts quickly, helps, and ends with one line where somebody made a mistake."""
import os
import subprocess
import sys

import pytest
from pages import ROOT, Result, files, refused

from diffusion_jax import build
from diffusion_jax.main import first, parsed
from diffusion_jax.modes import module_of

DIGITS = f"{ROOT / 'configs' / 'digits.py'}:tiny"


def command(*arguments, cwd):
    """A real process, from any folder."""
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          env=clean | {"PYTHONPATH": str(ROOT)}, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


def test_starting_up_imports_nothing_that_is_slow(tmp_path):
    slow = ("orbax.checkpoint", "tensorflow_datasets", "tensorboardX", "torch", "sklearn", "matplotlib", "grain", "optax", "clu")
    done = command("-c", f"import sys, diffusion_jax.main; print([name for name in {slow} if name in sys.modules])", cwd=tmp_path)
    assert done.out.strip() == "[]", done.err


def test_help_lists_the_flags_and_ends_well(tmp_path):
    done = command("-m", "diffusion_jax.main", "--help", cwd=tmp_path)
    assert done.code == 0 and not done.err
    assert all(f"--{flag}:" in done.out for flag in ("config", "workdir", "profile_steps", "distributed", "compiled", "allow"))
    assert "edit, encode, evaluate" in done.out and "--label" not in done.out


def test_the_package_itself_is_the_same_command(tmp_path):
    done = command("-m", "diffusion_jax", "--mode", "likelihood", "--help", cwd=tmp_path)
    assert done.code == 0 and not done.err and "--num: Held-out images" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--config", DIGITS, "--config.model.detph=3"), ("detph", "depth")),
        pytest.param(("--config", DIGITS, "--config.sample.sampler=ddmi"), ("did you mean 'ddim'",), marks=pytest.mark.slow),
        pytest.param(("--mode", "sample", "--num", "three"), ("num", "three"), marks=pytest.mark.slow),
        pytest.param(("--config", DIGITS, "--distributed"), ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
                     marks=pytest.mark.slow),
    ],
    ids=["unknown override", "unknown sampler", "number that is none", "no cluster"],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, says):
    done = command("-m", "diffusion_jax.main", "--workdir", "run", *arguments, cwd=tmp_path)
    assert refused(done, *says) and done.err.count("\n") == 1, done.err
    assert not files(tmp_path)


def test_packages_are_allowed_before_options_are_built(monkeypatch):
    packages = set()
    monkeypatch.setattr(build, "_allowed", lambda: packages)
    arguments = ["main", "--workdir", "run", "--allow", "mypkg", "--num=3", "--allow=other.nets"]
    start, _ = parsed(module_of("sample").Options, arguments)
    assert packages == {"mypkg", "other.nets"} and list(start.allow) == ["mypkg", "other.nets"]
    with pytest.raises(build.ConfigError, match="--allow subprocess: only a package of your own"):
        parsed(module_of("sample").Options, ["main", "--workdir", "run", "--allow", "subprocess"])


def test_the_mode_is_read_first_wherever_it_stands():
    assert first(["main", "--out", "x.png", "--mode", "sample", "--num=3"]) == ("sample", ["main", "--out", "x.png", "--num=3"])
    assert first(["main", "--config", "digits"]) == ("train", ["main", "--config", "digits"])


def test_what_is_given_reaches_its_group():
    arguments = ["main", "--workdir", "run", "--upsampler", "a", "--upsampler", "b", "--num=3", "--guidance", "2", "--notruncate"]
    arguments += ["--label", "rose", "--label", "3"]
    start, options = parsed(module_of("sample").Options, arguments)
    assert (start.workdir, start.compiled, start.distributed) == ("run", None, False)
    assert (options.num, options.helpers.upsampler, options.request.truncate) == (3, ("a", "b"), False)
    assert options.sampling.changes == {"guidance": 2.0} and options.request.labels == ("rose", "3")


def test_a_page_is_an_option_with_its_changes():
    arguments = ["main", "--config.steps", "3", "--workdir", "run", "--config", "digits:tiny"]
    _, options = parsed(module_of("train").Options, arguments)
    assert options.config.steps == 3 and options.config.batch > 0
