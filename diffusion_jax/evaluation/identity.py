"""What tells files, data, conditions and runs from all others, for what is kept on disk: by content.

    of_files("pictures/")          a file, or the pictures of a folder
    of_data(data, "train")         a split of a page's data
    of_run(run)                    weights, with all that they are used with
    of_arrays(raw)                 conditions

A place is no content: files are replaced, and runs trained anew, under the same names.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import build
from diffusion_jax.data.arrays import is_hidden
from diffusion_jax.data.folder import images_in
from diffusion_jax.data.listing import LISTINGS, texts_beside
from diffusion_jax.data.rows import spread
from diffusion_jax.data.source import existing
from diffusion_jax.runs.folder import Run
from diffusion_jax.train.digest import digest

WHOLE = 2**28
"""Bytes of files that are read to tell them apart; of more their sizes and stamps do."""
RECORDS = 32
"""Records of a data set that are looked at, spread over it: not all that changes is in a file."""
COLUMNS = ("name", "split", "split_key", "image", "label", "caption", "dataset", "without")
"""Keys of a source's spec that hold no paths."""


def of_files(path: str | Path) -> dict[str, str]:
    """A file, or what is read of a folder.

    Raises:
      ConfigError: there is no such thing.
    """
    where = existing(path)
    return {"path": str(where.resolve()), "content": _content(_files(where))}


def of_data(data: Mapping[str, Any], split: str) -> dict[str, Any]:
    """A split of the section `data` of a page: how it is read, its files, and some of its records.

    Raises:
      ConfigError: what the source refuses.
    """
    source = build(data[split])
    files = [file for place in sorted(set(_places(data[split]))) for file in _files(place)]
    records = [source[i] for i in spread(len(source), RECORDS)]
    return {
        "source": data[split],
        "decode": data["decode"],
        "count": len(source),
        "names": source.names,
        "files": _content(files),
        "records": [of_arrays(record) for record in records],
    }


def of_run(run: Run) -> dict[str, Any]:
    """A run's weights, those of its first stage, and its page, which says what they are used for."""
    page = json.dumps(run.config, sort_keys=True, default=str)
    first = run.model.first
    return run.identity | {
        # A digest comes with a checkpoint; weights in memory have none yet.
        "digest": run.digest or digest(run.model.params),
        "first_stage": None if first is None else digest(first),
        "page": hashlib.sha256(page.encode()).hexdigest(),
    }


def of_arrays(arrays: Mapping[str, Any]) -> str:
    """Arrays, numbers and texts by their names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        total.update(f"{name} {value.dtype} {value.shape} ".encode())
        total.update(repr(arrays[name]).encode() if value.dtype.hasobject else value.tobytes())
    return total.hexdigest()


def _files(where: Path) -> list[Path]:
    """A file itself; the pictures of a folder and the texts beside them, or all that is in it where
    a listing, or no picture, says what is read."""
    if not where.is_dir():
        return [where]
    images = images_in(where, deep=True)
    # Whoever measures the pictures of a folder in that folder changes other files of it.
    if images and not any((where / name).exists() for name in LISTINGS):
        return images + texts_beside(images)
    paths = sorted(where.rglob("*"))
    visible = [
        path for path in paths if not any(map(is_hidden, path.relative_to(where).parts))
    ]
    return [path for path in visible if path.is_file()]


def _content(files: Iterable[Path]) -> str:
    """What differs where files do."""
    states = [(file, file.stat()) for file in files]
    read = sum(state.st_size for _, state in states) <= WHOLE
    total = hashlib.sha256()
    for file, state in states:
        total.update(f"{file.resolve()} {state.st_size} ".encode(errors="surrogateescape"))
        if read:
            total.update(file.read_bytes())
        else:
            # The change time too, which nobody can set: copies may bring another file's times.
            stamps = (state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
            total.update(repr(stamps).encode())
    return total.hexdigest()


def _places(spec: Mapping[str, Any]) -> Iterator[Path]:
    """The files and folders that the spec of a source names, and those beside them."""
    words = [word for key, value in spec.items() if key not in COLUMNS for word in _words(value)]
    paths = [Path(word).expanduser() for word in words]
    roots = [Path(), *(path.parent for path in paths if path.is_file())]
    for path in paths:
        # `meta` of Arrays is relative to the folder of its file.
        places = (root / path for root in roots)
        # The root of all files is no data set: somebody's separator may be '/'.
        yield from (place for place in places if place.exists() and place != place.parent)
    for value in spec.values():
        if isinstance(value, Mapping):
            yield from _places(value)


def _words(value: Any) -> list[str]:
    """The texts of a value: itself, or those of a list."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [one for one in values if isinstance(one, str) and one]
