"""Which checkpoints there are in a folder: nothing of them is read here."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffusion_jax.build import ConfigError

T = TypeVar("T")


def root_of(folder: str | os.PathLike[str]) -> Path:
    """The folder that holds the steps."""
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: give the workdir of a run")
    return folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder


def steps_in(root: Path) -> list[int]:
    """The finished checkpoints in a folder, ascending; none where there is no folder."""
    inside = root.iterdir() if root.is_dir() else ()
    return sorted(int(path.name) for path in inside if path.name.isdigit() and (path / "state").is_dir())


def find(folder: str | os.PathLike[str], step: int | None = None) -> tuple[Path, int]:
    """(folder of the checkpoints, step) of one that is there, the newest by default.

    Raises:
      ConfigError: there is none; the message names what there is.
    """
    root = root_of(folder)
    if root.name.isdigit() and (root / "state").is_dir():
        root, step = root.parent, int(root.name) if step is None else step
    steps = steps_in(root)
    if not steps:
        raise ConfigError(f"{root} holds no checkpoint; it has: {', '.join(sorted(p.name for p in root.iterdir())) or 'nothing'}")
    if step is not None and step not in steps:
        raise ConfigError(f"{root} has no checkpoint of step {step}; it has: {', '.join(map(str, steps))}")
    return root, steps[-1] if step is None else step


def newest(folder: str | os.PathLike[str], step: int | None, read: Callable[[Path, int], T]) -> T:
    """What `read` makes of (folder of the checkpoints, step) of one that is there.

    A run that trains removes its old checkpoints: where it does so to the newest of before while that is read, the newest of now
    is read.

    Args:
      folder: a run's folder, its folder 'checkpoints', or the folder of one step.
      step: which checkpoint; None for the newest.
      read: what to read of it.

    Raises:
      ConfigError: there is none; what `read` raises.
    """
    while True:
        root, last = find(folder, step)
        try:
            return read(root, last)
        except ConfigError:
            named = step is not None or Path(os.path.abspath(folder)) == root / str(last)
            if named or find(root)[1] == last:
                raise
