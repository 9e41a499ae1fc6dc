"""The experiments with flowers: each command in the docstring of configs/flowers102_dit.py, and texts, at tiny scale."""
import re
import shlex

import numpy as np
import pytest
from pages import ROOT, ask, page
from PIL import Image

from diffusion_jax.data.digits import Digits
from diffusion_jax.data.pictures import save_png

pytestmark = pytest.mark.slow


def commands(name):
    """The arguments of every command of mode edit in a page's docstring."""
    said = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1].replace("\\\\\n", " ")
    return [shlex.split(line)[3:] for line in said.splitlines() if re.match(r"\s+python -m diffusion_jax.main .*mode edit", line)]


def trained(name, folder, steps=2, lr=None):
    config = page(name, steps=steps)
    config.evaluate.num = 0
    if lr is not None:
        config.optim.update(lr=lr, warmup=0)
    ask("train", folder, config=config)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    trained("flowers102_dit", folder / "run")
    save_png(folder / "flower.png", Digits("test")[0]["image"])
    return folder


@pytest.mark.parametrize("arguments", commands("flowers102_dit"), ids=lambda arguments: arguments[arguments.index("--op") + 1])
def test_an_experiment_writes_a_grid_and_an_animation(arguments, flowers, cli, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    paths = {"runs/flowers": str(flowers / "run"), "flower.png": str(flowers / "flower.png")}
    result = cli(*(paths.get(part, part) for part in arguments), "--steps", "3", "--num", "2", "--out", tmp_path / "x.png")
    assert result.code == 0, result.err
    values = arguments[arguments.index("--values") + 1].split(",") if "--values" in arguments else range(3)
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.size == (18, 10 * len(values) - 2)
    with Image.open(tmp_path / "x.gif") as film:
        assert 1 <= film.n_frames <= len(values)                             # frames that are equal become one
    assert (tmp_path / "x.mp4").stat().st_size > 500


def test_texts_stand_for_images_where_no_text_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained("flowers102_clip", "flowers102_clip")
    trained("flowers102_features", "run", steps=4, lr=0.02)                  # few large steps: the network starts as zero

    def sampled(**asked):
        ask("sample", "run", num=2, steps=2, out="x.npz", guidance=9.0, which="params", **asked)
        with np.load("x.npz") as arrays:
            return arrays["arr_0"]

    three, again, seven = (sampled(prompt=(f"a handwritten {word}",), prior="text") for word in ("three", "three", "seven"))
    assert three.shape == sampled().shape == (2, 8, 8, 1)
    assert (three == again).all() and (three != seven).any()                 # of the same noise
    assert (tmp_path / "run" / "first_stage").is_dir()
