"""One's own pictures from the command line: trained, resumed, sampled by name, measured, in process."""
import json
import re
from pathlib import Path

import numpy as np
import own_pictures as own
import pytest
from pages import refused

from diffusion_jax.data.pictures import read_batch
from diffusion_jax.runs.folder import open_run
from diffusion_jax.train.checkpoint import available

QUICK = ("--config.evaluate.num=0", "--config.sample.every=1000", "--config.checkpoint.every=1")


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffusion_jax.data.tokenizers._clip_is_installed", bool)


def five(result):
    """The five lines of a run's start."""
    return re.findall(r"^(?:data|task|model|training|changing)  .*$", result.out, re.MULTILINE)


@pytest.mark.slow
def test_a_folder_is_trained_on_as_it_is_and_gone_on_with_from_its_page(cli, tmp_path):
    own.classes(tmp_path / "photos")
    command = ("--config", "folder:photos/,tiny", "--workdir", "run", *QUICK)
    done = cli(*command, "--config.steps=1")
    assert done.code == 0, done.err
    lines = five(done)
    assert len(lines) == 5 and "held out" in lines[0] and "one of 3 classes: daisy, rose, tulip" in lines[1]
    new = tmp_path / "photos" / "rose" / "new.png"
    own.picture(new, 99)
    assert refused(cli(*command), "trained on other data", "--config.data.changed=True") and available("run") == [1]
    new.unlink()
    assert cli("--mode", "page", *command[:2], *QUICK, "--out", "mine.py").code == 0
    text = (tmp_path / "mine.py").read_text()
    left_out = re.sub(r" shape=\(8, 8, 3\),|, num_classes=3| channels=3,(?= depth)", "", re.sub(r"\n {8,}", " ", text))
    assert left_out.count("num_classes") + left_out.count("shape=") == 0 < text.count("num_classes")
    (tmp_path / "mine.py").write_text(left_out)
    again = cli("--config", "mine.py", "--workdir", "run", "--config.steps=2")                 # filled, it is the same page
    assert again.code == 0 and not five(again) and available("run")[-1] == 2, again.err
    config = open_run("run").config
    assert config["task"]["cond"]["cond"]["num_classes"] == 3 and config["task"]["shape"] == [8, 8, 3]


@pytest.mark.slow
@pytest.mark.parametrize("variants", ["", ",unet", ",edm2"])
def test_classes_all_the_way(cli, tmp_path, variants):
    own.classes(tmp_path / "photos")
    done = cli("--config", f"folder:photos/{variants},tiny", "--workdir", "run")
    assert done.code == 0, done.err
    assert cli("--mode", "sample", "--workdir", "run", "--label", "1", "--num", "3", "--out", "roses.npz").code == 0
    with np.load("roses.npz") as made:
        assert made["arr_0"].shape == (3, 8, 8, 3) and set(made["arr_1"]) == {1}
    assert cli("--mode", "evaluate", "--workdir", "run", "--num", "20").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("variants", ["", ",unet"])
def test_captions_all_the_way(cli, tmp_path, variants):
    own.told(own.classes(tmp_path / "photos"))
    done = cli("--config", f"folder:photos/,text{variants},tiny", "--workdir", "run")
    assert done.code == 0 and "their captions, by Words" in five(done)[1], done.err
    assert cli("--mode", "sample", "--workdir", "run", "--prompt", "a red tulips", "--num", "2", "--out", "x.png").code == 0
    assert read_batch("x.png")[0].shape[-1] == 3
    wrong = cli("--mode", "sample", "--workdir", "run", "--prompt", "a blue rose", "--num", "2", "--out", "y.png")
    assert refused(wrong, "unknown word 'blue'")


@pytest.mark.slow
def test_latents_all_the_way(cli, tmp_path):
    own.classes(tmp_path / "photos")
    train = "python -m diffusion_jax.main --config "
    missing = cli("--config", "folder:photos/,latent,tiny", "--workdir", "run")
    assert refused(missing, f"{train}folder:photos/,vae --workdir runs/photos_vae", "--mode encode --workdir runs/photos_vae")
    commands = (
        ("--config", "folder:photos/,vae,tiny", "--workdir", "runs/photos_vae"),
        ("--mode", "encode", "--workdir", "runs/photos_vae", "--out", "runs/photos_latents"),
        ("--config", "folder:photos/,tiny", "--config.first_stage=runs/photos_latents", "--workdir", "run"),
        ("--mode", "sample", "--workdir", "run", "--label", "2", "--num", "2", "--out", "x.npz"),
        ("--mode", "evaluate", "--workdir", "run", "--num", "20"),
    )
    for command in commands:
        done = cli(*command)
        assert done.code == 0, done.err
    with np.load("x.npz") as made:
        assert made["arr_0"].shape == (2, 8, 8, 3)
    report = json.loads(Path("run/report.json").read_text())
    assert {"accuracy[pixel SVC]", "novelty[pixels]", "closer[pixels]"} <= report.keys()    # against the pictures
    on_the_way = "--config.first_stage=runs/photos_latents/first_stage"
    done = cli("--config", "folder:photos/,latent,tiny", on_the_way, "--workdir", "other")
    assert done.code == 0, done.err
