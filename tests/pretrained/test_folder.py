"""A folder of diffusers: its options, and which of its files holds the weights."""
import json

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import folder


def test_options_are_what_the_json_says_or_the_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, 2]}))
    assert folder.options(tmp_path) == {"a": [1, 2]}
    (tmp_path / "other.json").write_text('{"a"')
    for name in ("other.json", "none.json"):
        with pytest.raises(ConfigError, match=f"{name} does not read as JSON"):
            folder.options(tmp_path, name)


def test_safetensors_come_before_pickles_and_diffusers_before_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "read", lambda path: path.name)
    with pytest.raises(ConfigError, match="holds no weights; they are called diffusion_pytorch_model.safetensors, "):
        folder.weights(tmp_path)
    for name in ("pytorch_model.bin", "model.safetensors", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).touch()                                              # each is preferred to all before it
        assert folder.weights(tmp_path) == name


def test_weights_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"a": np.arange(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    assert folder.weights(tmp_path)["a"].tolist() == [0, 1, 2]
