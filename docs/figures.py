"""Pictures of the documentation: rows of images with a word beside each."""
from __future__ import annotations

import os
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np


def home() -> None:
    """Goes to the folder where the run of the documentation lies, docs/conf.py; anywhere else it stays."""
    os.chdir(os.environ.get("DOCS_HOME", "."))


def rows(images: np.ndarray, names: Sequence[object], title: str = "") -> None:
    """Draws uint8 images [rows, N, H, W, C], a name at the left of each row."""
    count, across = images.shape[:2]
    figure, axes = plt.subplots(count, 1, figsize=(0.62 * across + 1.2, 0.66 * count + 0.2), squeeze=False)
    for axis, row, name in zip(axes[:, 0], images, names, strict=True):
        strip = np.concatenate([np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=60) for image in row], axis=1)
        axis.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(str(name), rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(pad=0.3)
    plt.show()
