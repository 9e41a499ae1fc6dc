"""Whether samples are copies of training pictures: figures, a sentence, and the nearest pairs.

    closer[pixels]      how often a sample is nearer to a training picture than another picture is:
                        0.5 for a model that generalises, 1 for one that copies
    copies[pixels]      the share of samples that are copies                 (metrics/copies.py)

Both come beside the other figures of samples, at the end of training and on its way, so that who
trains on few pictures sees when to stop.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import build
from diffusion_jax.data import pictures
from diffusion_jax.data.rows import spread
from diffusion_jax.evaluation.report import Measured, pairs_grid
from diffusion_jax.metrics import copies
from diffusion_jax.runs import held_out

SIDE = 64
"""Pixels of the longer side at which pictures are compared: larger ones are made smaller."""
MOST = 20_000
"""Training pictures: of more nobody learns them by heart, and they would not fit."""
OTHERS = 500
"""Held-out pictures, and training pictures, that samples are compared with."""
PAIRS = 24
"""Nearest pairs that are shown."""
FILE = "nearest.png"


def added(measured: Measured, data: Mapping[str, Any]) -> Measured:
    """What was measured of samples, with the figures of copies; as it is where the data has no
    pictures of that size, too few, or more than `MOST`.

    Args:
      measured: its gallery has the samples.
      data: the section of a run's page.
    """
    samples = measured.gallery.samples
    if samples is None or len(samples) < 2:
        return measured
    train = _pictures(data, "train", samples.shape[1:])
    # One is left out, and two are to be left.
    if train is None or len(train) < 3:
        return measured
    small = np.stack([shrunk(image) for image in samples])
    mirror = bool(data["decode"].get("flip"))
    nearest = copies.neighbours(small, train, mirror)
    result = copies.copies(nearest.ratio, _ratios_of_others(data, train, samples.shape[1:], mirror))
    figures: dict[str, Any] = {
        "closer[pixels]": result.closer,
        "copies[pixels]": result.copies,
    }
    if result.alarm:
        before = measured.figures.get("warnings", ())
        figures["warnings"] = [*before, sentence(result)]
    first = np.argsort(nearest.ratio, kind="stable")[:PAIRS]
    pairs = np.stack([small[first], train[nearest.index[first]]], axis=1)  # [n, 2, H, W, C]
    gallery = measured.gallery._replace(pairs=pairs)
    return measured._replace(figures=measured.figures | figures, gallery=gallery)


def sentence(result: copies.Copies) -> str:
    """What a person is told."""
    return (
        "samples come closer to training pictures than other pictures do "
        f"(closer[pixels] {result.closer:.2f}, 0.5 is usual; copies[pixels] {result.copies:.2f}, "
        f"of other pictures {result.others:.2f}): the model learns its pictures by heart; stop at "
        "an earlier step, or see 'Small sets' in docs/your_own_pictures.md"
    )


def noted(folder: str | Path, step: int, measured: Measured) -> str:
    """Keeps the nearest pairs of a step while training goes on, where samples come too close.

    Args:
      folder: the run's.
      step: of the samples.
      measured: what `added` returned.

    Returns:
      A line to print the first time, '' else.
    """
    warnings = [text for text in measured.figures.get("warnings", ()) if "closer[pixels]" in text]
    pairs = measured.gallery.pairs
    if not warnings or pairs is None:
        return ""
    samples = Path(folder, "samples")
    first = not any(samples.glob(f"*_{FILE}"))
    path = samples / f"{step:08d}_{FILE}"
    pictures.save_png(path, pairs_grid(pairs))
    return f"warning: step {step}: {warnings[0]}; the nearest pairs: {path}" if first else ""


def shrunk(image: np.ndarray) -> np.ndarray:
    """A picture uint8 [H, W, C] with at most about `SIDE` pixels to a side: means over squares."""
    height, width, channels = image.shape
    factor = min(max(1, round(max(height, width) / SIDE)), height, width)
    if factor == 1:
        return image
    rows, columns = height // factor, width // factor
    whole = image[: rows * factor, : columns * factor]
    squares = whole.reshape(rows, factor, columns, factor, channels)
    return squares.mean((1, 3)).round().astype(np.uint8)


def _pictures(
    data: Mapping[str, Any], split: str, shape: tuple[int, ...], num: int | None = None
) -> np.ndarray | None:
    """Different pictures of a split, made small, uint8 [N, H, W, C]: `num` of them spread over it,
    or all; None where there are none of a shape (H, W, C), or too many."""
    spec = data.get(split)
    if spec is None:
        return None
    count = len(build(spec))
    if not count or (num is None and count > MOST):
        return None
    rows = []
    for record in held_out.records(data, split, num):
        image = record["image"]
        if image.dtype != np.uint8 or image.shape != shape:
            return None
        rows.append(shrunk(image))
    images = np.stack(rows)
    return images[copies.different(images)]


def _ratios_of_others(
    data: Mapping[str, Any], train: np.ndarray, shape: tuple[int, ...], mirror: bool
) -> np.ndarray:
    """The ratios of pictures that are no samples: held-out ones, and training pictures each against
    the others."""
    rows = np.array(spread(len(train), OTHERS))
    ratios = [copies.neighbours(train[rows], train, mirror, but=rows).ratio]
    others = _pictures(data, "test", shape, OTHERS)
    if others is not None:
        ratios.append(copies.neighbours(others, train, mirror).ratio)
    return np.concatenate(ratios)
