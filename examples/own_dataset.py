"""A data set of your own: discs and squares that are drawn as they are asked for.

    python -m diffusion_jax.main --config own_dataset.py --workdir runs/own_dataset --allow own_dataset
    python -m diffusion_jax.main --mode sample --workdir runs/own_dataset --label square --num 16 --allow own_dataset

What has `names`, a length and records is one. Pictures in a folder need no code: docs/commands.md.
"""
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.data.source import Record
from diffusion_jax.runs.pages import read


@dataclass(frozen=True)
class Shapes:
    """Records with an 'image' uint8 [8, 8, 3] and a 'label', 0 a disc, 1 a square.

    Attributes:
      count: how many there are.
      first: the number of the first, by which a second set has others.
    """

    count: int = 2000
    first: int = 0
    names = ("disc", "square")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Record:
        """Record i: the same whenever it is read, and by whichever process."""
        rng = np.random.default_rng(self.first + i)
        label = i % 2
        y, x = abs(np.mgrid[:8, :8] - rng.uniform(2.5, 4.5, (2, 1, 1)))  # [8, 8] each
        inside = (np.maximum(x, y) if label else np.hypot(x, y)) < rng.uniform(1.5, 3)
        colour = rng.integers(100, 256, 3)
        return {"image": (inside[..., None] * colour).astype(np.uint8), "label": label}


def get_config(arg: str = "") -> ConfigDict:
    """The page of the quick start with these data; `own_dataset.py:tiny` runs in seconds."""
    config = read(f"digits:{arg}")
    config.data.train = dict(name="own_dataset:Shapes")
    config.data.test = dict(name="own_dataset:Shapes", count=200, first=10_000)
    # What the data differ in from the digits: colours, and two classes.
    config.data.decode.channels = config.model.channels = 3
    config.task.update(shape=(8, 8, 3))
    config.task.cond.num_classes = 2
    return config
