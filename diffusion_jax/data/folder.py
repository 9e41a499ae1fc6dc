"""A folder of image files, in one of three layouts:

    path/metadata.jsonl       one {"file_name": ..., "text" or "caption": ..., "label": ...} a line (Hugging Face's "imagefolder")
    path/<class>/**/<image>   one folder per class, class names sorted
    path/<image>              images without labels

A line of metadata.jsonl is a record: a picture with three captions has three lines. Links are followed, wherever they lead.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.arrays import SUFFIXES, is_hidden, is_image
from diffusion_jax.data.image import is_grey, read
from diffusion_jax.data.source import Record, class_indices, existing, inside, readable, texts
from diffusion_jax.files import json_objects


class _Index(NamedTuple):
    files: list[Path]
    labels: np.ndarray | None = None
    captions: list[str] | None = None
    names: tuple[str, ...] | None = None
    lines: list[str] | None = None


@dataclass(frozen=True)
class Folder:
    """The images under a folder; files and folders whose name begins with a dot are left out, and what is no image.

    Attributes:
      path: the folder, with its split where it has one ('pets/train').

    Raises:
      ConfigError: at first use: no images, images both beside and inside class folders, a class folder without any, a bad line of
        metadata.jsonl.
      OSError: from a record: the disk refuses it.
    """

    path: str

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class folders, or the sorted set of string labels in metadata.jsonl."""
        return self._index.names

    @property
    def labels(self) -> np.ndarray | None:
        """Of all records, int [N]."""
        return self._index.labels

    @property
    def captions(self) -> list[str] | None:
        """Of all records."""
        return self._index.captions

    @functools.cached_property
    def channels(self) -> int:
        """What all images have in common: 1 where all are grey, else 3. Looks at the header of each until one is coloured."""
        return 1 if all(map(is_grey, self._index.files)) else 3

    def place(self, i: int) -> str:
        """The file of record i, or the line of metadata.jsonl that names it."""
        index = self._index
        return index.lines[i] if index.lines else str(index.files[i])

    def __len__(self) -> int:
        return len(self._index.files)

    def __getitem__(self, i: int) -> Record:
        index = self._index
        record: Record = {"image": read(index.files[i].read_bytes(), str(index.files[i]))}
        if index.labels is not None:
            record["label"] = int(index.labels[i])
        if index.captions is not None:
            record["caption"] = index.captions[i]
        return record

    @functools.cached_property
    def _index(self) -> _Index:
        path = existing(self.path, "folder")
        listed = path / "metadata.jsonl"
        with readable(path):
            return _from_metadata(listed) if listed.exists() else _from_folders(path)


def images_in(folder: Path, deep: bool = False) -> list[Path]:
    """The images in a folder, by name; with `deep` those in its folders too, without the dotted ones.

    Everything else that may lie there (notes, metadata.jsonl, Thumbs.db, .DS_Store, pipes) is no image and left out.

    Raises:
      ConfigError: a link to an image that is not there.
    """
    paths = folder.rglob("*") if deep else folder.iterdir()
    images = []
    for path in sorted(path for path in paths if is_image(path.relative_to(folder))):
        if path.is_file():
            images.append(path)
        elif not path.exists():
            raise ConfigError(f"{path}: is a link to a file that is not there; fetch that, or remove the link")
    return images


def _from_folders(path: Path) -> _Index:
    loose = images_in(path)
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    of_class = {folder.name: images_in(folder, deep=True) for folder in folders}
    if not loose and not any(of_class.values()):
        raise ConfigError(f"{path}: holds no images ({', '.join(SUFFIXES)})")
    if loose and any(of_class.values()):
        raise ConfigError(f"{path}: images lie both in it and in its folders; move them all into class folders, or none")
    if loose:
        return _Index(loose)
    empty = next((name for name, images in of_class.items() if not images), None)
    if empty is not None:
        # Left out, it would move the labels of the classes behind it; kept, a folder of notes would be a class.
        raise ConfigError(f"{path / empty}: is a class folder without images; fill it, remove it, or put a dot before its name")
    labels = np.repeat(np.arange(len(of_class)), [len(images) for images in of_class.values()])
    return _Index([image for images in of_class.values() for image in images], labels, None, tuple(of_class))


def _from_metadata(listed: Path) -> _Index:
    rows, files, lines = [], [], []
    for number, row in json_objects(listed):
        line, name = f"{listed}:{number}", row.get("file_name")
        if not isinstance(name, str):
            raise ConfigError(f"{line}: not a JSON object with a 'file_name'")
        file = listed.parent / inside(name, line)
        if not file.is_file():
            raise ConfigError(f"{line}: there is no {name!r} beside it")
        rows.append(row)
        files.append(file)
        lines.append(f"{line} ({name})")
    if not rows:
        raise ConfigError(f"{listed}: lists no images; write a line for each, or remove it")
    captions = _values(rows, "text", lines) or _values(rows, "caption", lines)
    if captions is not None:
        captions = texts(captions, lines.__getitem__)
    classes = _values(rows, "label", lines)
    labels, names = class_indices(classes, None, listed, lines.__getitem__) if classes else (None, None)
    if labels is not None:
        _check_twice(files, labels, lines)
    return _Index(files, labels, captions, names, lines)


def _values(rows: list[dict[str, Any]], key: str, lines: list[str]) -> list[Any] | None:
    """The values of `key` where all rows have it, None where no row has."""
    having = [key in row for row in rows]
    if any(having) and not all(having):
        number = having.index(False)
        raise ConfigError(f"{lines[number]}: {sum(having)} of {len(rows)} lines have {key!r}, this one has not; "
                          "add it to all lines or to none")
    return [row[key] for row in rows] if any(having) else None


def _check_twice(files: list[Path], labels: np.ndarray, lines: list[str]) -> None:
    """Refuses a picture that is listed twice, as of two classes."""
    first: dict[Path, int] = {}
    for i, file in enumerate(files):
        other = first.setdefault(file, i)
        if labels[other] != labels[i]:
            raise ConfigError(f"{lines[i]}: is of class {labels[i]}, and of class {labels[other]} in {lines[other]}; remove one")
