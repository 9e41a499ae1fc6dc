"""Sets of images that can be measured, read in batches: what lies somewhere, and the same blurred."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from diffusion_jax.build import ConfigError

AHEAD, THREADS = 2, 4                   # batches being read while one is on the devices, and readers

Batch = Mapping[str, np.ndarray]
"""'image' uint8 [B, H, W, C] and, where there are labels, 'label' int [B]."""


class Images(Protocol):
    """A set of images of one size."""

    def __len__(self) -> int: ...

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """The images from each start on, up to `size` of them."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Images that lie somewhere: a data set, a folder, an array.

    Attributes:
      read: number -> {'image': uint8 [H, W, C]} and perhaps {'label': int}; called from several threads.
      count: how many there are.
      what: what error messages call the set.
      names: of the classes, in the order of the labels; None where there are none.
    """

    read: Callable[[int], Mapping[str, Any]]
    count: int
    what: str
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """Read ahead in threads.

        Raises:
          ConfigError: no images of 8 bits, one that does not read, or of another size than the first.
        """
        first = self.read(0)
        if "image" not in first or first["image"].dtype != np.uint8:
            raise ConfigError(f"{self.what} holds no images of 8 bits, but perhaps latents: give a --reference of images")
        shape = first["image"].shape
        waiting: deque[list[Any]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for first in starts:
                waiting.append([pool.submit(self._one, i, shape) for i in range(first, min(first + size, self.count))])
                if len(waiting) > AHEAD:
                    yield _stack(waiting.popleft())
            while waiting:
                yield _stack(waiting.popleft())

    def _one(self, i: int, shape: tuple[int, ...]) -> Mapping[str, Any]:
        record = self.read(i)
        if record["image"].shape != shape:
            found, first = ("x".join(map(str, size)) for size in (record["image"].shape, shape))
            raise ConfigError(f"{self.what}: image {i} is {found}, image 0 is {first}: give images of one size")
        return record


def _stack(jobs: list[Any]) -> Batch:
    records = [job.result() for job in jobs]
    return {name: np.stack([record[name] for record in records]) for name in ("image", "label") if name in records[0]}


@dataclass(frozen=True)
class Blurred:
    """The images after a Gaussian filter, in whose features FID shows what is wrong with the coarse structure (2102.12092).

    Attributes:
      images: any set.
      radius: standard deviation of the filter in pixels.
    """

    images: Images
    radius: float

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """The batches, filtered and rounded."""
        from scipy.ndimage import gaussian_filter

        for batch in self.images.batches(starts, size):
            smooth = gaussian_filter(batch["image"].astype(np.float32), (0, self.radius, self.radius, 0))
            yield {**batch, "image": smooth.round().astype(np.uint8)}
