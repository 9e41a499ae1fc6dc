"""Weights files into {key: array}, without ever running what is inside them.

.safetensors and .npz hold arrays only. A .pt or .ckpt is a pickle, which may hold code: it is opened by torch's restricted
loader, and refused where it names anything but tensors and plain containers. A TorchScript archive (CLIP's .pt) does hold code,
of which nothing is run: pretrained/torchscript.py reads its tensors.
"""
from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.pretrained import torchscript


def read(path: str | Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a weights file, on the host.

    Args:
      path: a .safetensors, .npz, .pt, .pth, .ckpt or .bin file.
      key: which state dict to take from a file that holds several, such as 'ema' of a DiT training checkpoint; a file that is
        one flat state dict is taken as it is.

    Returns:
      key -> array, in the type of the file, except that bfloat16 of a .pt becomes float32.

    Raises:
      ConfigError: there is no such file, it is damaged, it holds code, torch is not installed, or it has several state dicts and
        `key` names none of them.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise unknown("kind of weights file", path.suffix or path.name, READERS)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    return _select(READERS[path.suffix](path), key, path)


def _select(content: Mapping[str, Any], key: str | None, path: Path) -> dict[str, np.ndarray]:
    """The state dict itself: `content`, or the part of it that `key` names."""
    parts = [name for name, value in content.items() if isinstance(value, Mapping)]
    if parts and key not in parts:
        if key is None:
            raise ConfigError(f"{path} holds several state dicts, choose one with key: {', '.join(parts)}")
        raise unknown(f"state dict in {path}", key, parts)
    content = content[str(key)] if parts else content
    for name, value in content.items():
        if not isinstance(value, np.ndarray):
            raise ConfigError(f"{path}: {name} is a {type(value).__name__}, not an array; this is no state dict")
    return dict(content)


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a safetensors file: {_line(error)}") from None


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (BadZipFile, ValueError, AttributeError, EOFError, TypeError) as error:
        raise ConfigError(f"{path} is not an .npz file of plain arrays: {_line(error)}") from None


def _torch(path: Path) -> dict[str, Any]:
    if torchscript.is_torchscript(path):
        return torchscript.read(path)
    try:
        import torch
    except ModuleNotFoundError:
        raise ConfigError(f"reading {path.name} needs torch: pip install 'diffusion_jax[torch]'") from None
    try:
        # DiT's training checkpoints keep their command line, a Namespace, beside the weights: it holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {named[1]}, which is code" if named else "it is no plain pickle of tensors"
        raise ConfigError(f"{path} is refused: {reason}; convert it to .safetensors where you trust it") from None
    except (RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} is damaged or empty: {_line(error)}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not a state dict")
    return _to_numpy(content)


def _line(error: Exception) -> str:
    """The first line of a message, which may be empty."""
    return str(error).partition("\n")[0] or type(error).__name__


def _to_numpy(value: Any) -> Any:
    """Tensors as arrays at any depth of mappings; everything else as it is."""
    if isinstance(value, Mapping):
        return {key: _to_numpy(item) for key, item in value.items()}
    if not hasattr(value, "detach"):
        return value
    value = value.detach()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


READERS = {".safetensors": _safetensors, ".npz": _npz, ".pt": _torch, ".pth": _torch, ".ckpt": _torch, ".bin": _torch}
