"""The tensors of a TorchScript archive (`torch.jit.save`), read without torch and without running any of its code.

The archive is a zip file: code/ holds programs, data/<n> the bytes of storages, and data.pkl a pickle of the tree of modules. The
unpickler here knows five names: the classes of modules become bags of attributes that do nothing, storages become their types,
and three functions build a tensor, a parameter or a list. Any other name is refused, so nothing of the archive is ever called.
"""
from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.build import ConfigError

STORAGES = {
    "FloatStorage": np.float32, "HalfStorage": np.float16, "DoubleStorage": np.float64, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


class _Bag:
    """A module of the archive: attributes only."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """The view of a storage that a tensor is; refuses one that leaves it."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else offset - 1
    if offset < 0 or min(stride, default=0) < 0 or last >= len(storage) or math.prod(size) > len(storage):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


def _first(value: Any, *_: Any) -> Any:
    return value


class _Unpickler(pickle.Unpickler):
    """Knows tensors, lists and bags."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """One of the names that the page knows."""
        if module.startswith("__torch__"):
            return _Bag
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_parameter"): _first,
            ("collections", "OrderedDict"): OrderedDict, **{("torch.jit._pickle", function): _first for function in LISTS},
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """A storage: ('storage', type, number, device, count)."""
        _, kind, number, _, count = pid
        info = self.archive.getinfo(f"{self.root}/data/{number}")
        if info.compress_type != zipfile.ZIP_STORED:                    # torch compresses nothing: a bomb does
            raise pickle.UnpicklingError("a storage is compressed")
        data = self.archive.read(info)
        return np.frombuffer(data, kind, count)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of the tree of modules by its path, 'visual.conv1.weight' for example.

    Raises:
      ConfigError: the archive is damaged, or holds something else than modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).rpartition("/")[0]
            return dict(_tensors(_Unpickler(archive, root).load(), ""))
    except Exception as error:                                                      # a damaged pickle may raise anything
        raise ConfigError(f"{path} is refused: {error or 'it holds no modules'}; get it again") from None


def _tensors(value: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays under an attribute, with their paths."""
    if isinstance(value, np.ndarray):
        yield path, value
    children = vars(value) if isinstance(value, _Bag) else value
    if not isinstance(children, dict):
        return
    for name, item in children.items():
        yield from _tensors(item, f"{path}.{name}" if path else str(name))
