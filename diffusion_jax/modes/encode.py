"""Mode `encode`: the images of a page through a trained or imported autoencoder, as a data set of latents to train on.

    out/train.array_record, test.array_record      mean and deviation of every image's posterior, float16
    out/latents.json                               mean and deviation of each channel over the training images
    out/first_stage                                the autoencoder with that scale: what config.first_stage of a page names
"""
from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.image import Decode, to_unit
from diffusion_jax.data.latents import ABOUT, Writer
from diffusion_jax.data.source import Source
from diffusion_jax.modes.first_stage import NAME
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.train.checkpoint import Checkpoints, available, load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Array, Params, TrainState


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Encodes the training and held-out images.

    Args:
      config: a page whose section data says what to encode; None takes the autoencoder's own.
      workdir: the autoencoder's folder.
      options: out, the new folder; which, step, batch.

    Raises:
      ConfigError: no --out, one that is there already, or a folder of another kind of model.
    """
    options = dict(options)
    out, batch = Path(options.pop("out", "")), options.pop("batch", 32)
    stored, task, params = load(workdir, options.pop("which", "ema"), options.pop("step", None))
    stored = plain(stored)
    data = (plain(config) if config is not None else stored).get("data", {})
    if not isinstance(task, Autoencoder):
        raise ConfigError(f"{workdir} holds a {type(task).__name__}: give the folder of an autoencoder")
    if options or not out.name or (out / ABOUT).exists() or "train" not in data:
        raise ConfigError("mode encode takes --out, a new folder, --which, --step, --batch, and a --config where the autoencoder "
                          "was not trained here")
    sums, counts, began = [], {}, time.time()
    for split in ("train", "test"):
        found = list(encoded(task, params, build(data[split]), build(data["decode"]), batch, out, split))
        counts[split] = sum(count for count, _ in found)
        sums += found if split == "train" else []
    first, second = np.average([moments for _, moments in sums], axis=0, weights=[count for count, _ in sums])
    std = np.sqrt(np.maximum(second - first**2, 1e-12))
    names = build(data["train"]).names
    about = {"names": list(names) if names else None, "mean": first.tolist(), "std": std.tolist(), "count": counts}
    (out / ABOUT).write_text(json.dumps(about))
    keep(out / NAME, stored, {"model": params["model"]}, first, std)
    speed = sum(counts.values()) / (time.time() - began)
    print(f"{counts['train']} and {counts['test']} latents at {speed:.1f} images/s, std {np.round(std, 3).tolist()}: {out}")


def encoded(
    task: Autoencoder, params: Params, source: Source, decode: Decode, batch: int, out: Path, split: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Writes a split; yields for each batch its size and the means of z and of z^2 over it, [2, c]."""
    from tqdm import tqdm

    views, decode = (2 if decode.flip else 1), replace(decode, flip=False, crop="center", tokenizer=None)
    moments = jax.jit(functools.partial(_moments, task, views=views))
    with Writer(out, split) as writer, tqdm(total=len(source), unit="image") as bar:
        for begin in range(0, len(source), batch):
            records = [source[i] for i in range(begin, min(begin + batch, len(source)))]
            images = np.stack([decode(record)["image"] for record in records])
            padded = np.concatenate([images, np.repeat(images[-1:], batch - len(images), axis=0)])
            found = np.asarray(moments(params, to_unit(padded)))[: len(images)]                    # [b, views, 2, h, w, c]
            if not np.isfinite(found).all():
                raise ConfigError("latents are not finite: this autoencoder is broken, or these are not its images")
            for record, each in zip(records, found, strict=True):
                writer.write(each, record)
            mean, std = found[:, :, 0], found[:, :, 1]
            axes = (0, 1, 2, 3)
            yield len(images), np.stack([mean.mean(axes), (mean**2 + std**2).mean(axes)])
            bar.update(len(images))


def _moments(task: Autoencoder, params: Params, images: Array, views: int) -> Array:
    """[b, views, 2, h, w, c] of images [b, H, W, C]."""
    found = []
    for x in (images, images[:, :, ::-1])[:views]:
        posterior = task.posterior(params, x)
        found.append(jnp.stack([posterior.mean, posterior.std], axis=1))
    return jnp.stack(found, axis=1)


def keep(folder: Path, stored: Mapping[str, Any], params: Params, mean: np.ndarray, std: np.ndarray) -> None:
    """The autoencoder without its losses, with the scale of these latents, as a checkpoint."""
    if folder.is_dir() and available(folder):
        raise ConfigError(f"{folder} holds a run: choose another --out")
    kept = {key: value for key, value in stored["task"].items() if key not in ("losses", "first_stage")}
    task = kept | {"scale": (1 / std).tolist(), "shift": mean.tolist()}
    with Checkpoints(folder, {"task": task, "model": stored["model"]}, every=1, keep=1) as checkpoints:
        checkpoints.save(TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=(), ema={}))
