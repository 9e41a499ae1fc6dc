"""Latents of a fixed autoencoder, brought to the mean and spread that a diffusion model expects.

    x = (mean + eps std) scale + bias,   scale = s / raw_std,   bias = m - raw_mean scale         (1)  EDM2, 2312.02696 app. B.7

mean and std are the autoencoder's posterior of one image, raw_mean and raw_std those of the latents of a data set, per channel;
m = 0 and s = 0.5 in EDM2; 0 and 1 in the data sets that mode `encode` writes, which `Latents` reads.
"""
from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization

from diffusion_jax.build import ConfigError
from diffusion_jax.data.source import Record, existing, read_json, readable
from diffusion_jax.files import whole
from diffusion_jax.types import Array

ABOUT, SUFFIX = "latents.json", ".array_record"
PICTURES = "pictures"
"""In latents.json: the section data of the pictures that they were made of."""


@dataclass(frozen=True)
class Whitening:
    """(1). The defaults are EDM2's, for images of ImageNet in [0, 1] through Stable Diffusion's autoencoder (sd-vae-ft-mse).

    Attributes:
      raw_mean, raw_std: of the data set's latents, per channel.
      mean, std: those wanted.
    """

    raw_mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    raw_std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    mean: float = 0.0
    std: float = 0.5

    @property
    def scale(self) -> Array:
        """[C]."""
        return self.std / jnp.asarray(self.raw_std, jnp.float32)

    @property
    def bias(self) -> Array:
        """[C]."""
        return self.mean - jnp.asarray(self.raw_mean, jnp.float32) * self.scale

    @property
    def options(self) -> dict[str, Any]:
        """Of a first stage's task (tasks/autoencoder.py): with these it gives such latents."""
        scale = [self.std / std for std in self.raw_std]
        return dict(scale=scale, shift=[raw - self.mean / s for raw, s in zip(self.raw_mean, scale, strict=True)], black=0.0)

    def encode(self, mean: Array, std: Array, eps: Array) -> Array:
        """(1): a draw from the posterior, [B, H, W, C] each."""
        return (mean + eps * std) * self.scale[None, None, None] + self.bias[None, None, None]

    def decode(self, x: Array) -> Array:
        """What the autoencoder's decoder expects of x [B, H, W, C]."""
        return (x - self.bias[None, None, None]) / self.scale[None, None, None]


@dataclass(frozen=True)
class Latents:
    """A data set of latents, as mode `encode` writes it: a folder with an array_record file for each split, and latents.json.

    A record is {'moments': float16 [views, 2, h, w, c], 'label', 'caption'}: mean and deviation of the posterior, of the image
    and, with two views, of its mirror image.

    Attributes:
      path: the folder.
      split: 'train' or 'test'.

    Raises:
      ConfigError: at first use: no such folder or split, a damaged one, or array_record is not installed.
    """

    path: str
    split: str = "train"

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names, where there are any."""
        names = self.about["names"]
        return tuple(names) if names else None

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """latents.json: names, mean and std of each channel, how many records each split has, and of which `PICTURES`."""
        path = existing(self.path) / ABOUT
        found = read_json(path)
        if not isinstance(found, dict) or not found.keys() >= {"names", "mean", "std"}:
            raise ConfigError(f"{path}: says not all of names, mean and std; write it again with --mode encode")
        return found

    @functools.cached_property
    def _records(self) -> Any:
        file = existing(Path(self.path) / f"{self.split}{SUFFIX}")
        with readable(file):
            return _array_record().ArrayRecordReader(str(file), "readahead_buffer_size:0")

    def __len__(self) -> int:
        return self._records.num_records()

    def __getitem__(self, i: int) -> Record:
        with readable(f"{self.path}/{self.split}{SUFFIX}, record {i}"):
            return serialization.msgpack_restore(self._records.read([i])[0])


@dataclass(frozen=True)
class Draw:
    """From a record of `Latents` to a latent: a draw of its posterior, brought to mean 0 and deviation 1 in each channel.

    Attributes:
      path: the folder of the latents.
      flip: mirror every other image, where the data set has both views.
    """

    path: str
    flip: bool = True
    tokenizer: Callable[[str], np.ndarray] | None = None

    random = True

    @functools.cached_property
    def _whitening(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shift) of the data set's channels."""
        about = Latents(self.path).about
        return 1 / np.float32(about["std"]), np.float32(about["mean"])

    def __call__(self, record: Record, rng: np.random.Generator | None = None) -> Record:
        """'image' float32 [h, w, c], 'label' int32 and 'tokens' where there are any; the mean where there is no generator."""
        return {key: values[0] for key, values in self.batch(((record, rng),), 1).items()}

    def batch(self, pairs: Iterable[tuple[Record, np.random.Generator | None]], size: int) -> Record:
        """The same of `size` records, [size, ...] each: written in place, no array for each record to make and to stack.

        Args:
          pairs: records of `Latents`, and the generator of each, used before the next pair is asked for.
          size: how many there are.
        """
        pairs = iter(pairs)
        first = next(pairs)
        shape = first[0]["moments"].shape[2:]
        scale, shift = (np.broadcast_to(x, shape).copy() for x in self._whitening)      # NumPy broadcasts four channels slowly
        images, noise = np.empty((size, *shape), np.float32), np.empty(shape, np.float32)
        labels, tokens = [], []
        for image, (record, rng) in zip(images, itertools.chain((first,), pairs), strict=True):
            views = record["moments"]
            mean, std = views[0 if rng is None or not self.flip else rng.integers(len(views))]
            image[:] = mean
            if rng is not None:
                rng.standard_normal(out=noise, dtype=np.float32)
                noise *= std
                image += noise
            image -= shift
            image *= scale
            if "label" in record:
                labels.append(record["label"])
            if self.tokenizer is not None:
                spelt = {"rng": rng} if getattr(self.tokenizer, "dropout", 0) else {}
                tokens.append(self.tokenizer(record["caption"], **spelt))
        found: Record = {"image": images}
        if labels:
            found["label"] = np.array(labels, np.int32)
        return found | ({"tokens": np.stack(tokens)} if tokens else {})


class Writer:
    """Writes one split of a data set of latents. A context manager: the file is whole or not there.

    Not compressed: that would make it 8 % smaller and double the time to read it.

    Args:
      folder: of the data set, made when missing.
      split: its name.
    """

    def __init__(self, folder: str | Path, split: str):
        self._stack = contextlib.ExitStack()
        writer = _array_record().ArrayRecordWriter
        unfinished = self._stack.enter_context(whole(Path(folder) / f"{split}{SUFFIX}"))
        self._file = writer(str(unfinished), "group_size:1,uncompressed")

    def write(self, moments: np.ndarray, record: Mapping[str, Any]) -> None:
        """One image's moments [views, 2, h, w, c], and the label and caption of its record."""
        kept = {key: record[key] for key in ("label", "caption") if key in record}
        self._file.write(serialization.msgpack_serialize({"moments": np.float16(moments), **kept}))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()
        self._stack.__exit__(*exception)


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise ConfigError("data sets of latents need array_record: pip install array_record") from None
    return array_record_module
