"""Sets of images that can be measured, read in batches: what lies somewhere, and the same blurred."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from diffusion_jax.build import ConfigError

AHEAD, THREADS = 2, 4                   # batches being read while one is on the devices, and readers


class Images(Protocol):
    """A set of images of one size."""

    @property
    def labels(self) -> np.ndarray | None:
        """[N] int, or None."""
        ...

    def __len__(self) -> int: ...

    def batches(self, starts: Sequence[int], size: int) -> Iterator[np.ndarray]:
        """uint8 [up to size, H, W, C] of the images from each start on."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Images that lie somewhere: a data set, a folder, an array.

    Attributes:
      read: image number i, uint8 [H, W, C].
      count: how many there are.
      what: what error messages call the set.
      labels: [count] int, or None.
      names: the classes, in the order of the labels.
    """

    read: Callable[[int], np.ndarray]
    count: int
    what: str
    labels: np.ndarray | None = None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def batches(self, starts: Sequence[int], size: int) -> Iterator[np.ndarray]:
        """Read ahead in threads.

        Raises:
          ConfigError: an image that does not read, or of another size than the first.
        """
        shape = self.read(0).shape if starts else ()
        waiting: deque[list[Any]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for first in starts:
                waiting.append([pool.submit(self._one, i, shape) for i in range(first, min(first + size, self.count))])
                if len(waiting) > AHEAD:
                    yield np.stack([job.result() for job in waiting.popleft()])
            while waiting:
                yield np.stack([job.result() for job in waiting.popleft()])

    def _one(self, i: int, shape: tuple[int, ...]) -> np.ndarray:
        image = self.read(i)
        if image.shape != shape:
            found, first = ("x".join(map(str, size)) for size in (image.shape, shape))
            raise ConfigError(f"{self.what}: image {i} is {found}, image 0 is {first}: give images of one size")
        return image


@dataclass(frozen=True)
class Blurred:
    """The images after a Gaussian filter, in whose features FID shows what is wrong with the coarse structure (2102.12092).

    Attributes:
      images: any set.
      radius: standard deviation of the filter in pixels.
    """

    images: Images
    radius: float

    @property
    def labels(self) -> np.ndarray | None:
        """Those of the images."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, starts: Sequence[int], size: int) -> Iterator[np.ndarray]:
        """The batches, filtered and rounded."""
        from scipy.ndimage import gaussian_filter

        for batch in self.images.batches(starts, size):
            smooth = gaussian_filter(batch.astype(np.float32), (0, self.radius, self.radius, 0))
            yield smooth.round().astype(np.uint8)
