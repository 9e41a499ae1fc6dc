"""From an autoencoder's folder to latents, to a model of them, to images: every step by its mode."""
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pages import ask, page, without_data
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.data.latents import Draw, Latents, Writer
from diffusion_jax.data.pictures import save_png
from diffusion_jax.modes import encode
from diffusion_jax.pipelines import lora
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


# Ended half-way, and what is refused ----------------------------------------------------------------------------------------


@pytest.fixture
def coders(tmp_path, monkeypatch):
    """Autoencoders of the digits by their digest, whose latents are that number: their folder is its name."""
    pytest.importorskip("array_record")
    data = page("digits_vae").to_dict()["data"] | {"train": dict(name="diffusion_jax.data.digits:Digits", split="test")}
    run = without_data("digits_vae", tmp_path, data=data)

    def opened(folder, *_):
        number = int(Path(folder).name)
        params = {"model": {"w": {"kernel": np.full((3, 2), number, np.float32)}}}
        return run._replace(folder=folder, digest=number, model=run.model.replace(params=params))

    monkeypatch.setattr(lora, "open_run", opened)
    monkeypatch.setattr(encode, "_moments", lambda model, rows, views: np.full(
        (len(rows), views, 2, 2, 2, 1), model.params["model"]["w"]["kernel"][0, 0]))
    return run


def ends_at(monkeypatch, place):
    """Encoding is ended by Ctrl-C at a place: in a split, at the first stage, at latents.json."""
    write, save_scaled, whole = Writer.write, encode.save_scaled, encode.whole

    records = iter(range(10_000))

    def written(self, *arguments):
        write(self, *arguments)
        if next(records) == {"train": 100, "test": 400}.get(place):
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "write", written)
    if place == "first_stage":
        monkeypatch.setattr(encode, "save_scaled", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    if place == "latents.json":
        monkeypatch.setattr(encode, "whole", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    return lambda: [monkeypatch.setattr(*each) for each in (
        (Writer, "write", write), (encode, "save_scaled", save_scaled), (encode, "whole", whole))]


@pytest.mark.parametrize("place", ["train", "test", "first_stage", "latents.json"])
def test_an_encoding_that_was_ended_is_done_anew_with_other_weights(coders, tmp_path, monkeypatch, capsys, place):
    on = ends_at(monkeypatch, place)
    with pytest.raises(KeyboardInterrupt):
        ask("encode", tmp_path / "1", out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="latents.json: no such file"):
        len(Latents(str(tmp_path / "out")).about)
    on()
    ask("encode", tmp_path / "2", out=str(tmp_path / "out"))
    assert "holds an encoding that was ended: it is done anew" in capsys.readouterr().out
    latents = Latents(str(tmp_path / "out"))
    assert len(latents) == 297 and {float(latents[i]["moments"].max()) for i in range(297)} == {2.0}
    assert latents.about["autoencoder"] == {"run": str(tmp_path / "2"), "which": "params", "step": 0, "digest": 2}
    assert load(tmp_path / "out" / "first_stage")[2]["model"]["w"]["kernel"].tolist() == [[2, 2]] * 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "first_stage", "latents.json", "test.array_record", "train.array_record"]
    with pytest.raises(ConfigError, match="holds latents, or a run, already: choose another --out"):
        ask("encode", tmp_path / "2", out=str(tmp_path / "out"))


def test_latents_are_of_the_autoencoder_with_its_lora_and_say_so(coders, tmp_path):
    file = tmp_path / "mine.safetensors"
    factors = {"down": np.ones((3, 1), np.float32), "up": np.ones((1, 2), np.float32), "alpha": np.float32(1)}
    save_file({f"model/w/kernel.{name}": np.asarray(factor) for name, factor in factors.items()}, file)
    ask("encode", tmp_path / "1", out=str(tmp_path / "out"), lora=(f"{file}=4",))
    latents = Latents(str(tmp_path / "out"))
    assert {float(latents[i]["moments"].min()) for i in range(0, 297, 50)} == {1 + 4}
    assert load(tmp_path / "out" / "first_stage")[2]["model"]["w"]["kernel"].tolist() == [[5, 5]] * 3
    (described,) = latents.about["autoencoder"]["loras"]
    assert described == {"file": str(file), "strength": 4, "content": hashlib.sha256(file.read_bytes()).hexdigest()}
    with pytest.raises(ConfigError, match="there is no file .*other.safetensors"):
        ask("encode", tmp_path / "1", out=str(tmp_path / "not"), lora=(str(tmp_path / "other.safetensors"),))
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("name", ["train.array_record", "test.array_record", "latents.json"])
def test_what_others_left_is_not_written_over(coders, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("theirs")
    with pytest.raises(ConfigError, match="choose another --out"):
        ask("encode", tmp_path / "1", out=str(tmp_path / "out"))
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["theirs"]


@pytest.mark.parametrize(("changes", "says"), [
    ({"test": None}, "needs data.test"), ({"decode": None}, "needs data.decode"),
    ({"decode": {"name": "diffusion_jax.data.latents:Draw", "path": "x"}}, "data.decode is of something else"),
    ({"decode": {"name": "diffusion_jax.data.image:Decode", "size": 8, "channels": 3}}, "reads images of 1 channels, .* gives 3"),
])
def test_data_that_are_none_for_this_autoencoder_are_refused_first(coders, tmp_path, monkeypatch, changes, says):
    data = {name: part for name, part in (coders.config["data"] | changes).items() if part is not None}
    other = coders._replace(config=coders.config | {"data": data})
    monkeypatch.setattr(encode, "opened", lambda *_: other)
    monkeypatch.setattr(encode, "encoded", lambda *_: pytest.fail("it is encoded"))
    with pytest.raises(ConfigError, match=says):
        ask("encode", tmp_path / "1", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_anything_is_no_new_one(tmp_path):
    (tmp_path / "photos" / "rose").mkdir(parents=True)
    with pytest.raises(ConfigError, match="photos is not empty, it holds 'rose': choose another --out"):
        ask("encode", tmp_path / "vae", out=str(tmp_path / "photos"))
