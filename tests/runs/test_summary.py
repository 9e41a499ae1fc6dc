"""The five lines that a new run begins with."""
import own_pictures as own
import pytest
from pages import page

from diffusion_jax.build import build
from diffusion_jax.runs import pages
from diffusion_jax.runs.summary import summary
from diffusion_jax.train.state import plain, task_of

STARTS = ("data      ", "task      ", "model     ", "training  ", "changing  ")


def of(config):
    config = plain(config)
    lines = summary(config, task_of(config), build(config["data"]["train"]))
    assert len(lines) == 5 and all(line.startswith(start) and "\n" not in line for line, start in zip(lines, STARTS, strict=True))
    return "\n".join(line[10:] for line in lines)


@pytest.mark.parametrize(("layout", "variants", "says"), [
    (own.classes, "", ("a diffusion model of 8x8x3, told one of 3 classes: daisy, rose, tulip",
                       "DiT: patch 2, width 128, depth 6", "adamw, lr 0.001", "--config.steps=10000")),
    (own.loose, ",unet", ("told nothing of them", "UNet: width 32, mults 1, depth 2, heads 4, dropout 0.2")),
    (own.captioned, "", ("told their captions, by Words", "block cross_attention")),
    (own.loose, ",vae", ("an autoencoder of 8x8x3\n", "KL: width 32, mults 1-2, depth 1, latent 4",
                         "times; disc: adam, lr 0.0002; model: adam, lr 0.001")),
])
def test_a_folder_s_run(tmp_path, layout, variants, says, monkeypatch):
    monkeypatch.setattr("diffusion_jax.data.tokenizers._clip_is_installed", bool)
    layout(tmp_path / "photos")
    config = pages.read(f"folder:{tmp_path}/photos{variants}")
    text = of(config)
    held_out = len(build(plain(config)["data"]["test"]))
    records = 18 if layout is own.classes else 12
    assert f"{records - held_out} records of {tmp_path}/photos to train on, {held_out} held out" in text
    steps = f"5,000 steps of {config.batch}, each record {5000 * config.batch / (records - held_out):,.0f} times"
    assert all(part in text for part in (steps, *says)), text


KINDS = ("", "_edm2", "_classifier", "_clip", "_dvae", "_vae", "_glide")


@pytest.mark.parametrize("name", [f"digits{kind}" for kind in KINDS])
def test_every_kind_of_run_has_them(name):
    text = of(page(name))
    assert "records of Digits to train on\n" in text and "4 steps of 16" in text
    if name == "digits":                                                       # so many are not named
        assert "told one of 10 classes\n" in text
