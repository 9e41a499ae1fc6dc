"""Pictures and paint as somebody sends them: files of any size, cut to that of a model, and what a
brush painted over as the rectangles that an edit names."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import center_crop_adm, read, resize, to_channels

PAINTED = 0.1
"""The share of a pixel that is painted over where it is made anew."""


def cropped(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The middle of the picture in a file, uint8 of a model's `shape` (H, W, C).

    Raises:
      ConfigError: it does not read.
    """
    image = read(data, "this picture")  # uint8 [h, w, c]
    if image.shape[:2] != shape[:2]:
        image = resize(center_crop_adm(image, max(shape[:2])), *shape[:2])
    return to_channels(image, shape[-1])


def mask(layers: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Which pixels of a picture layers of paint lie over: bool [H, W].

    Args:
      layers: uint8 [h, w, 4] each, of any size, the last channel of which is how opaque they are.
      shape: (H, W, C) of the picture.
    """
    painted = np.zeros(shape[:2], bool)
    for layer in layers:
        opaque = Image.fromarray(np.asarray(layer, np.uint8)[..., -1])
        small = opaque.resize((shape[1], shape[0]), Image.Resampling.BOX)
        painted |= np.asarray(small) >= 255 * PAINTED
    return painted


def rectangles(painted: np.ndarray) -> list[list[int]]:
    """[top, left, bottom, right] of rectangles that cover a mask bool [H, W] and nothing else: runs
    of pixels in a row, of which equal ones below each other are one.

    Raises:
      ConfigError: nothing is painted.
    """
    rects: list[list[int]] = []
    above: dict[tuple[int, int], list[int]] = {}
    for y, row in enumerate(painted):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).tolist()
        runs = zip(edges[::2], edges[1::2], strict=True)
        here = {run: above.get(run) or [y, run[0], y, run[1]] for run in runs}
        rects += [rect for run, rect in here.items() if run not in above]
        for rect in here.values():
            rect[2] = y + 1
        above = here
    if not rects:
        raise ConfigError("paint over what is to be made anew, with the brush")
    return rects
