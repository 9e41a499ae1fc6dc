"""TorchScript archives: read without torch, and refused where they hold anything but modules and tensors."""
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import reader, torchscript


def archive(path, script):
    """A TorchScript archive with a data.pkl of our own."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("clip/constants.pkl", b"")
        file.writestr("clip/data.pkl", script)
    return path


def test_a_torchscript_archive_is_read_without_torch(tmp_path):
    torch = pytest.importorskip("torch")

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
            self.register_buffer("narrow", torch.ones(2, dtype=torch.float16))
            self.sizes = [1, 2]

        def forward(self, x):
            return x @ self.weight + float(self.sizes[0])

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x)

    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.script(Outer()), path)
    assert torchscript.is_torchscript(path)
    found = reader.read(path)
    np.testing.assert_array_equal(found["inner.weight"], np.arange(6.0).reshape(2, 3).T)
    assert found["inner.narrow"].dtype == np.float16 and set(found) == {"inner.weight", "inner.narrow"}


def test_an_archive_with_anything_else_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    path = archive(tmp_path / "harm.pt", pickle.dumps(Harm()))
    with pytest.raises(ConfigError, match="it names builtins.print"):
        reader.read(path)
    with pytest.raises(ConfigError, match="refused"):
        reader.read(archive(tmp_path / "cut.pt", b"\x80"))


def test_a_tensor_stays_in_its_storage():
    storage = np.arange(6.0, dtype=np.float32)
    np.testing.assert_array_equal(torchscript._tensor(storage, 1, (2, 2), (1, 2)), [[1, 3], [2, 4]])
    for offset, size, stride in ((4, (3,), (1,)), (0, (4,), (2,)), (-1, (1,), (1,)), (5, (2,), (-1,))):
        with pytest.raises(pickle.UnpicklingError):
            torchscript._tensor(storage, offset, size, stride)


class FloatStorage:
    """torch's, of which the pickle has the name."""


def _rebuild_tensor_v2(*args):
    raise AssertionError("torch is not needed")


FLOATS = FloatStorage()
"""Six floats that the archive holds as data/0."""


class Tensor:
    """A view of `FLOATS` from the second on."""

    def __init__(self, size, stride):
        self.view = (1, size, stride, False, {})

    def __reduce__(self):
        return _rebuild_tensor_v2, (FLOATS, *self.view)


class Layer:
    """A module: its pickle sets its attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Pickler(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, value):
        return ("storage", FloatStorage, "0", "cpu", 6) if value is FLOATS else None


@pytest.fixture
def foreign(monkeypatch):
    """The names under which the stand-ins are pickled."""
    for member, name in ((FloatStorage, "torch"), (_rebuild_tensor_v2, "torch._utils"), (Layer, "__torch__")):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        setattr(module, member.__name__, member)
        monkeypatch.setattr(member, "__module__", name)


def test_every_tensor_of_the_tree_is_found_by_its_path(tmp_path, foreign):
    whole = Layer(training=False, visual=Layer(weight=Tensor((2, 2), (1, 2)), scale=3.0, proj=Layer(bias=Tensor((3,), (1,)))))
    script = io.BytesIO()
    Pickler(script, protocol=2).dump(whole)
    path = archive(tmp_path / "clip.pt", script.getvalue())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("clip/data/0", np.arange(6, dtype=np.float32).tobytes())
    assert torchscript.is_torchscript(path)
    found = torchscript.read(path)
    assert {key: value.tolist() for key, value in found.items()} == {
        "visual.weight": [[1, 3], [2, 4]], "visual.proj.bias": [1, 2, 3]}


def test_an_archive_is_told_by_its_constants(tmp_path):
    (tmp_path / "text.pt").write_text("no archive")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(1))
    assert not any(torchscript.is_torchscript(tmp_path / name) for name in ("text.pt", "arrays.npz"))
