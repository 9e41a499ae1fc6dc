"""A folder of diffusers or transformers: a config.json beside its weights.

The weights are one file, or several and an index that says which of them holds what. Both may be of a variant, whose word stands
in their names: diffusion_pytorch_model.fp16.safetensors. A folder is input from elsewhere: nothing outside of it is opened, apart
from the files to which the links of Hugging Face's cache lead.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.build import ConfigError, short
from diffusion_jax.pretrained.reader import read

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".bin")
WEIGHTS = tuple(f"{stem}{suffix}" for stem in STEMS for suffix in SUFFIXES)
INDEX = ".index.json"
VARIANTS = ("fp16", "bf16")
"""Of several, these are taken first."""
LARGEST_JSON = 2**24
"""Bytes; the index of the largest model in shards has a quarter of a million."""


def options(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON of a part of a folder.

    Raises:
      ConfigError: it is not there, does not read, is no mapping, or lies elsewhere.
    """
    return read_json(inside(folder / name))


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
      ConfigError: it is not there, too large, does not read, or is no mapping.
    """
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise ConfigError(f"{file} is too large for a file of options: {file.stat().st_size:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {file}: check the name, or get it") from None
    # A deep nest of brackets ends Python's stack, and numbers of thousands of digits are ValueErrors.
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} does not read as JSON: {str(error).partition(chr(10))[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__}, not a mapping of options")
    return content


def checked(config: Mapping[str, Any], plain: Mapping[str, Any], read: Iterable[str], what: str) -> None:
    """Goes through the keys of a config that a reader does not read itself.

    Args:
      config: the options of a part.
      plain: key -> the value that has a counterpart here; null is as good.
      read: keys that are read elsewhere, or that change nothing.
      what: what messages call the config.

    Raises:
      ConfigError: another value than the plain one. A key that nobody knows is announced.
    """
    for key, value in plain.items():
        if config.get(key) is not None and config[key] != value:
            raise ConfigError(f"no network here has {key} {short(config[key])} of {what}: only {value!r}")
    known = {*plain, *read}
    strange = sorted(key for key in config if key not in known and not key.startswith("_"))
    if strange:
        print(f"{what} has {', '.join(strange)}, which no network known here reads: left out")


def weights(folder: Path) -> dict[str, Any]:
    """The weights of a part of a folder.

    Raises:
      ConfigError: there are none under any of the names, or see `read` and `shards`.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    file = _preferred(names)
    if file is None:
        raise ConfigError(f"{folder} holds no weights; they are called {', '.join(WEIGHTS)}, or that with {INDEX} behind it")
    path = inside(folder / file)
    return shards(path) if file.endswith(".json") else read(path)


def _preferred(names: list[str]) -> str | None:
    """The file to take: in full before variants, in the order of `WEIGHTS`, whole before shards."""
    others = {word for name in names if (word := _variant(name))} - set(VARIANTS)
    words = [word for word in (*VARIANTS, *sorted(others)) if word in map(_variant, names)]
    for variant in ("", *words):
        for stem in STEMS:
            for suffix in SUFFIXES:
                for name in _spellings(stem, suffix, variant):
                    if name in names:
                        if variant:
                            print(f"weights in full are not there: read {name}, of the variants {', '.join(words)}")
                        return name
    return None


def _variant(name: str) -> str:
    """The variant in the name of a file of weights or of their index; '' for none."""
    form = rf"(?:{'|'.join(STEMS)})(?:\.(\w+))?\.(?:safetensors|bin)(?:\.(\w+))?(?:\.index(?:\.(\w+))?\.json)?"
    match = re.fullmatch(form, name)
    return next((word for word in match.groups() if word and word != "index"), "") if match else ""


def _spellings(stem: str, suffix: str, variant: str) -> list[str]:
    """How weights and their index are called; the years differ in where the variant stands."""
    whole = f"{stem}{suffix}"
    if not variant:
        return [whole, f"{whole}{INDEX}"]
    return [f"{stem}.{variant}{suffix}", f"{stem}.{variant}{suffix}{INDEX}", f"{whole}.{variant}{INDEX}",
            f"{whole}.index.{variant}.json"]


def shards(index: Path) -> dict[str, Any]:
    """The weights of several files, by the index that lies beside them.

    Raises:
      ConfigError: the index is none, names a file outside of its folder or one that is not there, or differs from what it holds.
    """
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ConfigError(f"{index} has no weight_map from names to files: it is no index of weights")
    found: dict[str, Any] = {}
    for name in sorted(set(table.values())):
        if Path(name).name != name or not name.endswith(SUFFIXES):
            raise ConfigError(f"{index} names {short(name)}, which is no file of weights in its folder")
        path = inside(index.parent / name)
        if not path.is_file():
            raise ConfigError(f"{index} names {name}, which is not there: get all of its files")
        part = read(path)
        wanted = {key for key, file in table.items() if file == name}
        differs = sorted(wanted.symmetric_difference(part))
        if differs:
            raise ConfigError(f"{path} and {index.name} differ in {short(differs[0])}: take files that belong together")
        found |= part
    return found


def inside(file: Path) -> Path:
    """A file of a folder, where it is, through links too, in this folder or in the one around it.

    Raises:
      ConfigError: a link that leads elsewhere.
    """
    target = file.resolve()
    around = file.parent.resolve().parent
    # The cache of Hugging Face keeps every file once and links to it: models--<name>/blobs/<digest>.
    cached = target.parent.name == "blobs" and target.parent.parent in around.parents
    if not target.is_relative_to(around) and not cached:
        raise ConfigError(f"{file} is a link to {target}, outside of its folder: copy the file itself there")
    return file
