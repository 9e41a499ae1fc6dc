"""What a data set is: deterministic random access to records.

    source[i] -> {'image': uint8 [h, w, c], 'label': int, 'caption': str},      0 <= i < len(source)

c is 1 (grey) or 3 (RGB); the sizes may differ from record to record. Label and caption are there for all records of a source or
for none. A source is a frozen dataclass built from config, so it is hashable and equal when its config is equal; what it reads
from disk is read at first use and kept.
"""
from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffusion_jax.build import ConfigError

Record = dict[str, Any]


class Source(Protocol):
    """Random access to the records of a data set; safe to read from several threads."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names in the order of the labels; None where there are none."""
        ...

    def __len__(self) -> int:
        """The number of records."""
        ...

    def __getitem__(self, i: int) -> Record:
        """Record i; `ConfigError` names a damaged file, `OSError` is what a disk or a network refuses and may be asked again."""
        ...


def existing(path: str | Path) -> Path:
    """`path` with ~ expanded; `ConfigError` if nothing is there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise ConfigError(f"{path}: no such file or folder; give the path of the data")
    return found


@contextmanager
def readable(name: str | Path, wrong: str = "cannot read it", again: bool = False) -> Iterator[None]:
    """Turns whatever a damaged file makes a reader raise into one line.

    Args:
      name: what the message calls the file.
      wrong: what the message says of it.
      again: let through what the operating system refuses, for `data.loader` to ask again.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        if isinstance(error, ConfigError) or (again and isinstance(error, OSError) and error.errno):
            raise
        raise ConfigError(f"{name}: {wrong} ({' '.join(str(error).split())}); fetch or write it again") from error


@contextmanager
def npz(path: str | Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz by name, each read when it is asked for; no pickles.

    Raises:
      ConfigError: it is damaged, or another kind of file.
    """
    with readable(path, "is not an .npz, or a damaged one"):
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, an .npy")
        with found:
            yield found


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; `ConfigError` where there is none, or it is not JSON in UTF-8."""
    file = existing(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from None


def inside(name: str, where: str | Path) -> str:
    """`name` if it is a relative path that stays inside its archive or folder; `ConfigError` otherwise."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise ConfigError(f"{where}: refused {name!r}, which is absolute or leads out of it; pack it again with relative names")
    return name


def class_indices(
    values: Sequence[Any], names: tuple[str, ...] | None, where: str | Path
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Integer labels from a column of integers or of class names.

    Args:
      values: integers, taken as they are, or strings: an index into `names`, or into their own sorted set where `names` is None.
      names: the known class names, if any.
      where: what error messages name.

    Returns:
      (labels int64 [N], class names or None).

    Raises:
      ConfigError: neither all integers nor all strings, or a label that `names` does not have.
    """
    if len(values) and all(isinstance(value, str) for value in values):
        names = names or tuple(sorted({str(value) for value in values}))
        index = {name: i for i, name in enumerate(names)}
        strange = next((value for value in values if value not in index), None)
        if strange is not None:
            raise ConfigError(f"{where}: label {str(strange)!r} is not among its {len(names)} class names; add it to 'names'")
        return np.array([index[value] for value in values], np.int64), names
    labels = _column(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(f"{where}: labels must be one integer or one string each, without gaps; choose another label column")
    if names and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ConfigError(f"{where}: labels {labels.min()}..{labels.max()} do not fit its {len(names)} class names; mend either")
    return labels.astype(np.int64), names


def _column(values: Sequence[Any]) -> np.ndarray:
    """The values as an array; an empty one of two axes where they are lists of several lengths, which NumPy refuses."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.zeros((0, 0))
