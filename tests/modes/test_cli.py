"""The command line: one line of error, an exit code that is not 0, and nothing lost."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from pages import ROOT, files, page
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import sample, train
from diffusion_jax.train.checkpoint import available

DIGITS = str(ROOT / "configs" / "digits.py:tiny")


def command(*arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.run([sys.executable, "-m", "diffusion_jax.main", *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT, env=clean | environment, timeout=300)


def test_the_command_line_is_light():
    heavy = ("jax", "flax", "orbax", "tensorflow_datasets", "sklearn", "matplotlib", "grain")
    code = f"import sys, diffusion_jax.main; print([m for m in {heavy} if m in sys.modules and m not in ('jax', 'flax')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert out.stdout.strip() == "[]", out.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--config", DIGITS, "--config.model.detph=3"), "detph"),
        (("--config", DIGITS, "--config.task.scale.name=os:system"), "diffusion_jax"),
        (("--mode", "train"), "--config"),
        (("--mode", "sample", "--label", "three"), "label"),
    ],
    ids=["unknown override", "foreign symbol", "no config", "label that is no number"],
)
def test_errors_are_one_line(tmp_path, arguments, says):
    done = command("--workdir", tmp_path / "run", *arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert [line for line in lines if line.startswith("error: ") and says in line], done.stderr
    assert not (tmp_path / "run").exists() or not files(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(stpes=10), "did you mean 'steps'"),
        (dict(sample=dict(num=4, every=2, sampler="ddmi")), "did you mean 'ddim'"),
        (dict(data=dict(train=dict(name="diffusion_jax.data.digits:Digits", split="trian"), test={}, decode={})), "did you mean"),
        (dict(batch=10, accumulate=3), "multiple"),
        (dict(mesh=dict(data=3, fsdp=1, tensor=1)), "devices"),
        (dict(sharding=(("no/such/path", "fsdp"), (".*", "replicate"))), "no/such/path"),
    ],
    ids=["unknown key", "unknown sampler", "unknown split", "batch", "mesh", "rule without a path"],
)
def test_a_page_is_checked_before_anything_is_written(tmp_path, changes, says):
    config = page("digits").to_dict() | changes
    with pytest.raises(ConfigError, match=says):
        train.run(config, str(tmp_path), {})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_folder_of_another_config_is_refused_and_kept(tiny_run):
    before = files(tiny_run)
    config = page("digits")
    config.model.depth = 2
    with pytest.raises(ConfigError, match="model.depth"):
        train.run(config, str(tiny_run), {})
    assert files(tiny_run) == before


def test_damaged_checkpoints_are_named_and_kept(tiny_run, tmp_path):
    damaged = tmp_path / "run"
    shutil.copytree(tiny_run, damaged)
    for path in (damaged / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000 and "state" in path.parts:
            path.write_bytes(path.read_bytes()[:1000])
    before = files(damaged)
    with pytest.raises(ConfigError, match="damaged|read") as error:
        sample.run(None, str(damaged), dict(num=2, out=str(tmp_path / "x.png")))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError):
        train.run(page("digits", steps=6), str(damaged), {})
    assert {name: content for name, content in files(damaged).items() if name in before} == before


def test_a_corrupt_image_is_named(tmp_path):
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "data" / label / f"{i}.png")
    broken = tmp_path / "data" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    config = page("digits")
    folder = dict(name="diffusion_jax.data.folder:Folder", path=str(tmp_path / "data"))
    config.data.train = config.data.test = folder
    with pytest.raises(ConfigError, match="b/3.png"):
        train.run(config, str(tmp_path / "run"), {})
    assert broken.exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = page("digits", steps=40)
    config.optim = dict(name="diffusion_jax.train.optim:optimizer", method="adam", lr=1e30)
    with pytest.raises(ConfigError, match="at step [12], stopped; there is no checkpoint yet"):
        train.run(config, str(tmp_path), {})
    assert not available(tmp_path)
