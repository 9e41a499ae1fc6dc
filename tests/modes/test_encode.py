"""From an autoencoder's folder to latents, to a model of them, to images: every step by its mode."""
import json
from pathlib import Path

import numpy as np
import pytest
from pages import ask, page

from diffusion_jax.build import ConfigError
from diffusion_jax.data.latents import Draw, Latents
from diffusion_jax.data.pictures import save_png
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.session import replayed
from diffusion_jax.train.checkpoint import load


@pytest.mark.slow
@pytest.mark.parametrize("arg", ["", "vq"])
def test_a_model_of_encoded_digits_samples_digits(arg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = page("digits_vae", arg)
    config.update(steps=2, batch=8)
    ask("train", "vae", config=config)
    ask("likelihood", "vae", num=20)
    assert Path("vae/reconstructions.png").is_file() and 0 < json.loads(Path("vae/likelihood.json").read_text())["PSNR (dB)"] < 40
    ask("encode", "vae", out="latents", batch=64)
    latents = Latents("latents")
    draws = np.stack([Draw("latents")(latents[i], np.random.default_rng(i))["image"] for i in range(0, 1500, 3)])
    assert draws.shape[1:] == (4, 4, 2) and len(latents) == 1500 and latents.names[3] == "3"
    np.testing.assert_allclose([draws.mean((0, 1, 2)), draws.std((0, 1, 2))], [[0, 0], [1, 1]], atol=0.15)

    config = page("flowers102_ldm", "latents")
    config.update(steps=2, batch=8)
    config.model.update(width=32, depth=1, heads=4, channels=2)
    config.task.update(shape=(4, 4, 2))
    config.task.cond.update(num_classes=10, width=32)
    config.sample.update(num=4, steps=2)
    ask("train", "ldm", config=config)
    ask("sample", "ldm", num=3, out="x.npz")
    assert np.load("x.npz")["arr_0"].shape == (3, 8, 8, 1)
    assert load("ldm")[1].first_stage.scale == load("latents/first_stage")[1].scale != 1.0
    save_png(Path("x.png"), np.load("x.npz")["arr_0"][0])
    for op, values in (("invert", ()), ("strength", (0.5,))):
        ask("edit", "ldm", op=op, images="x.png", label=3, steps="2", out=f"{op}.png", values=values)
    story = {"image": "x.png", "edits": [{"rect": [[0, 0, 3, 8]], "label": 4, "steps": "2"}]}
    first, second = replayed(pipeline("ldm"), story)
    assert (first[3:] == second[3:]).all() and (first[:3] != second[:3]).any()
    for options in ({}, {"out": "latents"}):
        with pytest.raises(ConfigError, match="--out"):
            ask("encode", "vae", **options)
    with pytest.raises(ConfigError, match="holds a diffusion model: give the folder of an autoencoder"):
        ask("encode", "ldm", out="other")
