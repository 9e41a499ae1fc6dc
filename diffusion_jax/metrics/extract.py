"""Features of many images: batch by batch, over all devices, read ahead, and kept on disk until the figures are there.

A set of n images is cut at 0, b, 2b ... whatever happens; process p of P takes every P-th batch from the p-th on. A batch's
features are one file, written whole or not at all, so that what is killed half way goes on with the batch it was at. Moments
read one file after the other; only what needs all features at once (neighbours, kernels) holds them in memory.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.rows import filled
from diffusion_jax.files import whole
from diffusion_jax.metrics.images import Batch, Images
from diffusion_jax.metrics.moments import Moments, moments, over_processes, total
from diffusion_jax.types import Array, Params

SHOWN = 100
"""Images that are kept beside their features, for the report."""


@dataclass(frozen=True)
class Network:
    """What sees images.

    Attributes:
      label: stands in brackets behind every figure, so that nobody takes one network's FID for another's.
      see: (params, images uint8 [B, H, W, C]) -> what is found, [B, ...] each, by name: 'features' [B, D] and perhaps 'spatial'
        [B, S] and 'logits' [B, classes]; runs inside `jax.jit`.
      params: its parameters.
    """

    label: str
    see: Callable[[Params, Array], dict[str, Array]]
    params: Params = field(hash=False, compare=False, repr=False)


@dataclass(frozen=True)
class Found:
    """What a network found in a set of images.

    Attributes:
      files: of this process's batches, in order.
      starts: number of the first image of each.
      count: images over all processes.
    """

    files: tuple[Path, ...]
    starts: tuple[int, ...]
    count: int

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """This process's batches, one at a time.

        Raises:
          ConfigError: a file that does not read.
        """
        for file in self.files:
            try:
                with np.load(file) as arrays:
                    yield arrays[name]
            except Exception as error:               # a damaged archive raises anything at all
                raise ConfigError(f"{file} is damaged ({type(error).__name__}): remove it and run the command again") from error

    def has(self, name: str) -> bool:
        """Whether there is such a thing: 'label' of images, what the network gives."""
        with np.load(self.files[0]) as arrays:
            return name in arrays.files

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """[count] int, or None."""
        return self.rows("label") if self.has("label") else None

    def moments(self, name: str) -> Moments:
        """Mean and covariance over all processes, of which each holds a batch at a time."""
        return moments(over_processes(total(self.parts(name))))

    def rows(self, name: str) -> np.ndarray:
        """All of it in memory, [count, ...], the same on every process."""
        own = np.concatenate(list(self.parts(name)))
        index = np.concatenate([first + np.arange(len(part)) for first, part in zip(self.starts, self.parts(name), strict=True)])
        if jax.process_count() > 1:
            own, index = _gathered(own, index)
        rows = np.empty((self.count, *own.shape[1:]), own.dtype)
        rows[index] = own
        return rows

    @property
    def pixels(self) -> np.ndarray:
        """The first images that this process saw, uint8 [up to SHOWN, H, W, C]."""
        batch = len(next(self.parts("pixels")))
        files = self.files[: -(-SHOWN // batch)]
        return np.concatenate(list(replace(self, files=files).parts("pixels")))

    def forget(self) -> None:
        """Removes this process's files and, once they are all gone, their folder."""
        for file in self.files:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.files[0].parent.rmdir()


def _gathered(own: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all processes, and their numbers."""
    from jax.experimental import multihost_utils

    pad = int(multihost_utils.process_allgather(np.array(len(index))).max()) - len(index)
    index = np.pad(index, (0, pad), constant_values=-1)
    own = np.pad(own, ((0, pad), *((0, 0) for _ in own.shape[1:])))
    own, index = (multihost_utils.process_allgather(array, tiled=True) for array in (own, index))
    return own[index >= 0], index[index >= 0]


@functools.partial(jax.jit, static_argnums=0)
def _see(see: Callable[[Params, Array], dict[str, Array]], params: Params, images: Array) -> dict[str, Array]:
    return see(params, images)


def extract(network: Network, images: Images, folder: Path, batch: int = 250) -> Found:
    """What `network` finds in `images`; goes on where a process that was killed left off.

    Args:
      network: what sees them.
      images: a set of images.
      folder: where the batches are kept; its name must stand for everything that they depend on.
      batch: images at a time, split over this process's devices where it divides.

    Raises:
      ConfigError: fewer batches than processes, or what `images.batches` refuses.
    """
    from tqdm import tqdm

    if len(images) <= batch * (jax.process_count() - 1):
        raise ConfigError(f"{len(images)} images are no batch of {batch} for each of {jax.process_count()} processes: change one")
    batch = min(batch, len(images))
    folder.mkdir(parents=True, exist_ok=True)
    starts = tuple(range(0, len(images), batch)[jax.process_index()::jax.process_count()])
    files = tuple(folder / f"{first:08d}.npz" for first in starts)
    missing = [(first, file) for first, file in zip(starts, files, strict=True) if not file.exists()]
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices if batch % len(devices) == 0 else devices[:1]), ("data",))
    rows, everywhere = (jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ()))
    params = jax.device_put(network.params, everywhere)
    with tqdm(total=len(starts), initial=len(starts) - len(missing), unit="batch", desc=network.label, leave=False,
              disable=jax.process_index() > 0) as bar:
        write: Callable[[], None] | None = None
        for (first, file), examples in zip(missing, images.batches([first for first, _ in missing], batch), strict=True):
            pixels = examples["image"]
            whole = pixels[filled(0, batch, len(pixels))]
            found = _see(network.see, params, jax.device_put(whole, rows))
            if write:
                write()                                                                 # while the devices are busy
            shown = max(0, SHOWN - batch * starts.index(first))
            write = functools.partial(_write, file, found, examples, shown)
            bar.update()
        if write:
            write()
    return Found(files, starts, len(images))


def _write(file: Path, found: dict[str, Array], examples: Batch, shown: int) -> None:
    arrays = {name: np.asarray(value)[: len(examples["image"])] for name, value in found.items()}
    if "label" in examples:
        arrays["label"] = examples["label"]
    if shown:
        arrays["pixels"] = examples["image"][:shown]
    with whole(file) as unfinished:
        np.savez(unfinished, **arrays)

