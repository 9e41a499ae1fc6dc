"""What an export is: a folder of weights, options and texts for other programs, written whole or not at all.

Weights are .safetensors, which hold arrays and nothing else, in the form that PyTorch's libraries read.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, short
from diffusion_jax.files import whole_folder

DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
DIFFUSERS = "0.42.0"
"""The release of diffusers whose classes and defaults are written."""
Spec = dict[str, Any]
Page = Mapping[str, Any]


class Package(NamedTuple):
    """A model for another program.

    Attributes:
      files: path in the folder -> its arrays (.safetensors), options (.json), text or bytes.
      title: what it is for, a phrase: 'diffusers' StableDiffusionPipeline'.
      code: lines of Python that load it, where the folder is called FOLDER.
      library: as Hugging Face calls the program, for the head of a model card; '' for none.
      notes: what whoever loads it has to know, a sentence each.
      command: what imports it here again; '' where nothing does.
    """

    files: dict[str, Any]
    title: str
    code: str
    library: str = ""
    notes: tuple[str, ...] = ()
    command: str = ""


def write(folder: str | Path, files: Mapping[str, Any], dtype: str = "float32") -> None:
    """Writes files into a folder, which appears when all of them are whole.

    Args:
      folder: a new one, or an empty one.
      files: see `Package.files`.
      dtype: of floating point weights.

    Raises:
      ConfigError: the folder holds something.
    """
    with whole_folder(folder) as unfinished:
        write_into(unfinished, files, dtype)


def write_into(folder: Path, files: Mapping[str, Any], dtype: str = "float32") -> None:
    """`write` into a folder that is there."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            save_weights(file, content, dtype)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            file.write_text(text, encoding="utf-8")


def save_weights(file: Path, weights: Mapping[str, Any], dtype: str = "float32") -> None:
    """Arrays as a .safetensors file; those of floating point in a type, the others as they are."""
    from safetensors.numpy import save_file

    # Flattened bytes are written: an array that was transposed has to be laid out anew before.
    typed = {key: _typed(np.asarray(value), dtype) for key, value in weights.items()}
    arrays = {key: np.ascontiguousarray(value).reshape(value.shape) for key, value in typed.items()}
    save_file(arrays, file, metadata={"format": "pt"})


def _typed(value: np.ndarray, dtype: str) -> np.ndarray:
    return value.astype(jnp.dtype(dtype), copy=False) if jnp.issubdtype(value.dtype, jnp.floating) else value


def only(title: str, module: Any, **values: Any) -> None:
    """Raises ConfigError where an option of a network has another value than the only one that another program's has.

    Args:
      title: the other network, with its article: 'the official DiT'.
      module: our network, or its conditioner.
      **values: option -> the value.
    """
    for name, value in values.items():
        if getattr(module, name) != value:
            has = f"{title} has no {name} {short(getattr(module, name))}, only {value!r}"
            raise ConfigError(f"{has}: this {type(module).__name__} cannot be written for it")


def refuse(title: str, problems: Mapping[str, bool]) -> None:
    """Raises ConfigError with the first of these clauses that holds."""
    for clause, holds in problems.items():
        if holds:
            raise ConfigError(f"{title} {clause}: this run cannot be written for it")


def square(title: str, page: Page) -> int:
    """The side of what a network sees; `ConfigError` where that is no square."""
    height, width, _ = page["task"]["shape"]
    refuse(title, {f"takes squares, task.shape is {height}x{width}": height != width})
    return height


def process_note(page: Page, scale: str, schedule: str) -> tuple[str, ...]:
    """A sentence where a run predicts something else, or under another process, than the official code of its network does.

    Args:
      page: the run's.
      scale: what the official code's networks predict, a name of diffusion/scales.py.
      schedule: of the betas of its process.
    """
    task = page["task"]
    if "process" not in task:                                                   # a network of clean images
        return ()
    process = task["process"]
    kind = process["name"].rpartition(":")[2]
    ours = (task["scale"]["name"].rpartition(":")[2], kind, process.get("schedule", "linear") if kind == "DDPM" else "")
    if ours == (scale, "DDPM", schedule) and not process.get("zero_snr"):
        return ()
    options = ", ".join(f"{key}={value}" for key, value in process.items() if key != "name")
    return (f"The official code samples networks that predict {scale} under {schedule} betas; this one predicts {ours[0]} under "
            f"{kind}({options}), which has to be told to what samples it.",)
