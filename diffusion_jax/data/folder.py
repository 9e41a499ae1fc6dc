"""A folder of image files, in one of three layouts:

    path/metadata.jsonl       one {"file_name": ..., "text" or "caption": ..., "label": ...} a line (Hugging Face's "imagefolder")
    path/<class>/**/<image>   one folder per class, class names sorted
    path/<image>              images without labels
"""
from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.arrays import SUFFIXES, is_hidden, is_image
from diffusion_jax.data.image import read
from diffusion_jax.data.source import Record, class_indices, existing, inside


class _Index(NamedTuple):
    files: list[Path]
    labels: np.ndarray | None = None
    captions: list[str] | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Folder:
    """The images under a folder; files and folders whose name begins with a dot are left out.

    Attributes:
      path: the folder, with its split where it has one ('pets/train').

    Raises:
      ConfigError: at first use: no images, images both beside and inside class folders, a bad line of metadata.jsonl.
      OSError: from a record: the disk refuses it.
    """

    path: str

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class folders, or the sorted set of string labels in metadata.jsonl."""
        return self._index.names

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
        path = existing(self.path)
        listed = path / "metadata.jsonl"
        return _from_metadata(listed) if listed.exists() else _from_folders(path)


def images_in(folder: Path, deep: bool = False) -> list[Path]:
    """The images in a folder, by name; with `deep` those in its folders too, without the dotted ones.

    Everything else that may lie there (notes, metadata.jsonl, Thumbs.db, .DS_Store) is no image and left out.
    """
    paths = folder.rglob("*") if deep else folder.iterdir()
    return sorted(path for path in paths if is_image(path.relative_to(folder)))


def _from_folders(path: Path) -> _Index:
    loose = images_in(path)
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    of_class = {folder.name: images for folder in folders if (images := images_in(folder, deep=True))}
    if loose and of_class:
        raise ConfigError(f"{path}: images lie both in it and in its folders; move them all into class folders, or none")
    if not loose and not of_class:
        raise ConfigError(f"{path}: holds no images ({', '.join(SUFFIXES)})")
    if loose:
        return _Index(loose)
    labels = np.repeat(np.arange(len(of_class)), [len(images) for images in of_class.values()])
    return _Index([image for images in of_class.values() for image in images], labels, None, tuple(of_class))


def _from_metadata(listed: Path) -> _Index:
    rows = []
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{listed}: is not UTF-8 ({error}); save it as that") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
            file = listed.parent / inside(rows[-1]["file_name"], listed)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"{listed}:{number}: not a JSON object with a 'file_name'") from None
        if not file.exists():
            raise ConfigError(f"{listed}:{number}: there is no {rows[-1]['file_name']!r} beside it")
    if not rows:
        raise ConfigError(f"{listed}: lists no images")
    files = [listed.parent / row["file_name"] for row in rows]
    captions = _values(rows, "text", listed) or _values(rows, "caption", listed)
    if captions and not all(isinstance(caption, str) for caption in captions):
        raise ConfigError(f"{listed}: captions must be one string each")
    classes = _values(rows, "label", listed)
    labels, names = class_indices(classes, None, listed) if classes else (None, None)
    return _Index(files, labels, captions, names)


def _values(rows: list[dict], key: str, listed: Path) -> list | None:
    """The values of `key` where all rows have it, None where no row has."""
    found = [row[key] for row in rows if key in row]
    if found and len(found) != len(rows):
        raise ConfigError(f"{listed}: {len(found)} of {len(rows)} lines have {key!r}; add it to all lines or to none")
    return found or None
