"""What a data set is: deterministic random access to records.

    source[i] -> {'image': uint8 [h, w, c], 'label': int, 'caption': str},      0 <= i < len(source)

c is 1 (grey) or 3 (RGB); the sizes may differ from record to record. Label and caption are there for all records of a source or
for none. A source is a frozen dataclass built from config, so it is hashable and equal when its config is equal; what it reads
from disk is read at first use and kept.

A source that knows more without reading images says it, for the checks before training (data/survey.py) and for errors:

    source.labels     int [N]              source.captions     N strings, or None            source.place(i)     'cats/0.png'

and one whose pictures lie in files of their own says which, for the check of all of them (data/damage.py):

    source.files      a `File` for each    source.content(name)     the bytes of one         source.without      names left out
"""
from __future__ import annotations

import json
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.files import half_letter

Record = dict[str, Any]
LARGEST_LABEL = 2**31 - 1
UNPACKED = 2**30
"""Bytes that a member of an archive may unpack to at any ratio; more only at `RATIO`."""
RATIO = 200
DAMAGED = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
"""What readers raise on files that are cut, changed or made up."""


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


class File(NamedTuple):
    """A picture's file, as far as it can be known without opening it.

    Attributes:
      name: what its source calls it, relative to the source's own path.
      size: in bytes.
      stamp: a number that is another when the file is: its time in nanoseconds, or a checksum.
    """

    name: str
    size: int
    stamp: int

    @classmethod
    def of(cls, name: str, path: Path) -> File:
        """The file of a name that lies at a path."""
        state = path.stat()
        return cls(name, state.st_size, state.st_mtime_ns)


def existing(path: str | Path, kind: str = "") -> Path:
    """`path` with ~ expanded.

    Args:
      path: of the data.
      kind: 'file' or 'folder' where only that will do.

    Raises:
      ConfigError: nothing is there, or the other kind of thing.
    """
    try:
        there = Path(path).expanduser()
    except (TypeError, RuntimeError):                                            # no text; ~ of a user whom nobody knows
        raise ConfigError(f"{path!r} is no path: give the path of the data") from None
    try:
        is_there = there.exists()
    except (OSError, ValueError) as error:                                       # a name that is too long, a zero byte
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{str(path)[:60]!r}: {why}; give the path of the data") from None
    if not is_there:
        raise ConfigError(f"{path}: no such file or folder; give the path of the data")
    if kind == "folder" and not there.is_dir():
        raise ConfigError(f"{path}: is a file; give the folder that it lies in")
    if kind == "file" and not there.is_file():
        raise ConfigError(f"{path}: is no file; give the path of one")
    return there


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
    except DAMAGED as error:
        if isinstance(error, ConfigError) or (again and isinstance(error, OSError) and error.errno):
            raise
        raise ConfigError(f"{name}: {wrong} ({' '.join(str(error).split())}); fetch or write it again") from error


def bounded(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    """What an archive says of a member, unless it is made to unpack to more than fits.

    Raises:
      ValueError: no such member, or more than `UNPACKED` bytes and `RATIO` times those that are there.
    """
    try:
        info = archive.getinfo(member)
    except KeyError:
        raise ValueError(f"it has no {member!r}") from None
    # No more than the whole archive: what it says of the packed size is a promise too.
    packed = min(info.compress_size, Path(str(archive.filename)).stat().st_size)
    if info.file_size > max(UNPACKED, RATIO * packed):
        raise ValueError(f"{member!r} would unpack {packed} bytes to {info.file_size}")
    return info


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open .npz; each is read when it is asked for, and its header is not believed."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        info = bounded(self._archive, f"{name}.npy")
        with self._archive.open(info) as file:
            shape, dtype, length = header(file)
            # NumPy would make room for what the header says before it looks at what there is.
            if dtype.hasobject:
                raise ValueError(f"its {name!r} holds Python objects, which are refused")
            if min(shape, default=0) < 0 or length + dtype.itemsize * math.prod(shape) != info.file_size:
                raise ValueError(f"its {name!r} says {dtype} {list(shape)}, but has {info.file_size - length} bytes")
        with self._archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """(shape, type, bytes of the header) of an .npy that is open.

    Raises:
      ValueError: it does not read.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as error:  # NumPy takes it for Python, whose tokenizer raises errors of its own
        raise ValueError(f"an array has no header ({type(error).__name__})") from None
    return shape, dtype, file.tell()


@contextmanager
def npz(path: str | Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz by name, each read when it is asked for; no pickles, and no array that is not there.

    Raises:
      ConfigError: it is damaged, or another kind of file.
    """
    with readable(path, "is not an .npz, or a damaged one"):
        with Path(path).open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is a single array, an .npy")
        with zipfile.ZipFile(path) as archive:
            yield _Arrays(archive)


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; `ConfigError` where there is none, or it is not JSON in UTF-8."""
    file = existing(path, "file")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from None


def inside(name: str, where: str | Path) -> str:
    """`name` if it is a relative path that stays inside its archive or folder; `ConfigError` otherwise."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise ConfigError(f"{where}: refused {name!r}, which is absolute or leads out of it; pack it again with relative names")
    return name


def place(source: Any, i: int) -> str:
    """What errors call record i of a source: its file and line where the source says them."""
    own = getattr(source, "place", None)
    return own(i) if own else f"record {i} of {source}"


def decoded(source: Any, decode: Callable[..., Record], i: int, rng: np.random.Generator | None = None) -> Record:
    """Record i of a source, decoded.

    Raises:
      ConfigError: it cannot be; names the record.
    """
    record = source[i]
    try:
        return decode(record, rng)
    except ConfigError as error:
        raise ConfigError(f"{place(source, i)}: {error}") from None


def class_indices(
    values: Sequence[Any], names: tuple[str, ...] | None, where: str | Path, at: Callable[[int], str] | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Integer labels from a column of integers or of class names.

    Args:
      values: integers, taken as they are, or strings: an index into `names`, or into their own sorted set where `names` is None.
      names: the known class names, if any.
      where: what error messages name.
      at: what they call value i; by default where, and its number.

    Returns:
      (labels int64 [N], class names or None).

    Raises:
      ConfigError: neither all integers nor all strings, one below 0 or beyond 32 bits, one that `names` does not have, or
        numbers written as strings, whose order is not that of the numbers.
    """
    at = at or (lambda i: f"{where}: value {i}")
    if not len(values):
        return np.zeros(0, np.int64), names
    if all(isinstance(value, str) for value in values):
        names = names or _alphabet(values, where)
        index = {name: i for i, name in enumerate(names)}
        strange = next((i for i, value in enumerate(values) if value not in index), None)
        if strange is not None:
            raise ConfigError(f"{at(strange)}: label {str(values[strange])!r} is not among its {len(names)} class names; "
                              "add it to 'names'")
        return np.array([index[value] for value in values], np.int64), names
    labels = _integers(values)
    if labels is None:
        i = next((i for i, value in enumerate(values) if not _is_integer(value)), 0)
        raise ConfigError(f"{at(i)}: label {str(values[i])[:40]!r}: labels must be one integer or one string each, without gaps; "
                          "mend it, or choose another label column")
    outside = np.flatnonzero((labels < 0) | (labels > (len(names) - 1 if names else LARGEST_LABEL)))
    if len(outside):
        why = f"does not fit its {len(names)} class names" if names else f"is not within 0 ... {LARGEST_LABEL}"
        raise ConfigError(f"{at(int(outside[0]))}: label {labels[outside[0]]} {why}; mend it")
    return labels.astype(np.int64), names


def texts(values: Sequence[Any], at: Callable[[int], str]) -> list[str]:
    """A column of captions.

    Args:
      values: one string each.
      at: what error messages call value i.

    Raises:
      ConfigError: a number, a list or null; or half of a pair of surrogates, which is no letter in any encoding.
    """
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(f"{at(i)}: caption {str(value)[:40]!r}: captions must be one string each; "
                              "mend it, or choose another caption column")
        if half_letter(value):
            raise ConfigError(f"{at(i)}: caption {value[:40]!a} holds half a letter (a lone surrogate); mend it")
    return [str(value) for value in values]


def _alphabet(values: Sequence[str], where: str | Path) -> tuple[str, ...]:
    """The set of class names, sorted; numbers only where that is their own order."""
    names = sorted({str(value) for value in values})
    if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
        raise ConfigError(f"{where}: labels are numbers written as strings, which sort as {', '.join(names[:3])} ...; write them "
                          "as integers, or list their order as 'names'")
    return tuple(names)


def _is_integer(value: Any) -> bool:
    """Whether a value is one integer of 64 bits, and no bool."""
    whole = np.ndim(value) == 0 and isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and abs(int(value)) < 2**63


def _integers(values: Sequence[Any]) -> np.ndarray | None:
    """The values as integers [N]; None where they are none."""
    if not isinstance(values, np.ndarray) and any(isinstance(value, bool) for value in values):
        return None                                                              # which NumPy would count as 0 and 1
    try:
        labels = np.asarray(values)
    except ValueError:                                                           # lists of several lengths
        return None
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else None       # beyond 64 bits they are objects
