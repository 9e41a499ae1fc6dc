"""What a second start finds, and traces for TensorBoard. Slow: real processes."""
import os
import subprocess
import sys

import pytest
from pages import ROOT, ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.train.log import Trace

PAGE = ("--config", str(ROOT / "configs" / "digits.py:tiny"), "--config.evaluate.num=0", "--config.sample.every=1000")


def start(workdir, *arguments):
    clean = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    clean["XDG_CACHE_HOME"] = str(workdir.parent / "cache")
    done = subprocess.run([sys.executable, "-m", "diffusion_jax.main", *PAGE, "--workdir", str(workdir), *arguments], cwd=ROOT,
                          env=clean, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def programs(folder):
    return {path.name for path in folder.glob("*-cache")}


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path):
    start(tmp_path / "first", "--config.steps=3")
    folder = tmp_path / "cache" / "diffusion_jax" / "compiled"
    kept = programs(folder)
    assert kept and not (tmp_path / ".compiled").exists()
    start(tmp_path / "second", "--config.steps=3")
    assert programs(folder) == kept
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == (tmp_path / "second" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_steps_are_traced_and_nothing_is_kept_where_it_is_not_wanted(tmp_path):
    said = start(tmp_path / "run", "--config.steps=5", "--profile_steps=3:4", "--compiled=")
    assert "trace of steps 3 to 4" in said
    assert list((tmp_path / "run" / "tensorboard").rglob("*.xplane.pb"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("steps", ["10", "5:3", "1:3", "a:b", "", "٢:٣", "2:" + "9" * 5000])
def test_other_steps_are_refused(tmp_path, steps):
    with pytest.raises(ConfigError, match="first:last"):
        Trace(tmp_path, steps)


@pytest.mark.parametrize(("steps", "done"), [("3:6", 0), ("6:7", 0), ("2:4", 3), ("4:5", 3)])
def test_steps_that_the_run_will_not_make_are_refused(tmp_path, steps, done):
    with pytest.raises(ConfigError, match=f"among those to come, {done + 2} ... 5 of this run"):
        Trace(tmp_path, steps, done, 5)


def test_a_run_knows_which_steps_it_will_make(tmp_path):
    with pytest.raises(ConfigError, match="among those to come, 2 ... 4"):
        ask("train", tmp_path, config=page("digits"), profile_steps="3:9")
    assert not list(tmp_path.iterdir())
