"""Every page of configs/: the full one makes sense, the tiny one trains, saves, loads and samples."""
import importlib.util
from pathlib import Path

import pytest

from diffusion_jax.modes import config as page
from diffusion_jax.modes import sample, train
from diffusion_jax.train.checkpoint import available
from diffusion_jax.train.state import plain, task_of

PAGES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def get_config(path, arg):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"configs/{path.name}" in module.__doc__, "a page's docstring holds its exact command"
    return module.get_config(arg)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_full_page_builds_its_task(path):
    config = plain(get_config(path, ""))
    page.check(config)
    page.recipe_of(config, {}).check(task_of(config))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_tiny_page_trains_saves_loads_and_samples(path, tmp_path):
    config = get_config(path, "tiny")
    config.steps = 2
    train.run(config, str(tmp_path), {})
    assert available(tmp_path) == [2]
    sample.run(None, str(tmp_path), dict(num=3, steps=2, out=str(tmp_path / "x.png")))
    assert (tmp_path / "x.png").stat().st_size > 0
