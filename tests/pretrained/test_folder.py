"""A folder of diffusers: its options, and which of its files holds the weights."""
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import folder


def test_options_are_what_the_json_says_or_the_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, 2]}))
    assert folder.options(tmp_path) == {"a": [1, 2]}
    (tmp_path / "other.json").write_text('{"a"')
    for name, says in (("other.json", "other.json does not read as JSON"), ("none.json", "there is no .*none.json: check")):
        with pytest.raises(ConfigError, match=says):
            folder.options(tmp_path, name)


def test_safetensors_come_before_pickles_and_diffusers_before_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "read", lambda path: path.name)
    with pytest.raises(ConfigError, match="holds no weights; they are called diffusion_pytorch_model.safetensors, "):
        folder.weights(tmp_path)
    for name in ("pytorch_model.bin", "model.safetensors", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).touch()                                              # each is preferred to all before it
        assert folder.weights(tmp_path) == name


def test_weights_are_read(tmp_path):
    save_file({"a": np.arange(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    assert folder.weights(tmp_path)["a"].tolist() == [0, 1, 2]


W = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float16)}


def saved(folder, *names, weights=W):
    for name in names:
        save_file(weights, folder / name)


def index(folder, table, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 10**18}, "weight_map": table}))


@pytest.mark.parametrize("name", [
    "model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.fp16.safetensors.index.json", "diffusion_pytorch_model.safetensors.fp16.index.json",
])
def test_shards_are_read_by_their_index(tmp_path, name):
    saved(tmp_path, "part-1.safetensors", weights={"a": W["a"]})
    saved(tmp_path, "part-2.safetensors", weights={"b": W["b"]})
    index(tmp_path, {"a": "part-1.safetensors", "b": "part-2.safetensors"}, name)
    got = folder.weights(tmp_path)
    assert got.keys() == W.keys()
    for key, value in W.items():
        np.testing.assert_array_equal(got[key], value)


VARIANTS = {                               # what lies there -> what is taken
    "one": (["model.fp16.safetensors"], "model.fp16.safetensors"),
    "in full": (["diffusion_pytorch_model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
    "two": (["diffusion_pytorch_model.bf16.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
    "unknown": (["diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.ema.safetensors"],
                "diffusion_pytorch_model.ema.safetensors"),
    "whole before shards": (["model.safetensors", "model.safetensors.index.json"], "model.safetensors"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_taken_where_the_weights_in_full_are_not_there(tmp_path, monkeypatch, capsys, name):
    names, want = VARIANTS[name]
    monkeypatch.setattr(folder, "read", lambda path: path.name)
    for file in names:
        (tmp_path / file).touch()
    assert folder.weights(tmp_path) == want
    assert ("weights in full are not there" in capsys.readouterr().out) == (want != "model.safetensors")


HOSTILE = {                                # an index, and what is said of it
    "up": ({"a": "../part.safetensors"}, "names '../part.safetensors', which is no file of weights in its folder"),
    "far up": ({"a": "../../../../etc/passwd"}, "is no file of weights in its folder"),
    "absolute": ({"a": "/etc/passwd"}, "is no file of weights in its folder"),
    "another kind of file": ({"a": "config.json"}, "is no file of weights in its folder"),
    "a number": ({"a": 3}, "has no weight_map from names to files"),
    "a list": (["part.safetensors"], "has no weight_map from names to files"),
    "nothing": ({}, "has no weight_map from names to files"),
    "a part that is not there": ({"a": "part.safetensors", "b": "none.safetensors"}, "none.safetensors, which is not there"),
    "a name that its part has not": (dict.fromkeys("abc", "part.safetensors"), "differ in 'c'"),
    "a name too few": ({"a": "part.safetensors"}, "differ in 'b'"),
    "a link": ({"a": "link.safetensors", "b": "link.safetensors"}, "is a link to .*, outside of its folder"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_names_files_of_its_own_folder(tmp_path, name):
    table, says = HOSTILE[name]
    inner = tmp_path / "sd" / "unet"
    inner.mkdir(parents=True)
    saved(tmp_path, "outside.safetensors")
    saved(inner, "part.safetensors")
    (inner / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    index(inner, table)
    with pytest.raises(ConfigError, match=says) as error:
        folder.weights(inner)
    assert "\n" not in str(error.value)


JSON = {                                   # a file of options, and what is said of it
    "deep": ("[" * 100_000, "does not read as JSON"),
    "a list": ("[1]", "holds a list, not a mapping"),
    "a number of thousands of digits": ('{"a": 1' + "0" * 5000 + "}", "does not read as JSON"),
    "no text": (b"\xff\xfe", "does not read as JSON"),
    "nothing": ("", "does not read as JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_options_that_are_none_are_refused_in_one_line(tmp_path, name):
    content, says = JSON[name]
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=says) as error:
        folder.options(tmp_path)
    assert "\n" not in str(error.value)


def test_huge_options_are_refused_before_they_are_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)                                                   # a terabyte that takes no room
    with pytest.raises(ConfigError, match="too large for a file of options"):
        folder.options(tmp_path)


def test_links_lead_no_further_than_the_cache_of_hugging_face(tmp_path):
    cache, other = tmp_path / "models--a--b", tmp_path / "other"
    for place in (cache / "blobs", cache / "snapshots" / "1" / "unet", other):
        place.mkdir(parents=True)
    (cache / "blobs" / "0123").write_text('{"a": 1}')
    (other / "secret").write_text('{"a": 2}')
    part = cache / "snapshots" / "1" / "unet"
    (part / "config.json").symlink_to("../../../blobs/0123")
    assert folder.options(part) == {"a": 1}
    (part / "other.json").symlink_to(other / "secret")
    with pytest.raises(ConfigError, match="is a link to .*secret, outside of its folder: copy the file itself there"):
        folder.options(part, "other.json")


CHECKED = {                                # a config, and what is said of it
    "another value": ({"b": 2}, "no network here has b 2 of x/config.json: only 1"),
    "null": ({"b": None}, ""), "plain": ({"b": 1, "a": 5, "_class_name": "Y"}, ""), "nothing": ({}, ""),
    "unknown": ({"c": 1, "d": 2}, "x/config.json has c, d, which no network known here reads: left out"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_every_key_of_a_config_is_read_refused_or_announced(name, capsys):
    config, says = CHECKED[name]
    if says.startswith("no network"):
        with pytest.raises(ConfigError, match=says):
            folder.checked(config, {"b": 1}, ("a",), "x/config.json")
        return
    folder.checked(config, {"b": 1}, ("a",), "x/config.json")
    assert says in (out := capsys.readouterr().out) and bool(says) == bool(out)
