"""Files that are whole or not there, names that overwrite nothing, and lines of JSON."""
from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffusion_jax.build import ConfigError


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A dotted file beside `path` that takes its place when the block ends well, and else goes.

    Every reader here skips dotted files. The suffix stays, for the writers that choose their format
    by it.

    Example:
      with whole("figures.json") as unfinished:
          unfinished.write_text("{}")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A dotted folder beside `path` that takes its place when the block ends well, and else goes.

    Raises:
      ConfigError: see `free`.
    """
    path = Path(path)
    free(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(path)  # an empty folder gives way
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def free(folder: str | Path) -> None:
    """Tries the place of a new folder before the work whose result it is to hold.

    Raises:
      ConfigError: a file is there, a folder that holds something, or it cannot be written.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose another name for the folder")
    # Beside it, where it arises; nothing is left where the work is refused.
    writable(folder.absolute().parent / f"{folder.name}.trial")


def writable(path: str | Path) -> None:
    """Tries an output before the work whose result it is to hold; its folder is made.

    Args:
      path: of a file, or of a folder where it ends in a slash.

    Raises:
      ConfigError: it cannot be written, and why.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise ConfigError(f"{text!r} is no name of a file, it holds a zero byte: choose another")
    target = Path(text)
    folder = target if text.endswith("/") else target.parent
    try:
        if folder != target and target.is_dir():
            raise ConfigError(f"{path} is a folder: choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        # By the name that `whole` will use: one that is too long is refused by the disk alone.
        file = target if folder != target else folder / "trial"
        trial = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another") from None


def unused(path: str | Path) -> Path:
    """`path` where nothing is there, else the first of name-2, name-3 ... that is free.

    Example:
      unused("edit.png")                          # the second time: PosixPath('edit-2.png')
    """
    path = Path(path)
    number = 2
    free = path
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free


def composed(name: str) -> str:
    """A name to compare with others: macOS takes letters and their accents apart where others keep
    them together, and both look the same.

    Example:
      composed("rose" + chr(0x301))               # 'rosé', of four letters
    """
    return unicodedata.normalize("NFC", name)


def half_letter(text: str) -> bool:
    """Whether a text holds half of a pair of surrogates, which is no letter in any encoding: a
    terminal of another encoding than UTF-8 makes such texts, and so does JSON.

    Example:
      half_letter("caf" + chr(0xdce9))            # True
    """
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def json_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1 on, text) of the lines of a file of JSON lines that are not blank.

    A line ends with a line feed alone: captions may hold the other characters that Python's
    `splitlines` takes for ends. A byte order mark is skipped.

    Raises:
      ConfigError: a line is not UTF-8; names it.
    """
    # As bytes, a line at a time: a decoder of the whole file would not say which line it stops at.
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"{path}:{number}: is not UTF-8 ({error.reason}); save it as that"
                ) from None
            if text.strip():
                yield number, text.removesuffix("\n").removesuffix("\r")


def json_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1 on, object) of the lines of a file of JSON lines, all of which must read.

    Raises:
      ConfigError: a line is not UTF-8, or no JSON object; names it.
    """
    for number, line in json_lines(path):
        try:
            yield number, json_object(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not a JSON object ({error}); mend it") from None


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Raises:
      ValueError: it holds none, or one that is nested too deep.
    """
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(parsed, dict):
        raise ValueError(f"it is {text[:40]!r}")
    return parsed


def rows_that_read(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects among a file's lines; others, such as a last one torn by a kill, are left
    out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(ValueError):
            rows.append(json_object(line))
    return rows
