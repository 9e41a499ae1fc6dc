"""NVIDIA's "persistent" pickles (EDM2, StyleGAN) into arrays and options, without running what is inside them.

Such a file stores each object as (class name, program text, state) and has the text executed when it is opened. Here the text is
dropped and the state kept as plain data: of all that a pickle may call, only what rebuilds tensors, arrays and containers is
allowed. A network's state is then the tree that torch.nn.Module keeps: _parameters, _buffers, _modules.
"""
from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained.reader import as_array


class Bare:
    """Stands for an object of which only the state is kept."""

    def __init__(self, *args: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _persistent(meta: Mapping[str, Any]) -> Bare:
    """The envelope of an object without its program."""
    bare = Bare()
    bare.state = dict(meta["state"] or {}) | {"class": meta["class_name"]}
    return bare


def _storage(content: bytes) -> Any:
    """The bytes of a tensor, themselves a pickle, through torch's restricted loader."""
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class Unpickler(pickle.Unpickler):
    """Calls nothing but what is named here."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in, or the harmless original, of a global.

        Raises:
          UnpicklingError: everything else.
        """
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)
        if module.startswith("torch.nn.modules."):
            return Bare
        if (module, name) in PLAIN:
            return PLAIN[module, name]
        if module in ("torch", "torch._utils"):
            import torch

            if (module, name) == ("torch", "device"):
                return str
            if name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
                return getattr(torch._utils, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is code")


PLAIN = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def unpickle(path: str | Path) -> Any:
    """What is in a .pkl file, of which nothing is run.

    Raises:
      ConfigError: there is no such file, it is damaged, it calls anything but tensors, arrays and containers, or it holds tensors
        and torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            return Unpickler(file).load()
    except ModuleNotFoundError:
        raise ConfigError(f"reading {path.name} needs torch: pip install 'diffusion_jax[torch]'") from None
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} is refused: {str(error).partition(chr(10))[0]}") from None
    except Exception as error:                                                      # a damaged pickle may raise anything
        raise ConfigError(f"{path} is damaged, or no persistent pickle: {type(error).__name__}: {error}") from None


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The network under 'ema' in a published pickle.

    Args:
      path: a .pkl file.

    Returns:
      (its state dict, key -> array, float16 widened to float32; the options its constructor was called with).

    Raises:
      ConfigError: it holds no network, or what `unpickle` refuses.
    """
    content = unpickle(path)
    network = content.get("ema") if isinstance(content, Mapping) else None
    if not isinstance(network, Bare) or "_modules" not in network.state:
        raise ConfigError(f"{path} holds no network under 'ema'")
    return dict(arrays(network)), dict(network.state.get("_init_kwargs") or {})


def arrays(module: Bare, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """The tensors of a module and its children, named as in a state dict."""
    state = module.state
    tensors: list[tuple[str, np.ndarray]] = []
    for kind in ("_parameters", "_buffers"):
        for name, tensor in state.get(kind, {}).items():
            if tensor is not None:
                tensors.append((prefix + name, np.asarray(as_array(tensor, prefix + name), np.float32)))
    for name, child in state.get("_modules", {}).items():
        if child is not None:
            tensors += arrays(child, f"{prefix}{name}.")
    return tensors
