"""What a folder of pictures holds, without decoding one: what a page that fits itself to a folder looks at.

    overview("photos/")       Overview(pictures=75, classes=2, captions=None, channels=3, side=375)
"""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diffusion_jax.build import ConfigError
from diffusion_jax.data.folder import Folder, images_in
from diffusion_jax.data.image import opened
from diffusion_jax.data.rows import spread
from diffusion_jax.data.source import existing

LOOKED_AT = 256
"""Pictures whose sizes are read, spread over the folder."""
SMALLER = 0.1
"""The share of them that may be smaller than what is said of all."""
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
ARRAYS = (".npz", ".npy", ".array_record")
UNPACK = "is an archive: unpack it, and give the folder of its pictures"


class Overview(NamedTuple):
    """A folder of pictures.

    Attributes:
      pictures: how many records there are, a picture with two captions twice.
      classes: how many; 0 where the pictures have no labels.
      captions: of all records; None where there are none.
      channels: 1 where all pictures are grey, else 3.
      side: of the shorter sides of most pictures the least, in pixels.
    """

    pictures: int
    classes: int
    captions: list[str] | None
    channels: int
    side: int


def overview(path: str) -> Overview:
    """Looks a folder over.

    Raises:
      ConfigError: there is none, it holds no pictures but another kind of data, or what `Folder` refuses.
    """
    file = Path(path).expanduser()
    if file.is_file() and file.suffix.lower() in ARCHIVES:
        raise ConfigError(f"{path}: {UNPACK}")
    folder = Folder(path)
    try:
        pictures = len(folder)
    except ConfigError as error:
        root = existing(path, "folder")
        raise (None if images_in(root, deep=True) else _other(root)) or error from None
    labels = folder.labels
    classes = len(folder.names or ()) or (0 if labels is None else int(labels.max()) + 1)
    return Overview(pictures, classes, folder.captions, folder.channels, _side(folder))


def _side(folder: Folder) -> int:
    """See `Overview.side`; of pictures that do not read nothing is said here."""
    files = folder.files
    root = Path(folder.path).expanduser()
    sides = sorted(filter(None, (_shorter_side(root / files[i].name) for i in spread(len(files), LOOKED_AT))))
    if not sides:
        raise ConfigError(f"{folder.path}: none of its pictures reads: mend them, or give another folder")
    return sides[int(SMALLER * len(sides))]


def _shorter_side(file: Path) -> int:
    """In pixels, by the header of a picture; 0 where that does not read."""
    try:
        with opened(file) as picture:
            return min(picture.size)
    except Exception:  # decoders raise anything at all; the check of all files says it, by name
        return 0


def _other(folder: Path) -> ConfigError | None:
    """What to do with a folder of another kind of data; None where it is no such thing."""
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in ARCHIVES:
            return ConfigError(f"{file}: {UNPACK}")
        if ".tfrecord" in file.name or file.name == "dataset_info.json":
            return ConfigError(f"{folder}: is a data set of TFDS: name it as diffusion_jax.data.tfds:TFDS on a page, as "
                               "configs/flowers102_dit.py does")
        if file.suffix.lower() in ARRAYS:
            return ConfigError(f"{file}: is an array: name it as diffusion_jax.data.arrays:Arrays on a page, as "
                               "configs/emoji_vae.py does")
    return None
