"""What a page may ask of the machine and send to it: whoever reaches it types what they like, and none of that names a file."""
from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.build import ConfigError, number
from diffusion_jax.data.image import center_crop_adm, read, resize, to_channels

PICTURES, STEPS, EDITS, LETTERS = 64, 1000, 100, 4000
"""Of a request, of a sampler, of a session, of a text."""
UPLOAD, PIXELS, WAITING = 16 * 2**20, 2**24, 200
"""Bytes of a file, pixels of a picture, requests that wait for the device: further ones are refused."""
PAINTED = 0.1
"""The share of a pixel that is painted over where it is made anew."""


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds; `ConfigError` for anything else."""
    return int(number(name, value, least, most, integer=True))


def text(name: str, value: Any) -> str | None:
    """A text without the space around it, None for an empty one; `ConfigError` for a long one, or for anything else."""
    if not isinstance(value, str | None) or len(value or "") > LETTERS:
        raise ConfigError(f"{name} is a text of at most {LETTERS} letters")
    return (value or "").strip() or None


def file(data: bytes | None) -> bytes:
    """The bytes of a file that was sent; `ConfigError` for none, or too many."""
    if not data or len(data) > UPLOAD:
        raise ConfigError(f"send a file of at most {UPLOAD // 2**20} MB")
    return data


def picture(data: bytes | None, shape: tuple[int, int, int]) -> np.ndarray:
    """The middle of the picture in a file, uint8 of a model's `shape` (H, W, C); `ConfigError` where it does not read."""
    image = read(file(data), "this picture")  # uint8 [h, w, c]
    if image.shape[:2] != shape[:2]:
        image = resize(center_crop_adm(image, max(shape[:2])), *shape[:2])
    return to_channels(image, shape[-1])


def mask(layers: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which pixels of a picture of `shape` (H, W, C) layers of paint, uint8 [h, w, 4], lie over: bool [H, W]."""
    painted = np.zeros(shape[:2], bool)
    for layer in layers or ():
        alpha = Image.fromarray(np.asarray(layer, np.uint8)[..., -1])
        painted |= np.asarray(alpha.resize(shape[1::-1], Image.Resampling.BOX)) >= 255 * PAINTED
    return painted


def rectangles(painted: np.ndarray) -> list[list[int]]:
    """[top, left, bottom, right] of rectangles that cover a mask bool [H, W] and nothing else: runs of pixels in a row, of which
    equal ones below each other are one. `ConfigError` where nothing is painted."""
    rects: list[list[int]] = []
    above: dict[tuple[int, int], list[int]] = {}
    for y, row in enumerate(painted):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).tolist()
        here = {run: above.get(run) or [y, run[0], y, run[1]] for run in zip(edges[::2], edges[1::2], strict=True)}
        rects += [rect for run, rect in here.items() if run not in above]
        for rect in here.values():
            rect[2] = y + 1
        above = here
    if not rects:
        raise ConfigError("paint over what is to be made anew, with the brush")
    return rects
