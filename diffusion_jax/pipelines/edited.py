"""Rows of edited pictures: what they were made of, how near they are to that, and their files."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import pictures
from diffusion_jax.data.animation import animated
from diffusion_jax.pipelines.likeness import OUTSIDE, likeness, outside

SUFFIXES = (".png", ".gif", ".mp4")
"""What a name of edits may end in; each is written beside the others."""
OTHERS = (".npz", ".npy", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".json", ".jsonl")


def picture_file(out: str | Path) -> Path:
    """The .png of an `--out` of edits, beside which animations have the same name.

    Args:
      out: x.png, x.gif, x.mp4 or a name without a suffix; 'v1.5' is a name.

    Raises:
      ConfigError: it ends as another kind of file, or a folder, does.
    """
    text = str(out)
    path = Path(text).expanduser()
    if text.endswith("/") or path.suffix.lower() in OTHERS:
        written = "edits are written as a grid and an animation"
        instead = "end it in .png, or give a name without a suffix"
        raise ConfigError(f"--out {out}: {written}: {instead}")
    return path.with_suffix(".png") if path.suffix in SUFFIXES else Path(f"{path}.png")


class Edited(NamedTuple):
    """Rows of edited pictures.

    Attributes:
      images: uint8 [rows, N, H, W, C].
      what: the edit, as a line of text for people.
      originals: uint8 [N, H, W, C], the pictures of which rows keep something; None where the edit
        began without any.
      kept: a name for each such row, by its number.
      known: for some of them the mask [1, H, W, 1] of an inpainting, 1 where nothing is to change.
    """

    images: np.ndarray
    what: str
    originals: np.ndarray | None = None
    kept: Mapping[int, str] = {}
    known: Mapping[int, np.ndarray] = {}

    def grid(self) -> np.ndarray:
        """One picture, uint8 [h, w, C]: a row for each value."""
        return pictures.grid(self.images.reshape(-1, *self.images.shape[2:]), self.images.shape[1])

    def likeness(self) -> dict[str, dict[str, float]]:
        """How near the rows that keep something are to the pictures that they are of: by the name
        of the row, the mean of each figure of pipelines/likeness.py, and 'most outside' of a mask.
        One pair of equal pictures makes PSNR infinite."""
        if self.originals is None or not self.kept:
            return {}
        # All rows at once: the weights of LPIPS are read once.
        rows = [self.images[row] for row in self.kept]
        each = likeness(np.concatenate([self.originals] * len(rows)), np.concatenate(rows))
        means = {name: np.mean(np.split(of, len(rows)), axis=1) for name, of in each.items()}
        figures = {}
        for place, (row, called) in enumerate(self.kept.items()):
            figures[called] = {name: float(mean[place]) for name, mean in means.items()}
            if row in self.known:
                figures[called][OUTSIDE] = outside(
                    self.originals, self.images[row], self.known[row]
                )
        return figures

    def save(self, out: str | Path) -> list[Path]:
        """Writes the grid and, where there are several rows, an animation with a frame for each;
        returns the files.

        Args:
          out: x.png, or x: x.png is written, x.gif and, with imageio-ffmpeg, x.mp4.

        Raises:
          ConfigError: what `picture_file` refuses.
        """
        path = picture_file(out)
        pictures.save_png(path, self.grid())
        if len(self.images) == 1:
            return [path]
        frames = np.stack([pictures.grid(row) for row in self.images])  # [rows, h, w, C]
        return [path, *animated(path, frames)]
