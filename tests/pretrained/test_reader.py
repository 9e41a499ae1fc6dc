"""Weights files: the same arrays from every format, and nothing but arrays."""
import argparse
import pickle
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained.reader import read

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64), "c": np.ones(2, np.float16)}


def write(path, content):
    """`content`, arrays at any depth, in the format of the file's name."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        torch = pytest.importorskip("torch")

        def tensors(value):
            if isinstance(value, dict):
                return {key: tensors(item) for key, item in value.items()}
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

        torch.save(tensors(content), path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pt", "w.ckpt"])
def test_every_format_gives_the_same_arrays(tmp_path, name):
    got = read(write(tmp_path / name, STATE))
    assert got.keys() == STATE.keys()
    for key, value in STATE.items():
        assert isinstance(got[key], np.ndarray) and got[key].dtype == value.dtype
        np.testing.assert_array_equal(got[key], value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.pt"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    if name == "w.pt":
        pytest.importorskip("torch")
    whole = write(tmp_path / name, STATE).read_bytes()
    for content in (b"", b"no weights at all", b"each line\nof this\nis text\n", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_part_of_a_training_checkpoint(tmp_path):
    content = {"model": {"w": np.zeros(2, np.float32)}, "ema": {"w": np.ones(2, np.float32)}, "args": argparse.Namespace(lr=1e-4)}
    path = write(tmp_path / "w.pt", content)
    np.testing.assert_array_equal(read(path, key="ema")["w"], [1, 1])
    with pytest.raises(ConfigError, match="holds model, ema in place of one state dict: save its weights alone"):
        read(path)
    with pytest.raises(ConfigError, match="or one under 'modle'"):
        read(path, key="modle")


def test_a_flat_file_needs_no_key(tmp_path):
    assert read(write(tmp_path / "w.npz", STATE), key="ema").keys() == STATE.keys()


def test_bfloat16_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)}, tmp_path / "w.pt")
    got = read(tmp_path / "w.pt")["w"]
    assert got.dtype == np.float32 and got.tolist() == [1.5, 2.0]


class Bomb:
    """A pickle that creates a file when it is loaded by the unrestricted loader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    fuse = tmp_path / "fuse"
    if zipped:
        torch.save({"w": Bomb(fuse)}, tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(pickle.dumps({"w": Bomb(fuse)}, protocol=2))
    with pytest.raises(ConfigError, match=r"refused: it names \S+open, which is code") as error:
        read(tmp_path / "w.pt")
    assert "\n" not in str(error.value) and not fuse.exists()


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([Bomb(tmp_path / "fuse")], dtype=object))
    with pytest.raises(ConfigError, match=r"w\.npz"):
        read(tmp_path / "w.npz")
    assert not (tmp_path / "fuse").exists()


def test_what_is_no_state_dict_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="step is a int, not an array"):
        read(write(tmp_path / "w.pt", {"w": np.zeros(1), "step": 3}))


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pt").touch()
    with pytest.raises(ConfigError, match=r"pip install 'diffusion_jax\[torch\]'"):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("name, message", [("w.onnx", "unknown kind of weights file '.onnx'"), ("w.npz", "there is no file")])
def test_other_files_are_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name)


def test_what_lightning_keeps_beside_the_weights_is_not_imported(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    module = types.ModuleType("pytorch_lightning")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    beside = {module.ModelCheckpoint: {"best": np.float64(3), "self": module.ModelCheckpoint()}}
    torch.save({"callbacks": beside, "state_dict": {"w": torch.ones(2)}}, tmp_path / "w.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    np.testing.assert_array_equal(read(tmp_path / "w.ckpt", "state_dict")["w"], [1, 1])
    assert module.__name__ not in sys.modules
