"""Mode `encode`: the images of a page through an autoencoder, as a data set of latents to train on.

    out/train.array_record     mean and deviation of every image's posterior, float16
    out/test.array_record      the same of held-out images
    out/latents.json           mean and deviation of each channel over the training images, and
                               which these are: samples are measured against them
    out/first_stage            the autoencoder with that scale: for config.first_stage of a page

The autoencoder is trained here or imported; latents.json says which it was, with the LoRAs that
were merged into it (`--lora`), and out/first_stage has the merged weights. An encoding that was
ended half-way is done anew: nothing in its folder tells of which weights its latents are.
"""
from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, check_options, option
from diffusion_jax.data.image import Decode, to_unit
from diffusion_jax.data.latents import ABOUT, PICTURES, SUFFIX, Writer
from diffusion_jax.data.rows import filled
from diffusion_jax.data.source import Source
from diffusion_jax.files import whole, writable
from diffusion_jax.modes.options import PAGE_HELP, Page, Weights, group
from diffusion_jax.pipelines.lora import opened
from diffusion_jax.runs import page
from diffusion_jax.runs.apart import check_apart
from diffusion_jax.runs.folder import FIRST, Model, Run, holds_run, save_start
from diffusion_jax.tasks import kinds
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.state import plain
from diffusion_jax.types import Array

LOSSES = ("losses", "first_stage")
"""Of an autoencoder's task, what its latents do not need."""
SPLITS = ("train", "test")
UNFINISHED = ".unfinished"
"""In a folder of latents while they are written; what lies beside it is no data set."""


@dataclass(frozen=True)
class Options:
    """What to encode, and where to."""

    config: Page | None = option(None, PAGE_HELP)
    out: str = option("", "The new folder of the data set")
    batch: int = option(32, "Images at a time", least=1)
    weights: Weights = group(Weights)

    def __post_init__(self):
        check_options(self)
        if not self.out:
            raise ConfigError("mode encode needs --out, a new folder")
        check_new(Path(self.out).expanduser())


class Part(NamedTuple):
    """What is summed up over a batch.

    Attributes:
      count: of its images.
      moments: the means of z and of z^2 in each channel, [2, c].
    """

    count: int
    moments: np.ndarray


def run(options: Options, workdir: str) -> None:
    """Encodes the training and held-out images.

    Args:
      options: a page whose section data says what to encode, the autoencoder's own without one;
        the new folder.
      workdir: the autoencoder's folder.

    Raises:
      ConfigError: a folder of another kind of model, a LoRA that is not of this one, or no data.
    """
    weights = options.weights
    coder = opened(workdir, kinds.Encoding, weights.which, weights.step, weights.loras)
    config = coder.config if options.config is None else plain(options.config)
    data = page.data_of(config, "give a --config that says what to encode")
    check_data(coder, data)
    check_apart(data, options.out, "--out")
    out = Path(options.out).expanduser()
    writable(f"{out}/")
    start = time.time()
    with one_writer(out, doing="written"):
        begin(out)
        counts = written(coder, data, options.batch, out)
    speed = sum(counts.values()) / (time.time() - start)
    print(f"{counts['train']} and {counts['test']} latents at {speed:.1f} images/s: {out}")


def check_new(out: Path) -> None:
    """Raises ConfigError for a folder that holds anything, unless an encoding that was ended left
    it: pictures among which it would be a class, for example."""
    if (out / UNFINISHED).exists():
        return
    ours = [out / ABOUT, *(out / f"{split}{SUFFIX}" for split in SPLITS)]
    if any(path.exists() for path in ours) or holds_run(out / FIRST) or holds_run(out):
        raise ConfigError(f"{out} holds latents, or a run, already: choose another --out")
    # The lock of the process that writes it is dotted.
    others = sorted(path.name for path in out.glob("[!.]*"))
    if others:
        raise ConfigError(f"{out} is not empty, it holds {others[0]!r}: choose another --out")


def begin(out: Path) -> None:
    """Marks a folder as one that is being written, and removes what an ended encoding left."""
    check_new(out)
    unfinished = out / UNFINISHED
    if unfinished.exists():
        print(f"{out} holds an encoding that was ended: it is done anew")
        for split in SPLITS:
            (out / f"{split}{SUFFIX}").unlink(missing_ok=True)
        shutil.rmtree(out / FIRST, ignore_errors=True)
        (out / ABOUT).unlink(missing_ok=True)
    unfinished.touch()


def check_data(coder: Run, data: Mapping[str, Any]) -> None:
    """Raises ConfigError for data without two splits of pictures that the autoencoder can read."""
    for part in (*SPLITS, "decode"):
        if part not in data:
            raise ConfigError(f"mode encode needs data.{part}: add it to the --config")
    for split in SPLITS:
        if not len(build(data[split])):
            raise ConfigError(f"data.{split} has no images: there is nothing to encode")
    decode = build(data["decode"])
    if not isinstance(decode, Decode):
        raise ConfigError("mode encode reads pictures: data.decode is of something else")
    image = decode(build(data["train"])[0], np.random.default_rng(0))["image"]
    channels = coder.task.shape[-1]
    if image.shape[-1] != channels:
        raise ConfigError(
            f"the autoencoder reads images of {channels} channels, data.decode gives "
            f"{image.shape[-1]}: choose another --config"
        )


def written(coder: Run, data: Mapping[str, Any], size: int, out: Path) -> dict[str, int]:
    """Encodes both splits into a folder; returns how many latents each has."""
    train, test = (list(encoded(coder.model, data, split, size, out)) for split in SPLITS)
    counts = {"train": sum(part.count for part in train), "test": sum(part.count for part in test)}
    mean, std = scale_of(train)
    save_scaled(out / FIRST, coder, mean, std)
    names = build(data["train"]).names
    about = {
        "names": list(names) if names else None,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "count": counts,
        "autoencoder": coder.identity,
        PICTURES: {part: data[part] for part in (*SPLITS, "decode")},
    }
    # Last: where this file is, and no mark, the data set is whole.
    with whole(out / ABOUT) as unfinished:
        unfinished.write_text(json.dumps(about))
    (out / UNFINISHED).unlink()
    print(f"std {np.round(std, 3).tolist()}")
    return counts


def encoded(
    model: Model, data: Mapping[str, Any], split: str, size: int, out: Path
) -> Iterator[Part]:
    """Writes a split into `out`, `size` images at a time.

    Raises:
      ConfigError: latents that are not finite.
    """
    from tqdm import tqdm

    source: Source = build(data[split])
    # Each image is encoded once, so nothing may be drawn: both mirror images are written where
    # training would draw one, the middle stands for random crops, and texts stay texts.
    page_decode: Decode = build(data["decode"])
    views = 2 if page_decode.flip else 1
    decode = replace(page_decode, flip=False, crop="center", tokenizer=None)
    with Writer(out, split) as writer, tqdm(total=len(source), unit="image") as bar:
        for first in range(0, len(source), size):
            count = min(size, len(source) - first)
            records = [source[i] for i in range(first, first + count)]
            images = np.stack([decode(record)["image"] for record in records])
            rows = to_unit(images[filled(0, size, count)])  # [size, H, W, C]: one program for all
            moments = np.asarray(_moments(model, rows, views))[:count]  # [b, views, 2, h, w, c]
            if not np.isfinite(moments).all():
                reasons = "this autoencoder is broken, or these are not its images"
                raise ConfigError(f"latents are not finite: {reasons}")
            for record, each in zip(records, moments, strict=True):
                writer.write(each, record)
            yield Part(count, _summed(moments))
            bar.update(count)


@functools.partial(jax.jit, static_argnames=("views",))
def _moments(model: Model, images: Array, views: int) -> Array:
    """Mean and deviation of latents of images [B, H, W, C]; with two views of mirrored ones too."""
    parts = []
    for x in (images, images[:, :, ::-1])[:views]:
        posterior = model.task.posterior(model.params, x)
        parts.append(jnp.stack([posterior.mean, posterior.std], axis=1))
    return jnp.stack(parts, axis=1)  # [B, views, 2, h, w, c]


def _summed(moments: np.ndarray) -> np.ndarray:
    """The means of z and z^2 over [b, views, 2, h, w, c]: [2, c]."""
    # A latent is mean + std * eps: E z^2 = mean^2 + std^2, with no draw of eps.
    mean, std = moments[:, :, 0], moments[:, :, 1]
    axes = (0, 1, 2, 3)
    return np.stack([mean.mean(axes), (mean**2 + std**2).mean(axes)])


def scale_of(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, deviation) of each channel over the images of all parts, [c] each."""
    mean, square = np.average(
        [part.moments for part in parts], axis=0, weights=[part.count for part in parts]
    )
    # A channel that is constant would have the scale 1 / 0.
    return mean, np.sqrt(np.maximum(square - mean**2, 1e-12))


def save_scaled(folder: Path, coder: Run, mean: np.ndarray, std: np.ndarray) -> None:
    """The autoencoder without its losses, with the scale of these latents, as a checkpoint."""
    # Pages of latents then need no numbers: config.first_stage names the folder, which has them.
    task = {key: value for key, value in coder.config["task"].items() if key not in LOSSES}
    task |= {"scale": (1 / std).tolist(), "shift": mean.tolist()}
    save_start(
        folder,
        {"task": task, "model": coder.config["model"]},
        {"model": coder.model.params["model"]},
    )
