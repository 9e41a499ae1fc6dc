"""Weights files into {key: array}, without ever running what is inside them.

.safetensors and .npz hold arrays only. A .pt or .ckpt is a pickle, which may hold code: it is opened by torch's restricted
loader, and refused where it names anything but tensors and plain containers. What PyTorch Lightning keeps beside the weights, in
Stable Diffusion's .ckpt for example, is replaced by empty stand-ins: the classes that it names are never imported. A TorchScript
archive (CLIP's .pt) does hold code, of which nothing is run: pretrained/torchscript.py reads its tensors. An .onnx file holds a
graph, of which nothing is run either: its initialisers are read, under the names that they have there. Exports often name those
that a matrix product takes by a number alone (onnx::MatMul_1966); `onnx_users` tells which node takes each.

Arrays of .safetensors and of today's .pt are mapped from the file, so that what is read takes no memory until it is copied.
"""
from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data import source
from diffusion_jax.pretrained import torchscript


def read(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a weights file, on the host.

    Args:
      path: a .safetensors, .npz, .onnx, .pt, .pth, .ckpt or .bin file.
      key: which state dict to take from a file that holds several, such as 'ema' of a DiT training checkpoint; a file that is
        one flat state dict is taken as it is.

    Returns:
      key -> array, in the type of the file, except that bfloat16 and float8 of a .pt become float32.

    Raises:
      ConfigError: see `content` and `select`.
    """
    return select(content(path), key, path)


def content(path: str | Path) -> dict[str, Any]:
    """All that a weights file holds: one state dict, or several and their options; tensors as arrays on the host.

    Raises:
      ConfigError: there is no such file, it is a folder, is damaged or holds code, or torch or onnx, which it needs, is missing.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the file of weights in it")
    if path.suffix not in READERS:
        raise unknown("kind of weights file", path.suffix or path.name, READERS)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    return READERS[path.suffix](path)


def select(file: Mapping[str, Any], key: str | None, path: str | Path) -> dict[str, np.ndarray]:
    """The state dict itself: the `content` of a file, or the part of it that `key` names.

    Raises:
      ConfigError: it has several state dicts and `key` names none of them, or is none.
    """
    parts = [name for name, value in file.items() if isinstance(value, Mapping)]
    if parts and key not in parts:
        wanted = "one state dict" if key is None else f"one state dict, or one under {key!r}"
        raise ConfigError(f"{path} holds {', '.join(map(str, parts))} in place of {wanted}: save its weights alone in a file")
    state_dict = file[str(key)] if parts else file
    for name, value in state_dict.items():
        if not isinstance(value, np.ndarray):
            raise ConfigError(f"{path}: {name} is a {type(value).__name__}, not an array; this is no state dict")
    return dict(state_dict)


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:                       # checks the header against the file
            names = list(file.keys())
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a safetensors file: {_line(error)}") from None
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:begin].tobytes())

    def array(name: str) -> np.ndarray:
        first, last = header[name]["data_offsets"]
        return data[begin + first : begin + last].view(SAFETENSORS[header[name]["dtype"]]).reshape(header[name]["shape"])

    strange = {header[name]["dtype"] for name in names} - set(SAFETENSORS)
    if strange:
        raise ConfigError(f"{path} has arrays of type {min(strange)}: convert them to one of {', '.join(SAFETENSORS)}")
    return {name: array(name) for name in names}


def _npz(path: Path) -> dict[str, np.ndarray]:
    with source.npz(path) as arrays:
        return dict(arrays)


def _onnx(path: Path) -> dict[str, np.ndarray]:
    onnx, graph = _graph(path)
    if graph.sparse_initializer:
        raise ConfigError(f"{path} has sparse initialisers: export it with dense ones")
    arrays: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if tensor.name in arrays:
            raise ConfigError(f"{path} has two initialisers {tensor.name}: export it again")
        arrays[tensor.name] = _initialiser(onnx, tensor, f"{path}: {tensor.name}")
    if not arrays:
        raise ConfigError(f"{path} has no initialisers: export it with its weights inside")
    return arrays


def _initialiser(onnx: Any, tensor: Any, place: str) -> np.ndarray:
    """A tensor of an .onnx file as an array. Errors begin with the place."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ConfigError(f"{place} lies in another file, which is not opened: save the .onnx with its weights inside")
    kinds = {value: kind for kind, value in onnx.TensorProto.DataType.items()}
    if kinds.get(tensor.data_type) not in ONNX:
        kind = kinds.get(tensor.data_type, tensor.data_type)
        raise ConfigError(f"{place} is of type {kind}, which is not read here: export it as FLOAT")
    # In a list of them, numbers are packed: each takes a byte or more.
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > tensor.ByteSize():
        raise ConfigError(f"{place} has the shape {list(tensor.dims)} and room for less: export the file again")
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:                                                 # each kind of damage raises another
        raise ConfigError(f"{place} does not read ({_line(error)}): export the file again") from None


def onnx_users(path: str | Path) -> dict[str, str]:
    """Initialiser of an .onnx file -> the name of the first node that takes it.

    PyTorch's exports name nodes by their modules, so that this says where a weight belongs whose own name is lost.

    Raises:
      ConfigError: see `content`.

    Example:
      onnx_users("vit.onnx")["onnx::MatMul_1966"]     # '/encoder/layer.0/attention/attention/key/MatMul'
    """
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}")
    _, graph = _graph(Path(path))
    users: dict[str, str] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, node.name)
    return {tensor.name: users[tensor.name] for tensor in graph.initializer if tensor.name in users}


def _graph(path: Path) -> tuple[Any, Any]:
    """The package onnx and the graph of a file, of which nothing is run and no other file is opened.

    Raises:
      ConfigError: onnx is not installed, or the file is damaged.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise ConfigError(f"reading {path.name} needs onnx: pip install 'diffusion_jax[onnx]'") from None
    if path.stat().st_size > ONNX_LIMIT:
        raise ConfigError(f"{path} is larger than the 2 GiB of an .onnx file: convert its weights to .safetensors")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:                                                 # protobuf's own, of no public class
        raise ConfigError(f"{path} is damaged, or no .onnx file: {_line(error)}") from None
    return onnx, model.graph


def _torch(path: Path) -> dict[str, Any]:
    if torchscript.is_torchscript(path):
        return torchscript.read(path)
    file = unpickled(path, lambda torch: _restricted(torch, path))
    if not isinstance(file, Mapping):
        raise ConfigError(f"{path} holds a {type(file).__name__}, not a state dict")
    return _to_numpy(file, str(path))


def unpickled(path: Path, load: Callable[[Any], Any]) -> Any:
    """What `load`, given torch, makes of a pickle.

    Raises:
      ConfigError: torch is not installed, the pickle names code, or it is damaged, which may raise anything.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise ConfigError(f"reading {path.name} needs torch: pip install 'diffusion_jax[torch]'") from None
    try:
        return load(torch)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|it names (\S+), which is code", str(error))
        reason = f"it names {named[1] or named[2]}, which is code" if named else "it is no plain pickle of tensors"
        raise ConfigError(f"{path} is refused: {reason}; convert it to .safetensors where you trust it") from None
    except Exception as error:
        raise ConfigError(f"{path} is damaged, or no pickle of tensors: {type(error).__name__}: {_line(error)}") from None


class Inert:
    """What stands in for an object beside the weights; it takes whatever it is given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _restricted(torch: Any, path: Path) -> Any:
    """What torch's restricted loader makes of a file, with stand-ins for what `INERT` names."""
    # DiT's training checkpoints keep their command line, a Namespace, beside the weights: it holds plain values only.
    allowed: list[Any] = [argparse.Namespace]
    names: set[str] = set()
    mapped = {"mmap": True} if zipfile.is_zipfile(path) else {}
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True, **mapped)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            name = named[1] if named else ""
            if name in names or not name.startswith(INERT):
                raise
            names.add(name)
            allowed.append((type(name.rpartition(".")[2], (Inert,), {}), name))


def _line(error: Exception) -> str:
    """The first line of a message, which may be empty."""
    return str(error).partition("\n")[0] or type(error).__name__


def _to_numpy(value: Any, place: str) -> Any:
    """Tensors as arrays at any depth of mappings; everything else as it is. Errors begin with the place."""
    if isinstance(value, Mapping):
        return {key: _to_numpy(item, f"{place}: {key}") for key, item in value.items()}
    return as_array(value, place) if hasattr(value, "detach") else value


def as_array(tensor: Any, place: str) -> np.ndarray:
    """A plain tensor of torch as an array on the host; the small floats that NumPy has not become float32.

    Raises:
      ConfigError: it is sparse, quantised, nested, complex, without values, or larger than what lies in the file.
    """
    kinds = {
        "sparse": str(tensor.layout) != "torch.strided", "quantised": tensor.is_quantized, "nested": tensor.is_nested,
        "complex": tensor.is_complex(), "without values": tensor.is_meta,
    }
    for kind, applies in kinds.items():
        if applies:
            raise ConfigError(f"{place} is {kind}: save it as a plain tensor, which weights here are")
    # A stride of 0 makes terabytes of four bytes, as soon as anything copies them.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ConfigError(f"{place} has {tensor.numel():,} elements and room for fewer: save a copy of it (.clone())")
    tensor = tensor.detach().resolve_neg()
    if str(tensor.dtype) == "torch.bfloat16" or str(tensor.dtype).startswith("torch.float8_"):
        tensor = tensor.float()
    try:
        return tensor.numpy()
    except TypeError:
        raise ConfigError(f"{place} is of type {tensor.dtype}, which is not read here: save it as float32") from None


INERT = ("pytorch_lightning.", "lightning.", "omegaconf.", "numpy.", "_codecs.encode")
"""What Lightning's checkpoints name beside tensors: callbacks, options, and NumPy's way to pickle a scalar."""
SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn,
               "F8_E5M2": jnp.float8_e5m2, "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4",
               "U16": "<u2", "U8": "u1", "BOOL": "?"}
ONNX = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT64", "INT32", "INT16", "INT8", "UINT64",
        "UINT32", "UINT16", "UINT8", "BOOL")
"""The types of initialisers that are read."""
ONNX_LIMIT = 2**31
"""Bytes of a message of protobuf."""
READERS = {".safetensors": _safetensors, ".npz": _npz, ".onnx": _onnx, ".pt": _torch, ".pth": _torch, ".ckpt": _torch,
           ".bin": _torch}
