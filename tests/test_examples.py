"""examples/: each teaches one seam, works by its commands from any folder, and is what docs/your_own_modules.md shows."""
import importlib
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion.gaussian import Gaussian, error
from pages import ROOT

from diffusion_jax import build as builds
from diffusion_jax.build import ConfigError, allow
from diffusion_jax.diffusion import process, samplers, scales, times
from diffusion_jax.diffusion.process import noised
from diffusion_jax.main import first, parsed
from diffusion_jax.modes import module_of, train
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.runs.pages import read
from diffusion_jax.train.state import plain

FILES = sorted((ROOT / "examples").glob("*.py"))
NAMES = [file.stem for file in FILES]
DOC = (ROOT / "docs" / "your_own_modules.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader stands who has copied the examples; nothing of them is imported or allowed, before and after."""
    for file in FILES:
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    packages = set()
    monkeypatch.setattr(builds, "_allowed", lambda: packages)
    yield tmp_path
    for name in NAMES:
        sys.modules.pop(name, None)


def commands(name, program):
    """The commands at the top of an example."""
    lines = (ROOT / "examples" / f"{name}.py").read_text().partition('"""\n')[0].splitlines()
    return [line.strip() for line in lines if line.strip().startswith(program)]


# The files --------------------------------------------------------------------------------------------------------------------


def test_there_are_four_each_short_and_of_commands_that_exist(folder):
    assert NAMES == ["own_dataset", "own_loss", "own_network", "own_sampler"]
    for name, file in zip(NAMES, FILES, strict=True):
        assert len(file.read_text().splitlines()) < 60
        lines = commands(name, "python -m diffusion_jax.main ")
        assert lines
        for line in lines:
            mode, rest = first(["main", *shlex.split(line)[3:]])
            start, _ = parsed(module_of(mode).Options, rest)
            assert list(start.allow) == [name] or name == "own_sampler"


def test_what_the_page_shows_is_what_the_files_hold():
    blocks = re.findall(r"```python\n# examples/(\w+\.py)\n(.*?)```", DOC, re.DOTALL)
    assert {name for name, _ in blocks} == {file.name for file in FILES}
    for name, code in blocks:
        assert code in (ROOT / "examples" / name).read_text(), name


# A network, a data set --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "part"), [("own_network", "ConvNet"), ("own_dataset", "Shapes")])
def test_a_page_with_a_part_of_one_s_own_is_ready_once_that_is_allowed(folder, name, part):
    config = plain(read(f"{name}.py:tiny"))
    with pytest.raises(ConfigError, match=rf"'{name}:{part}' is of a package that is not allowed: give --allow {name} "):
        train.checked(config, "run")
    allow(name)
    start = train.checked(config, "run")
    task, first_batch = start.run.task, start.batches[0]
    batch = {"image": jnp.zeros(first_batch["image"].shape), "label": jnp.asarray(first_batch["label"])}
    params = jax.eval_shape(task.init, jax.random.key(0), batch)
    loss, _ = jax.eval_shape(partial(task.loss, train=True), params, None, batch, jax.random.key(1))
    assert loss.shape == ()


def test_the_shapes_are_what_their_labels_say(folder):
    shapes = importlib.import_module("own_dataset").Shapes()
    inside = [shapes[i]["image"].any(-1) for i in range(200)]
    filled = [image.sum() / (np.ptp(np.nonzero(image), axis=1) + 1).prod() for image in inside]      # of the box around it
    assert min(filled[1::2]) == 1 and np.mean(filled[::2]) < 0.9
    assert (shapes[7]["image"] == shapes[7]["image"]).all() and len(shapes) == 2000


# A sampler --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [process.Cosine(), process.EDM()], ids=["cosine", "edm"])
def test_the_sampler_is_of_second_order_and_ddim_where_it_follows_nothing(folder, kind):
    adams = importlib.import_module("own_sampler").adams
    with jax.enable_x64(True):
        run = error(kind, adams)
        assert math.log2(run(40) / run(80)) > 1.9
        grid, x = times.log_snr(kind, 12, 0.05, 50.0), jnp.linspace(-1, 1, 4)
        outs = [samplers.sample(Gaussian().denoiser(kind), sampler, x, grid, {}, jax.random.key(0))
                for sampler in (adams(kind, follow=0.0), samplers.ddim(kind))]
        np.testing.assert_allclose(*outs, rtol=1e-6)


def test_the_sampler_has_options_and_is_refused_until_it_is_allowed(folder):
    with pytest.raises(ConfigError, match="'own_sampler:adams' is of a package that is not allowed: give --allow own_sampler "):
        Recipe(sampler="own_sampler:adams")
    allow("own_sampler")
    assert Recipe(sampler="own_sampler:adams,follow=0.5").sampler == "own_sampler:adams,follow=0.5"
    with pytest.raises(ConfigError, match="unknown option of adams 'folow': did you mean 'follow'"):
        Recipe(sampler="own_sampler:adams,folow=0.5")


# A loss -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [scales.V(), scales.Eps(), scales.X0()], ids=["v", "eps", "x0"])
def test_the_weight_is_a_sigmoid_on_the_error_of_eps(folder, scale):
    weight = importlib.import_module("own_loss").Sigmoid(bias=-0.5)
    p, t = process.Cosine(), jnp.linspace(0.05, 0.95, 7)
    x0, eps, other = (jax.random.normal(jax.random.key(i), (7, 3)) for i in range(3))
    c, xt = scale(p, t), noised(p, x0, t, eps)
    guess = (xt - p.alpha(t)[:, None] * other) / p.sigma(t)[:, None]                                # eps of another x0
    of_network = ((x0 - other) / c.out[:, None]) ** 2
    log_snr = 2 * jnp.log(p.alpha(t) / p.sigma(t))
    want = jax.nn.sigmoid(-0.5 - log_snr)[:, None] * (eps - guess) ** 2
    np.testing.assert_allclose(weight(p, t, c)[:, None] * of_network, want, rtol=1e-3)


# All of it, in processes of their own -----------------------------------------------------------------------------------------


FEW = ["--config.evaluate.num=20", "--config.evaluate.every=0", "--config.sample.num=4", "--config.steps=3"]


def small(command, name):
    """A command of an example as it stands, in a few steps."""
    parts = shlex.split(command)
    if "--config" in parts:
        at = parts.index("--config") + 1
        parts[at] = "digits:tiny" if parts[at] == "digits" else parts[at]
        parts += FEW
    return [*parts, "3"] if name == "own_loss" and parts[1].endswith(".py") else parts


def python(folder, arguments):
    """What a process does with the installed package."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_runs_from_another_folder_by_its_own_commands(folder, name):
    for command in commands(name, "python "):
        parts = small(command, name)
        done = python(folder, parts[1:])
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        if "--allow" in parts:
            at = parts.index("--allow")
            done = python(folder, [*parts[1:at], *parts[at + 2 :]])
            assert done.returncode == 2 and f"give --allow {name} " in done.stderr, done.stderr[-2000:]
    made = {path.name for path in Path(folder, "runs").rglob("*.png")}
    assert made & {"samples.png", "threes.png", "adams.png"}
