"""What is written lies apart from what is read: a run in a folder of pictures would be pictures of
its own data, and its folders classes of them."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.arrays import is_hidden
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.listing import listing_in


def check_apart(data: Mapping[str, Any], folder: str | os.PathLike[str], flag: str) -> None:
    """Raises ConfigError where a folder that is written lies in one of pictures that is read.

    Args:
      data: a page's section `data`.
      folder: what is written; ~ is expanded.
      flag: what the command line calls that, for the error: '--workdir'.

    Dotted folders are not looked at, and where pictures are listed no others are.
    """
    place = Path(folder).expanduser().resolve()
    for split in ("train", "test"):
        source = build(data[split])
        if not isinstance(source, Folder):
            continue
        root = Path(source.path).expanduser().resolve()
        if not place.is_relative_to(root) or not root.is_dir() or listing_in(root) is not None:
            continue
        if not any(map(is_hidden, place.relative_to(root).parts)):
            raise ConfigError(
                f"{flag} {folder} lies in the folder of the pictures, {source.path}, where what is "
                "written would be read as more of them: choose one beside it"
            )
