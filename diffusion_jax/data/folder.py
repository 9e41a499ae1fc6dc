"""A folder of image files as a person has it. Its layout says what is known of a picture:

    path/metadata.jsonl, or .csv     a row for each record: captions, labels (data/listing.py)
    path/<class>/**/<image>          one folder per class, class names sorted
    path/<image>                     images without labels
    <image>.txt                      beside every image of the last two: its caption

Links are followed, wherever they lead. A share of the pictures may be held out, by their names alone:

    h(name) = the first 64 bits of SHA-256(name) / 2^64,        held out where h(name) < holdout                          (1)

where name is the file's, relative to the folder, so that a picture stays on its side when others are added or removed, and all
captions of one lie on the same side. Of few pictures (1) may leave a side empty. Then the picture of the least h is held out, or
that of the greatest trained on: where pictures are added, one that was held out may come to be trained on, but none that was
trained on comes to be held out, unless `holdout` is nearly 1.
"""
from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError, number, unknown
from diffusion_jax.data.arrays import SUFFIXES, is_hidden, is_image
from diffusion_jax.data.image import is_grey, read
from diffusion_jax.data.listing import captions_beside, listed, listing_in
from diffusion_jax.data.source import File, Record, existing, readable
from diffusion_jax.files import composed

SPLITS = ("train", "test")
HOLDOUT = 0.1


class _Index(NamedTuple):
    """All records of a folder, whatever the split."""

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
      split: '' all, 'train' or 'test' by (1). Class names are those of all pictures, whatever the split.
      holdout: the share of the pictures that is the split 'test', between 0 and 1.
      without: names of files, relative to the folder, that are left out: those that do not read (runs/broken.py).

    Raises:
      ConfigError: a split or a share that is none; at first use: no images, images both beside and inside class folders, a class
        folder without any, captions of two kinds or for some images alone, a bad row of a list, one image alone to be split.
      OSError: from a record: the disk refuses it.

    Example:
      Folder('photos', split='test').names        # ('daisy', 'rose')
    """

    path: str
    split: str = ""
    holdout: float = HOLDOUT
    without: tuple[str, ...] = ()

    def __post_init__(self):
        if self.split not in ("", *SPLITS):
            raise unknown("split of a folder", str(self.split), SPLITS)
        if not 0 < number("holdout of Folder", self.holdout) < 1:
            raise ConfigError(f"holdout of Folder is a share between 0 and 1, and neither of both: got {self.holdout}")
        if not self.split and self.holdout != HOLDOUT:
            raise ConfigError("holdout of Folder is of a split: give split='train' or 'test' too")
        if isinstance(self.without, str):
            raise ConfigError(f"without={self.without!r}: give a tuple of file names, ({self.without!r},)")

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class folders, or the sorted set of string labels in a list."""
        return self._index.names

    @property
    def labels(self) -> np.ndarray | None:
        """Of all records, int [N]."""
        labels = self._index.labels
        return None if labels is None else labels[self._rows]

    @property
    def captions(self) -> list[str] | None:
        """Of all records."""
        captions = self._index.captions
        return None if captions is None else [captions[row] for row in self._rows]

    @functools.cached_property
    def channels(self) -> int:
        """What all images have in common, of both splits: 1 where all are grey, else 3. Looks at the header of each until one is
        coloured; one that does not read counts for nothing."""
        return 3 if any(is_grey(file) is False for file in self._index.files) else 1

    @property
    def files(self) -> list[File]:
        """All pictures of the folder, whatever is left out and whatever the split."""
        by_name = dict(zip(self._names, self._index.files, strict=True))
        return [File.of(name, file) for name, file in by_name.items()]

    def content(self, name: str) -> bytes:
        """The bytes of one of `files`, by its name."""
        return Path(self.path).expanduser().joinpath(name).read_bytes()

    def place(self, i: int) -> str:
        """The file of record i, or the line of the list that names it."""
        index, row = self._index, self._rows[i]
        return index.lines[row] if index.lines else str(index.files[row])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Record:
        index, row = self._index, self._rows[i]
        record: Record = {"image": read(index.files[row].read_bytes(), str(index.files[row]))}
        if index.labels is not None:
            record["label"] = int(index.labels[row])
        if index.captions is not None:
            record["caption"] = index.captions[row]
        return record

    @functools.cached_property
    def _index(self) -> _Index:
        path = existing(self.path, "folder")
        with readable(path):
            listing = listing_in(path)
            if listing is None:
                return _from_folders(path)
            rows = listed(listing)
            return _Index(rows.files, rows.labels, rows.captions, rows.names, rows.lines)

    @functools.cached_property
    def _names(self) -> list[str]:
        """The name of every record's file, relative to the folder."""
        files = self._index.files
        root = Path(self.path).expanduser()
        return [file.relative_to(root).as_posix() for file in files]

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        """Which records of the folder these are, int [N]."""
        if not self.split and not self.without:
            return np.arange(len(self._index.files))
        out = set(self.without)
        rows = np.array([row for row, name in enumerate(self._names) if name not in out], np.int64)
        if not self.split or not len(rows):
            return rows
        test = _held_out([self._names[row] for row in rows], self.holdout, self.path)
        return rows[test if self.split == "test" else ~test]


def _held_out(names: Sequence[str], share: float, path: str) -> np.ndarray:
    """(1): whether each of these files is held out, bool [N]; neither side is empty.

    Raises:
      ConfigError: there is one file alone.
    """
    hashes = np.array([_hash_of(name) for name in names])
    if hashes.min() == hashes.max():
        raise ConfigError(f"{path}: has one picture to read, {names[0]!r}, which cannot be trained on and held out; add others")
    test = hashes < share
    if not test.any():
        return hashes == hashes.min()
    return hashes < hashes.max() if test.all() else test


def _hash_of(name: str) -> float:
    """h of (1)."""
    # macOS takes letters apart that others keep together: the same picture is to be held out there.
    digest = hashlib.sha256(composed(name).encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


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
        return _Index(loose, captions=captions_beside(loose))
    empty = next((name for name, images in of_class.items() if not images), None)
    if empty is not None:
        # Left out, it would move the labels of the classes behind it; kept, a folder of notes would be a class.
        raise ConfigError(f"{path / empty}: is a class folder without images; fill it, remove it, or put a dot before its name")
    labels = np.repeat(np.arange(len(of_class)), [len(images) for images in of_class.values()])
    images = [image for images in of_class.values() for image in images]
    return _Index(images, labels, captions_beside(images), tuple(of_class))
