"""Folders of exports: whole or not there, weights of every type, refusals that name the option."""
import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Label
from diffusion_jax.pretrained import package
from diffusion_jax.pretrained.reader import read

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.int64(7), "s": np.float32(0.5)}


def test_a_folder_holds_all_of_it(tmp_path):
    files = {"unet/model.safetensors": WEIGHTS, "config.json": {"a": None}, "README.md": "text é", "samples.png": b"\x89PNG"}
    package.write(tmp_path / "out", files)
    found = read(tmp_path / "out" / "unet" / "model.safetensors")
    for key, value in WEIGHTS.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"a": None}
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "text é"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("dtype", package.DTYPES)
def test_weights_are_of_the_type_that_was_asked_for(tmp_path, dtype):
    package.save_weights(tmp_path / "x.safetensors", WEIGHTS, dtype)
    found = read(tmp_path / "x.safetensors")
    assert found["w"].dtype == jnp.dtype(dtype) and found["n"].dtype == np.int64
    np.testing.assert_array_equal(found["w"].astype(np.float32), WEIGHTS["w"])


def test_libraries_of_pytorch_know_the_file(tmp_path):
    from safetensors import safe_open

    package.save_weights(tmp_path / "x.safetensors", WEIGHTS)
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        package.write(tmp_path / "out", {"a.json": {}, "b.json": {"x": object()}})
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        package.write(tmp_path, {"a.json": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_option_that_the_other_program_lacks_is_named():
    with pytest.raises(ConfigError, match="ADM has no null_row True, only False: this Label cannot be written for it"):
        package.only("ADM", Label(3, 4), width=4, null_row=False)
    with pytest.raises(ConfigError, match="takes squares, task.shape is 8x4"):
        package.square("DiT", {"task": {"shape": (8, 4, 3)}})
    with pytest.raises(ConfigError, match="DiT has two: this run cannot"):
        package.refuse("DiT", {"has one": False, "has two": True, "has three": True})


@pytest.mark.parametrize("scale, process, says", [
    ("Eps", dict(name="m:DDPM"), ()), ("Eps", dict(name="m:DDPM", schedule="linear", steps=1000), ()),
    ("V", dict(name="m:DDPM", schedule="squaredcos"), "predicts V under DDPM(schedule=squaredcos)"),
    ("Eps", dict(name="m:DDPM", zero_snr=True), "zero_snr=True"), ("Velocity", dict(name="m:Flow"), "Velocity under Flow()"),
])
def test_another_process_than_the_codes_own_is_said(scale, process, says):
    notes = package.process_note({"task": {"process": process, "scale": {"name": f"m:{scale}"}}}, "Eps", "linear")
    assert notes == () if not says else says in notes[0]
