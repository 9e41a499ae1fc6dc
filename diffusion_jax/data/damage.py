"""Whether the pictures of a data set read, all of them looked at once, and which of them are the same.

    look_at(source, notes)     {name: Look}: the digest of each file's bytes, and why it does not read

A picture is damaged where `data/image.py:read` refuses it: one that is cut short, of no format that is read, too large, or closed
to this user. Looked at are sources that say which files their pictures lie in (data/source.py): folders, and the members of a
.zip. The images of an .npz and of class sheets are in memory when their source is; records of TFDS and of latents were checked by
what wrote them, and to read a million of them again would take hours.

What came of it is noted in a file of JSON, from which a second look is taken while a file's name, size and stamp are the same:

    {"reader": "Pillow 12.0.0", "folders": {"/data/photos": [["rose/1.jpg", 81920, 1764500000000000000, "5f0c...", ""], ...]}}

Another version of the decoder may read more: what it could not read is then looked at again. An end half-way loses nothing.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

import PIL

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import read
from diffusion_jax.data.source import File
from diffusion_jax.files import json_object, whole

READER = f"Pillow {PIL.__version__}"
MOST_THREADS = 32
WORTH_A_BAR = 1000
"""Files from which on a bar shows how far the look is."""
CLOSED = (PermissionError, FileNotFoundError, IsADirectoryError)
"""What will not pass by itself, unlike a network's refusal."""
BYTES = 16
"""Of a digest."""


class Look(NamedTuple):
    """What came of a look at a file.

    Attributes:
      digest: of its bytes; '' where they do not read.
      reason: why it is no picture, a clause; '' where it is one.
    """

    digest: str
    reason: str


Notes = dict[str, dict[File, Look]]
"""By the folder or archive, absolute."""


def look_at(source: Any, notes: Path) -> dict[str, Look]:
    """Looks at all files of a source that were not looked at before.

    Args:
      source: a data set; {} of one that does not say which files it has.
      notes: the file of what was noted before, which is written where there is more.

    Raises:
      OSError: a disk or a network refuses a file for now.
    """
    files = files_of(source)
    if not files:
        return {}
    before = _noted(notes)
    folder = str(Path(source.path).expanduser().resolve())
    looks = before.get(folder, {})
    new: dict[File, Look] = {}
    try:
        for file, look in _looks(source.content, [file for file in files if file not in looks]):
            new[file] = look
    finally:
        looks = looks | new
        if new:
            # Other splits are of the same archive: of them nothing is forgotten.
            current, names = set(files), {file.name for file in files}
            stay = {file: look for file, look in looks.items() if file in current or file.name not in names}
            _note(notes, before | {folder: stay})
    return {file.name: looks[file] for file in files}


def files_of(source: Any) -> list[File]:
    """The files of a source that says which it has; a source of one's own may have something else by these names."""
    files = getattr(source, "files", None)
    listed = isinstance(files, list) and all(isinstance(file, File) for file in files)
    return files if listed and callable(getattr(source, "content", None)) else []


def same(looks: Iterable[tuple[str, Look]]) -> tuple[int, tuple[str, str] | None]:
    """Pictures that have the same bytes; broken ones, which may all be empty, do not count.

    Args:
      looks: (what a file is called, the look at it).

    Returns:
      (how many are the same as one before, the first such pair or None).
    """
    first: dict[str, str] = {}
    pairs = [(first[look.digest], name) for name, look in looks
             if not look.reason and first.setdefault(look.digest, name) != name]
    return len(pairs), pairs[0] if pairs else None


def _looks(content: Callable[[str], bytes], files: Sequence[File]) -> Iterator[tuple[File, Look]]:
    """Looks at files, several at a time."""
    from tqdm import tqdm

    if not files:
        return
    # Decoders let go of Python's lock.
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    bar = tqdm(total=len(files), unit="image", desc="all pictures are read once", disable=len(files) < WORTH_A_BAR)
    with ThreadPool(threads) as pool, bar:
        for pair in pool.imap_unordered(lambda file: (file, _look(content, file.name)), files, chunksize=8):
            bar.update()
            yield pair


def _look(content: Callable[[str], bytes], name: str) -> Look:
    try:
        data = content(name)
    except CLOSED as error:
        return Look("", f"cannot be opened ({error.strerror})")
    except ConfigError as error:                                                 # of a damaged archive
        return Look("", _clause(error, name))
    digest = hashlib.blake2b(data, digest_size=BYTES).hexdigest()
    try:
        read(data, name)
    except ConfigError as error:
        return Look(digest, _clause(error, name))
    return Look(digest, "")


def _clause(error: ConfigError, name: str) -> str:
    """What an error says of a file, without its name and what to do: 'x/a.jpg: cannot ... (why); mend it'."""
    return str(error).rpartition(f"{name}: ")[2].rpartition("; ")[0] or str(error)


def _noted(notes: Path) -> Notes:
    """What is noted; {} where nothing is that reads."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        content = json_object(notes.read_text(encoding="utf-8"))
        other = content["reader"] != READER
        return {folder: {File(*row[:3]): Look(*row[3:]) for row in rows if not (other and row[4])}
                for folder, rows in content["folders"].items()}
    return {}


def _note(notes: Path, folders: Mapping[str, Mapping[File, Look]]) -> None:
    # A file that cannot be opened now has nothing by which one would know that it can be.
    rows = {folder: [[*file, *look] for file, look in looks.items() if look.digest] for folder, looks in folders.items()}
    with whole(notes) as unfinished:
        unfinished.write_text(json.dumps({"reader": READER, "folders": rows}, separators=(",", ":")), encoding="utf-8")
