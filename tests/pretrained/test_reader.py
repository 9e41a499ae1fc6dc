"""Weights files: the same arrays from every format, and nothing but arrays."""
import argparse
import json
import pickle
import sys
import tarfile
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import dvae, persistent
from diffusion_jax.pretrained.reader import onnx_users, read

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64), "c": np.ones(2, np.float16)}


def write(path, content):
    """`content`, arrays at any depth, in the format of the file's name."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        save_onnx(path, [onnx.numpy_helper.from_array(value, key) for key, value in content.items()])
    else:
        torch = pytest.importorskip("torch")

        def tensors(value):
            if isinstance(value, dict):
                return {key: tensors(item) for key, item in value.items()}
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

        torch.save(tensors(content), path)
    return path


def save_onnx(path, tensors, nodes=(), sparse=()):
    """A graph of these initialisers and nodes."""
    helper = pytest.importorskip("onnx").helper
    graph = helper.make_graph(nodes, "graph", [], [], tensors, sparse_initializer=sparse)
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.onnx", "w.pt", "w.ckpt"])
def test_every_format_gives_the_same_arrays(tmp_path, name):
    got = read(write(tmp_path / name, STATE))
    assert got.keys() == STATE.keys()
    for key, value in STATE.items():
        assert isinstance(got[key], np.ndarray) and got[key].dtype == value.dtype
        np.testing.assert_array_equal(got[key], value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.npz", "w.onnx", "w.pt"])
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


@pytest.mark.parametrize("package, name", [("torch", "w.pt"), ("onnx", "w.onnx")])
def test_without_its_package_the_extra_is_named(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"pip install 'diffusion_jax\[{package}\]'"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["empty", "model.safetensors"])
def test_a_folder_is_no_file_of_weights(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="is a folder: give the file of weights in it"):
        read(tmp_path / name)


@pytest.mark.parametrize("name, message", [("w.gguf", "unknown kind of weights file '.gguf'"), ("w.npz", "there is no file")])
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


def test_float8_of_safetensors_is_read(tmp_path):
    values = np.array([0.5, -1.75, 448], np.float32)
    for kind, dtype in (("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)):
        data = values.astype(dtype).tobytes()
        header = json.dumps({"w": {"dtype": kind, "shape": [3], "data_offsets": [0, len(data)]}}).encode()
        (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
        got = read(tmp_path / "w.safetensors")["w"].astype(np.float32)
        np.testing.assert_array_equal(got, values.astype(dtype).astype(np.float32))


def odd_tensors(torch):
    """Name -> (a tensor that is no plain one, what is said of it)."""
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    return {
        "quantised": (quantised, "w is quantised"),
        "sparse": (torch.eye(3).to_sparse(), "w is sparse"),
        "sparse rows": (torch.eye(3).to_sparse_csr(), "w is sparse"),
        "complex": (torch.ones(2, dtype=torch.complex64), "w is complex"),
        "without values": (torch.empty(2, device="meta"), "w is without values"),
        "larger than its file": (torch.ones(1).expand(10**12), "w has 1,000,000,000,000 elements and room for fewer"),
        "half and larger": (torch.ones(1, dtype=torch.bfloat16).expand(10**12), "room for fewer"),
        "inside": ({"ema": {"w": torch.eye(3).to_sparse()}}, "ema: w is sparse"),
    }


@pytest.mark.parametrize("name", [
    "quantised", "sparse", "sparse rows", "complex", "without values", "larger than its file", "half and larger", "inside",
])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain_are_refused_in_one_line(tmp_path, name):
    torch = pytest.importorskip("torch")
    tensor, says = odd_tensors(torch)[name]
    torch.save(tensor if isinstance(tensor, dict) else {"w": tensor}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="w.pt") as error:
        read(tmp_path / "w.pt")
    assert "\n" not in str(error.value) and (says in str(error.value) or "is refused" in str(error.value)), error.value


def test_float8_of_torch_becomes_float32(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn)}, tmp_path / "w.pt")
    got = read(tmp_path / "w.pt")["w"]
    assert got.dtype == np.float32 and got.tolist() == [1.5, -2.0]


# Graphs ---------------------------------------------------------------------------------------------------------------------


def test_numbers_of_onnx_lie_in_bytes_or_in_lists(tmp_path):
    onnx = pytest.importorskip("onnx")
    floats = onnx.helper.make_tensor("list", onnx.TensorProto.FLOAT, [2, 1], [1.5, -2.0])
    halves = onnx.helper.make_tensor("half", onnx.TensorProto.BFLOAT16, [2], [1.5, -2.0])
    scalar = onnx.numpy_helper.from_array(np.float32(3), "scalar")
    save_onnx(tmp_path / "w.onnx", [floats, halves, scalar])
    got = read(tmp_path / "w.onnx")
    assert got["list"].tolist() == [[1.5], [-2.0]] and got["scalar"].shape == ()
    assert got["half"].dtype == ml_dtypes.bfloat16 and got["half"].tolist() == [1.5, -2.0]


def odd_initialisers(onnx):
    """Name -> (an initialiser that is no plain array, what is said of it)."""
    kinds, make = onnx.TensorProto, onnx.helper.make_tensor
    beside = onnx.TensorProto(name="w", dims=[2], data_type=kinds.FLOAT, data_location=kinds.EXTERNAL)
    beside.external_data.add(key="location", value="/etc/passwd")
    return {
        "in another file": (beside, "lies in another file, which is not opened"),
        "texts": (make("w", kinds.STRING, [1], [b"text"]), "is of type STRING"),
        "complex": (make("w", kinds.COMPLEX64, [1], [1j]), "is of type COMPLEX64"),
        "four bits": (make("w", kinds.INT4, [2], [1, -2]), "is of type INT4"),
        "of no type": (onnx.TensorProto(name="w", dims=[1], raw_data=bytes(4)), "is of type UNDEFINED"),
        "of a type of tomorrow": (onnx.TensorProto(name="w", dims=[1], data_type=999, raw_data=bytes(4)), "is of type 999"),
        "larger than its bytes": (onnx.TensorProto(name="w", dims=[10**6, 10**6], data_type=kinds.FLOAT, raw_data=bytes(4)),
                                  "and room for less"),
        "a little larger": (onnx.TensorProto(name="w", dims=[2], data_type=kinds.FLOAT, raw_data=bytes(4)), "does not read"),
        "of a negative side": (onnx.TensorProto(name="w", dims=[-1], data_type=kinds.FLOAT, raw_data=bytes(4)), "room for less"),
    }


@pytest.mark.parametrize("name", [
    "in another file", "texts", "complex", "four bits", "of no type", "of a type of tomorrow", "larger than its bytes",
    "a little larger", "of a negative side",
])
def test_initialisers_that_are_no_plain_arrays_are_refused_in_one_line(tmp_path, name):
    tensor, says = odd_initialisers(pytest.importorskip("onnx"))[name]
    save_onnx(tmp_path / "w.onnx", [tensor])
    with pytest.raises(ConfigError, match=rf"w\.onnx: w .*{says}") as error:
        read(tmp_path / "w.onnx")
    assert "\n" not in str(error.value)


def test_graphs_without_plain_initialisers_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    places = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "places")
    sparse = [onnx.helper.make_sparse_tensor(tensor, places, [4])]
    for options, says in (({"tensors": []}, "has no initialisers"), ({"tensors": [tensor, tensor]}, "has two initialisers w"),
                          ({"tensors": [tensor], "sparse": sparse}, "has sparse initialisers")):
        save_onnx(tmp_path / "w.onnx", **options)
        with pytest.raises(ConfigError, match=says):
            read(tmp_path / "w.onnx")


def test_the_first_node_that_takes_an_initialiser_is_named(tmp_path):
    onnx = pytest.importorskip("onnx")
    tensors = [onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), name) for name in ("onnx::MatMul_7", "b", "unused")]
    nodes = [onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], "/fc1/MatMul"),
             onnx.helper.make_node("Add", ["y", "b"], ["z"], "/fc1/Add"),
             onnx.helper.make_node("Mul", ["z", "b"], ["out"], "/fc1/Mul")]
    save_onnx(tmp_path / "w.onnx", tensors, nodes)
    assert onnx_users(tmp_path / "w.onnx") == {"onnx::MatMul_7": "/fc1/MatMul", "b": "/fc1/Add"}
    with pytest.raises(ConfigError, match="there is no file"):
        onnx_users(tmp_path / "x.onnx")


# Pickles that run something -------------------------------------------------------------------------------------------------


def call(module, name, *args):
    """Opcodes that call module.name(*args) of texts."""
    texts = b"".join(b"V" + arg.encode("raw-unicode-escape") + b"\n" for arg in args)
    return f"c{module}\n{name}\n".encode() + b"(" + texts + b"tR"


def stacked(module, name, *args):
    """The same by names from the stack, as protocol 4 has them: names with dots lead through attributes."""
    parts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in args)
    return b"\x80\x04" + parts + b"\x93(" + texts + b"tR"


ATTACKS = {
    "a shell": lambda fuse: call("os", "system", f"touch {fuse}"),
    "its other name": lambda fuse: call("posix", "system", f"touch {fuse}"),
    "a process": lambda fuse: call("subprocess", "getoutput", f"touch {fuse}"),
    "a program": lambda fuse: call("builtins", "exec", f"open({str(fuse)!r}, 'w')"),
    "an expression": lambda fuse: call("builtins", "eval", f"open({str(fuse)!r}, 'w')"),
    "a file": lambda fuse: call("io", "open", str(fuse), "w"),
    "a path": lambda fuse: b"cpathlib\nPath.touch\n(" + call("pathlib", "PosixPath", str(fuse)) + b"tR",
    "through torch": lambda fuse: stacked("torch", "serialization.os.system", f"touch {fuse}"),
    "through numpy": lambda fuse: stacked("numpy", "os.system", f"touch {fuse}"),
    "through a layer": lambda fuse: stacked("torch.nn.modules.module", "os.system", f"touch {fuse}"),
    "an object that is built": lambda fuse: b"ccopyreg\n__newobj__\n(cbuiltins\nprint\nV" + str(fuse).encode() + b"\ntR",
    "another pickle": lambda fuse: call("torch", "load", str(fuse)),
    "a number of the registry": lambda fuse: b"\x80\x02\x82\x01",
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("opened", ["w.pt", "w.ckpt", "encoder.pkl", "edm2.pkl"])
def test_no_pickle_runs_anything(tmp_path, opened, name):
    if opened != "edm2.pkl":
        pytest.importorskip("torch")
    fuse, path = tmp_path / "fuse", tmp_path / opened
    path.write_bytes(ATTACKS[name](fuse) + b".")
    reader = {"encoder.pkl": dvae.read_module, "edm2.pkl": persistent.read}.get(opened, read)
    with pytest.raises(ConfigError, match=opened) as error:
        reader(path)
    assert "\n" not in str(error.value) and sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ATTACKS)
def test_no_torchscript_archive_runs_anything(tmp_path, name):
    fuse, path = tmp_path / "fuse", tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", ATTACKS[name](fuse) + b".")
        archive.writestr("a/constants.pkl", b"")
    for reader in (read, dvae.read_module) if name == "a shell" else (read,):
        with pytest.raises(ConfigError, match="w.pt is refused"):
            reader(path)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["programs", "files"])
def test_archives_that_torch_opens_by_itself_are_refused_as_modules(tmp_path, kind):
    path = tmp_path / "encoder.pkl"
    if kind == "programs":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/constants.pkl", b"")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(ConfigError, match="an archive of programs or files"):
        dvae.read_module(path)
