"""Data sets in one file: a table of columns, of which some are images.

The rows are the images of an .npz array, or the members of a .zip sorted by name. The columns are, by name,

    the arrays of the .npz          or, for a .zip,   'folder' (the name of the folder that a member lies in) and
                                                      'prefix' (its file name up to the first '_'; integers if all of them are)
    the lists of each `meta` file   {'label': [...], 'caption': [...], ...}, [{'label': ..., 'caption': ...}, ...],
                                    or a bare list, whose column is called like the file
    'names' in a `meta` file        the class names

and the fields of `Arrays` say which column is what. `Tiles` reads class sheets, images cut into small ones.
"""
from __future__ import annotations

import functools
import zipfile
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.data.image import LARGEST_SIDE, opaque, read, to_channels
from diffusion_jax.data.source import File, Record, bounded, class_indices, existing, inside, npz, read_json, readable, texts

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SYSTEMS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini")
"""Folders and files that archivers, disk stations and systems make."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own: .DS_Store, .cache, macOS's ._x.png and the __MACOSX of its archives."""
    return name.startswith(".") or name in SYSTEMS


def is_image(path: PurePath) -> bool:
    """Whether a path, relative to its data set, is that of an image: by suffix, and neither hidden nor in a hidden folder."""
    return path.suffix.lower() in SUFFIXES and not any(map(is_hidden, path.parts))


class _Members:
    """The images of a zip file, in the order of their names."""

    def __init__(self, path: Path):
        with readable(path):
            self.archive = zipfile.ZipFile(path)
        names = [inside(name, path) for name in self.archive.namelist() if not name.endswith("/")]
        self.names = sorted(name for name in names if is_image(PurePosixPath(name)))
        twice = next((one for one, other in zip(self.names, self.names[1:], strict=False) if one == other), None)
        if twice is not None:
            raise ConfigError(f"{path}: holds two files {twice!r}, of which one hides the other; pack it again")

    def __len__(self) -> int:
        return len(self.names)

    def place(self, i: int) -> str:
        return f"{self.archive.filename}/{self.names[i]}"

    def __getitem__(self, i: int) -> np.ndarray:
        return read(self.content(self.names[i]), self.place(i))

    def content(self, name: str) -> bytes:
        with readable(f"{self.archive.filename}/{name}", again=True):
            bounded(self.archive, name)
            return self.archive.read(name)

    def file(self, i: int) -> File:
        info = self.archive.getinfo(self.names[i])
        return File(info.filename, info.file_size, info.CRC)

    def columns(self) -> dict[str, list]:
        paths = [PurePosixPath(name) for name in self.names]
        prefixes = [path.stem.split("_")[0] for path in paths]
        numbered = all(prefix.isascii() and prefix.isdecimal() and len(prefix) < 10 for prefix in prefixes)
        return {"folder": [path.parent.name for path in paths], "prefix": [int(p) for p in prefixes] if numbered else prefixes}


_Images = np.ndarray | _Members


class _Table(NamedTuple):
    images: _Images
    rows: np.ndarray
    labels: np.ndarray | None
    captions: Sequence[str] | None
    names: tuple[str, ...] | None


@dataclass(frozen=True)
class Arrays:
    """The images of an .npz or .zip file with labels and captions from it or from JSON files beside it.

    A column that is None is looked for under the usual names: 'image', 'images', 'rgba', 'arr_0' or 'x_<split>'; 'label',
    'labels', 'arr_1' or 'y_<split>'; 'caption' or 'captions'. So ADM's sample files and mnist.npz need none of them.

    Attributes:
      path: the .npz (images uint8 [N, H, W] or [N, H, W, C], alpha goes onto white) or the .zip.
      image: the column of the images (.npz only).
      label: the column of the labels: integers, or strings, which are then numbered in the order of the class names, or of the
        alphabet where there are none.
      caption: the column of the captions.
      split: which rows: those whose `split_key` column has this value; None is all of them.
      split_key: the column of the splits.
      meta: JSON files, relative to the folder of `path`.
      without: names of members of a .zip that are left out: those that do not read (runs/broken.py).

    Raises:
      ConfigError: at first use: a file or column is missing or damaged, or columns differ in length.

    Example:
      source = Arrays('flowers102/images128.zip', split='train', split_key='random_split', meta=('labels.json',))
      source.names[:2]                            # ('pink primrose', 'hard-leaved pocket orchid')
    """

    path: str
    image: str | None = None
    label: str | None = None
    caption: str | None = None
    split: str | None = None
    split_key: str = "split"
    meta: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("meta", "without"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"{name}={value!r}: give a tuple of file names, ({value!r},)")

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names: 'names' of a meta file, or the sorted set of string labels."""
        return self._table.names

    @property
    def labels(self) -> np.ndarray | None:
        """Of all records, int [N]."""
        table = self._table
        return None if table.labels is None else table.labels[self._rows]

    @property
    def captions(self) -> list[str] | None:
        """Of all records."""
        table = self._table
        return None if table.captions is None else [table.captions[row] for row in self._rows]

    @property
    def files(self) -> list[File]:
        """The members of a .zip, those that are left out too; none of an .npz, whose images are in memory."""
        images, rows = self._table.images, self._table.rows
        return [images.file(row) for row in rows] if isinstance(images, _Members) else []

    def content(self, name: str) -> bytes:
        """The bytes of one of `files`, by its name."""
        images = self._table.images
        if not isinstance(images, _Members):
            raise ConfigError(f"{self.path}: holds arrays, and no file {name!r}")
        return images.content(name)

    def place(self, i: int) -> str:
        """The file of record i and its row, or its member."""
        table = self._table
        row = int(self._rows[i])
        return table.images.place(row) if isinstance(table.images, _Members) else f"{self.path}, row {row}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Record:
        table = self._table
        row = int(self._rows[i])
        image = table.images[row]
        record: Record = {"image": opaque(image if image.ndim == 3 else image[..., None])}
        if table.labels is not None:
            record["label"] = int(table.labels[row])
        if table.captions is not None:
            record["caption"] = str(table.captions[row])
        return record

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        """The rows of the records, int [N]."""
        images, rows = self._table.images, self._table.rows
        if not self.without:
            return rows
        if not isinstance(images, _Members):
            raise ConfigError(f"without={self.without}: {self.path} holds arrays, and no files that could be left out")
        out = set(self.without)
        return np.array([row for row in rows if images.names[row] not in out], np.int64)

    @functools.cached_property
    def _table(self) -> _Table:
        path = existing(self.path)
        if path.suffix not in (".npz", ".zip") or not path.is_file():
            raise ConfigError(f"{path}: must end in .npz or .zip, and be a file; a folder of images is a "
                              "diffusion_jax.data.folder:Folder")
        meta, names = _read_meta(path.parent / name for name in self.meta)
        if path.suffix == ".zip":
            members = _Members(path)
            if not len(members):
                raise ConfigError(f"{path}: holds no images ({', '.join(SUFFIXES)})")
            return self._select(members, ChainMap(meta, members.columns()), names)
        with npz(path) as arrays:
            columns = ChainMap(meta, arrays)  # .npz arrays are read when asked for
            # Not from meta, whose 'image' is often the name of a file.
            images = self._column(arrays, self.image, ("image", "images", "rgba", "arr_0", f"x_{self.split}"))
            if images is None:
                raise ConfigError(f"{path}: which array holds the images? set 'image' or 'split' to fit one of {sorted(arrays)}")
            colour = images.ndim == 4 and 1 <= images.shape[3] <= 4
            if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or not images.size:
                raise ConfigError(f"{path}: images are {images.dtype} {images.shape}; want uint8 [N, H, W] or [N, H, W, C]")
            return self._select(images, columns, names)

    def _select(self, images: _Images, columns: Mapping[str, Any], names: tuple[str, ...] | None) -> _Table:
        labels = self._column(columns, self.label, ("label", "labels", "arr_1", f"y_{self.split}"), len(images))
        captions = self._column(columns, self.caption, ("caption", "captions"), len(images))

        def at(row: int) -> str:
            return images.place(row) if isinstance(images, _Members) else f"{self.path}, row {row}"

        if labels is not None:
            if self.label == "folder" and names is None:
                names = tuple(sorted(set(labels)))              # names of classes like those of folders, '10' before '9'
            labels, names = class_indices(labels, names, self.path, at)
        if captions is not None:
            captions = texts(captions, at)
        rows = np.arange(len(images))
        if self.split is not None and f"x_{self.split}" not in columns:
            of_row = np.asarray(self._column(columns, self.split_key, (), len(images)))
            rows = np.flatnonzero(of_row == self.split)
            if not len(rows):
                raise unknown(f"split of {self.path}", self.split, set(map(str, of_row)))
        return _Table(images, rows, labels, captions, names)

    def _column(self, columns: Mapping[str, Any], given: str | None, usual: tuple[str, ...], length: int | None = None) -> Any:
        """The column called `given`, or else the first of the usual ones that is there, or else None."""
        name = given or next((name for name in usual if name in columns), None)
        if name is None:
            return None
        if name not in columns:
            raise unknown(f"column of {self.path}", name, columns)
        column = columns[name]
        count = 1 if isinstance(column, np.ndarray) and not column.ndim else len(column)
        if length is not None and count != length:
            raise ConfigError(f"{self.path}: {length} images but {count} values of {name!r}; give its own meta file")
        return column


def _read_meta(paths: Iterator[Path]) -> tuple[dict[str, list], tuple[str, ...] | None]:
    """The columns of JSON files, and the class names that one of them may hold."""
    columns: dict[str, list] = {}
    names = None
    for path in paths:
        content = read_json(path)
        if isinstance(content, dict):
            columns |= {key: value for key, value in content.items() if isinstance(value, list)}
            names = _class_names(content["names"], path) if "names" in content else names
        elif not isinstance(content, list):
            raise ConfigError(f"{path}: holds {str(content)[:40]!r}, and neither columns nor a list")
        elif content and all(isinstance(row, dict) for row in content):
            columns |= {key: [row.get(key) for row in content] for key in content[0]}
        else:
            columns[path.stem] = content
    return columns, names


def _class_names(names: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: 'names' is a list of the class names, not {str(names)[:40]!r}")
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ConfigError(f"{path}: 'names' has {twice!r} twice; each class has a name of its own")
    return tuple(names)


@dataclass(frozen=True)
class Tiles:
    """Class sheets: files <split>_<class>.<png, jpg, ...> whose square tiles, row by row, are the images of the class.

    Attributes:
      path: the folder.
      split: the first part of the file names.
      tile: the side of a tile in pixels.

    Raises:
      ConfigError: at first use: no such sheets, a damaged one, or one that does not divide into tiles.

    Example:
      Tiles('cifar10', split='test').names[3]     # 'cat'
    """

    path: str
    split: str = "train"
    tile: int = 32

    def __post_init__(self):
        number("tile of Tiles", self.tile, 1, LARGEST_SIDE, integer=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes of the file names, sorted."""
        return tuple(sorted(self._sheets))

    @property
    def labels(self) -> np.ndarray:
        """Of all records, int [N]."""
        return self._data[1]

    def __len__(self) -> int:
        return len(self._data[1])

    def __getitem__(self, i: int) -> Record:
        images, labels = self._data
        return {"image": images[i], "label": int(labels[i])}

    @functools.cached_property
    def _sheets(self) -> dict[str, Path]:
        folder = existing(self.path, "folder")
        files = [file for file in sorted(folder.iterdir()) if is_image(file.relative_to(folder)) and file.is_file()]
        sheets: dict[str, Path] = {}
        for file in files:
            if file.stem.startswith(f"{self.split}_"):
                other = sheets.setdefault(file.stem.removeprefix(f"{self.split}_"), file)
                if other != file:
                    raise ConfigError(f"{file}: is a second sheet of a class, beside {other.name}; remove one")
        if not sheets:
            raise unknown(f"split of {self.path}", self.split, {file.stem.split("_")[0] for file in files})
        return sheets

    @functools.cached_property
    def _data(self) -> tuple[np.ndarray, np.ndarray]:
        per_class = [self._cut(self._sheets[name]) for name in self.names]
        labels = np.repeat(np.arange(len(per_class)), [len(tiles) for tiles in per_class])
        channels = max(tiles.shape[-1] for tiles in per_class)
        return np.concatenate([_like(tiles, channels) for tiles in per_class]), labels

    def _cut(self, sheet: Path) -> np.ndarray:
        image = read(sheet)
        height, width, channels = image.shape
        if height % self.tile or width % self.tile:
            raise ConfigError(f"{sheet}: {width}x{height} pixels do not divide into tiles of {self.tile}; set 'tile'")
        rows = image.reshape(height // self.tile, self.tile, width // self.tile, self.tile, channels)
        return rows.swapaxes(1, 2).reshape(-1, self.tile, self.tile, channels)


def _like(tiles: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [n, t, t, 1 or 3] -> [n, t, t, channels]."""
    count, side = tiles.shape[:2]
    return to_channels(tiles.reshape(count * side, *tiles.shape[2:]), channels).reshape(count, side, side, channels)
