"""Captions and labels that lie beside pictures: in one list of all, or in a text for each.

    metadata.jsonl     {"file_name": "cats/a.png", "text": "a cat", "label": "cat"} a line (Hugging Face's "imagefolder")
    metadata.csv       the same columns, named in its first line: file_name,text,label
    a.txt              the caption of a.jpg (kohya's form), without the blanks at its ends

A row of a list is a record: a picture with three captions has three rows. 'caption' says the same as 'text', further columns are
not looked at. All rows have a column, or none has it. Labels are integers, or class names; of a .csv they are integers where all
of them are spelt as such.
"""
from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.arrays import is_hidden
from diffusion_jax.data.source import class_indices, inside, texts
from diffusion_jax.files import composed, json_objects

LISTINGS = ("metadata.jsonl", "metadata.csv")
TEXT = ".txt"


class Listed(NamedTuple):
    """What a list says of its pictures.

    Attributes:
      files: a picture for each row.
      lines: what errors call the rows.
      captions, labels: of each row; None where there are none.
      names: the class names; None where labels are numbers.
    """

    files: list[Path]
    lines: list[str]
    captions: list[str] | None
    labels: np.ndarray | None
    names: tuple[str, ...] | None


def listing_in(folder: Path) -> Path | None:
    """The list of a folder's pictures; None where it has none.

    Raises:
      ConfigError: it has two.
    """
    listings = [folder / name for name in LISTINGS if (folder / name).exists()]
    if len(listings) > 1:
        raise ConfigError(f"{folder}: has both {' and '.join(LISTINGS)}; keep the one that is right")
    return listings[0] if listings else None


def listed(listing: Path) -> Listed:
    """Reads a list.

    Raises:
      ConfigError: a bad row, by its line; a picture that is not there, or has a text beside it too.
    """
    rows, files, lines = [], [], []
    file_of = _file_of(listing.parent)
    for line, row in _rows(listing):
        name = row.get("file_name")
        if not isinstance(name, str):
            raise ConfigError(f"{line}: not a JSON object with a 'file_name'")
        file = file_of(inside(name, line))
        if not file.is_file():
            raise ConfigError(f"{line}: there is no {name!r} beside it")
        rows.append(row)
        files.append(file)
        lines.append(f"{line} ({name})")
    if not rows:
        raise ConfigError(f"{listing}: lists no images; write a line for each, or remove it")
    twice = next((text for text in map(_text_of(files), files) if text), None)
    if twice:
        raise ConfigError(f"{twice}: is a caption beside a picture that {listing.name} lists too; keep one of both")
    captions = _values(rows, "text", lines) or _values(rows, "caption", lines)
    if captions is not None:
        captions = texts(captions, lines.__getitem__)
    classes = _values(rows, "label", lines)
    if classes and listing.suffix == ".csv":
        classes = _numbers(classes)
    labels, names = class_indices(classes, None, listing, lines.__getitem__) if classes else (None, None)
    if labels is not None:
        _check_twice(files, labels, lines)
    return Listed(files, lines, captions, labels, names)


def _file_of(root: Path) -> Callable[[str], Path]:
    """What gives the file of a name below a folder: a list may spell its letters as another system does."""

    @functools.cache
    def of_folder(folder: Path) -> dict[str, Path]:
        return {composed(path.name): path for path in sorted(folder.iterdir())} if folder.is_dir() else {}

    def file_of(name: str) -> Path:
        place = root
        if name.isascii() or (root / name).is_file():
            return root / name
        for part in Path(name).parts:
            place = of_folder(place).get(composed(part), place / part)
        return place

    return file_of


def captions_beside(images: Sequence[Path]) -> list[str] | None:
    """The captions of pictures in texts beside them; None where no picture has one.

    A text that is no picture's is left out, like other notes.

    Raises:
      ConfigError: one picture has a text and another has not; a text that is not UTF-8.
    """
    files = list(map(_text_of(images), images))
    if not any(files):
        return None
    lacking = next((image for image, file in zip(images, files, strict=True) if file is None), None)
    if lacking is not None:
        number = sum(file is not None for file in files)
        raise ConfigError(f"{lacking}: has no {lacking.stem}{TEXT} beside it, as {number} of {len(images)} pictures have; write "
                          f"its caption, or give texts that are no captions another suffix than {TEXT}")
    captions = [_read(file) for file in files if file is not None]
    return texts(captions, lambda i: str(files[i]))


def texts_beside(images: Sequence[Path]) -> list[Path]:
    """The files that `captions_beside` reads."""
    return [file for file in map(_text_of(images), images) if file is not None]


def _text_of(images: Sequence[Path]) -> Any:
    """What gives the text beside one of these pictures, or None: folders are listed once, and not asked for each."""

    @functools.cache
    def of_folder(folder: Path) -> dict[str, Path]:
        named = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == TEXT and not is_hidden(file.name)]
        texts = [file for file in named if file.is_file()]
        return {composed(file.stem): file for file in texts} | {file.stem: file for file in texts}

    for folder in {image.parent for image in images}:
        of_folder(folder)
    return lambda image: of_folder(image.parent).get(image.stem) or of_folder(image.parent).get(composed(image.stem))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 ({error.reason}); save it as that") from None


def _rows(listing: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what errors call it, what it says) of each row."""
    numbered = _csv_rows(listing) if listing.suffix == ".csv" else json_objects(listing)
    return ((f"{listing}:{number}", row) for number, row in numbered)


def _csv_rows(listing: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of its last line, row) of a .csv; a label that is empty is none."""
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            if "file_name" not in columns or len(set(columns)) < len(columns):
                raise ConfigError(f"{listing}: its first line is {','.join(columns)[:60]!r}; name its columns there, each once "
                                  "and with commas between: file_name,text,label")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(columns):
                    raise ConfigError(f"{listing}:{reader.line_num}: has {len(values)} values for {len(columns)} columns; put "
                                      "texts with commas between quotation marks")
                row = dict(zip(columns, values, strict=True))
                yield reader.line_num, {key: value for key, value in row.items() if value or key != "label"}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{listing}: is not UTF-8 ({error.reason}); save it as that") from None
    except csv.Error as error:
        raise ConfigError(f"{listing}:{reader.line_num}: is no row of a .csv ({error}); mend it") from None


def _numbers(labels: list[str]) -> list[Any]:
    """Labels of a .csv as integers, where all are spelt as such."""
    return [int(label) for label in labels] if all(label.isascii() and label.isdecimal() for label in labels) else labels


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
