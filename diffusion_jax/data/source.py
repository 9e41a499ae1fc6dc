"""What a data set is: deterministic random access to records.

    source[i] -> {'image': uint8 [h, w, c], 'label': int, 'caption': str},      0 <= i < len(source)

c is 1 (grey) or 3 (RGB); the sizes may differ from record to record. Label and caption are there for all records of a source or
for none. A source is a frozen dataclass built from config, so it is hashable and equal when its config is equal; what it reads
from disk is read at first use and kept.
"""
from __future__ import annotations

from collections.abc import Sequence
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
        """Record i; `ConfigError` names the file where it cannot be read."""
        ...


def existing(path: str | Path) -> Path:
    """`path` with ~ expanded; `ConfigError` if nothing is there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise ConfigError(f"{path}: no such file or folder; give the path of the data")
    return found


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
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ConfigError(f"{where}: labels must be one integer or one string each, without gaps; choose another label column")
    if names and len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ConfigError(f"{where}: labels {labels.min()}..{labels.max()} do not fit its {len(names)} class names; mend either")
    return labels.astype(np.int64), names
