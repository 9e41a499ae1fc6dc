"""Mode `likelihood`: what a token model or a first stage makes of held-out data; prints a table and writes likelihood.json.

    transformer    bits per token of captions, of images given their captions, and of images alone
    autoencoder    PSNR in dB of the mean of the images' posterior, decoded; of a VQ usage and perplexity too; reconstructions.png
    discrete VAE   -ln p of the reconstruction, per pixel and channel; mean squared error; usage and perplexity of the codebook
                   over the whole set; reconstructions.png, each image above what is left of it
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import image
from diffusion_jax.models.vae import VQ
from diffusion_jax.modes import config as page
from diffusion_jax.modes import first_stage
from diffusion_jax.pipelines.dalle import likelihood
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.codes import VQCodes
from diffusion_jax.tasks.dvae import DiscreteVAE, usage
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Params

SHOWN = 16


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Measures a checkpoint on its own held-out data.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder.
      options: num, images at most, all by default; which, step, batch.

    Raises:
      ConfigError: another option, what `load` refuses, or a folder of another kind of model.
    """
    options = dict(options)
    stored, task, params = load(workdir, options.pop("which", "ema"), options.pop("step", None))
    num, batch = options.pop("num", None), options.pop("batch", 100)
    for name in options:
        raise ConfigError(f"--{name} is not for likelihood: give num, which, step or batch")
    if not isinstance(task, (Autoregressive, Autoencoder, DiscreteVAE)):
        raise ConfigError(f"{workdir} holds a {type(task).__name__}: likelihood is of a token transformer or an autoencoder")
    data = page.data_of(plain(stored), "likelihood is of a run's own held-out images")
    batches = list(held_out(data, num, batch))
    if isinstance(task, Autoregressive):
        report = likelihood(task, params, first_stage.kept(workdir), iter(batches))
    else:
        report, pictures = (reproduced if isinstance(task, Autoencoder) else reconstruction)(task, params, batches)
        image.save_png(Path(workdir, "reconstructions.png"), pictures)
    report = {"images": sum(len(part["image"]) for part in batches), **report}
    Path(workdir, "likelihood.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")


def held_out(data: Mapping[str, Any], num: int | None, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the test data, images in [-1, 1], the last one smaller; captions are spelt without dropout."""
    spec = dict(data["decode"])
    if (spec.get("tokenizer") or {}).get("dropout"):
        spec["tokenizer"] = {**spec["tokenizer"], "dropout": 0.0}
    source, decode = build(data["test"]), build(spec)
    count = len(source) if num is None else min(num, len(source))
    for start in range(0, count, size):
        rows = [decode(source[i], np.random.default_rng(0)) for i in range(start, min(start + size, count))]
        batch = {key: np.stack([row[key] for row in rows]) for key in ("image", "tokens") if key in rows[0]}
        yield batch | {"image": image.to_unit(batch["image"])}


def reconstruction(task: DiscreteVAE, params: Params, batches: list[dict]) -> tuple[dict[str, Any], np.ndarray]:
    """(figures of a discrete VAE, a picture of the first images above their reconstructions)."""
    @jax.jit
    def measured(params: Params, x: jax.Array) -> tuple[jax.Array, ...]:
        logits = task.logits(params, x)
        codes = jnp.argmax(logits, -1)
        terms = task.terms(params, x, logits, jax.nn.one_hot(codes, task.codes), 0.0)
        return codes.reshape(len(x), -1), task.decode(params, codes.reshape(len(x), -1)), terms["reconstruction"]

    parts = [measured(params, part["image"]) for part in batches]
    codes, images = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2))
    real, sizes = np.concatenate([part["image"] for part in batches]), [len(part["image"]) for part in batches]
    report = {
        f"reconstruction ({task.reconstruction})": float(np.average([float(part[2]) for part in parts], weights=sizes)),
        "mean squared error": float(np.mean((images - real) ** 2)), **spread(codes, task.codes),
    }
    return report, above(real, images)


def reproduced(task: Autoencoder, params: Params, batches: list[dict]) -> tuple[dict[str, Any], np.ndarray]:
    """(figures of an autoencoder, a picture of the first images above their reconstructions)."""
    decoded = jax.jit(lambda params, x: task.decode(params, task.encode(params, x)))
    real = np.concatenate([part["image"] for part in batches])
    images = np.concatenate([np.asarray(decoded(params, part["image"])) for part in batches])
    errors = np.mean((np.clip(images, -1, 1) - real) ** 2, axis=(1, 2, 3))
    report = {"PSNR (dB)": float(np.mean(10 * np.log10(4 / errors))), "mean squared error": float(np.mean(errors))}
    if isinstance(task.model, VQ):
        coder = VQCodes(task)
        codes = jax.jit(coder.encode)
        report |= spread(np.concatenate([np.asarray(codes(params, part["image"])) for part in batches]), coder.codes)
    return report, above(real, images)


def spread(index: np.ndarray, codes: int) -> dict[str, Any]:
    """How much of a codebook is used."""
    found = usage(jax.nn.one_hot(index, codes))
    return {"usage": float(found["usage"]), "perplexity": float(found["perplexity"]), "codes": codes}


def above(real: np.ndarray, images: np.ndarray) -> np.ndarray:
    """A picture of the first images above what is left of them."""
    shown = np.concatenate([real[:SHOWN], images[:SHOWN]])
    return image.grid(image.to_uint8(shown), columns=min(SHOWN, len(real)))
