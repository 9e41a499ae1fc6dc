"""Mode `likelihood`: what a token model or a first stage makes of held-out data.

    transformer    bits per token of captions, of images given their captions, and of images alone
    autoencoder    PSNR in dB of the mean of the images' posterior, decoded; of a VQ also usage and
                   perplexity
    discrete VAE   -ln p of the reconstruction, per pixel and channel; mean squared error; usage and
                   perplexity of the codebook over the whole set

A first stage is measured on its own held-out images, or on those of a page:

    --workdir runs/tae --config configs/emoji_vae.py:emoji/ --config.data.decode.size=64

Prints a table and writes likelihood.json and, of a first stage, reconstructions.png: images above
what is left of them. Both are of the newest; the folder `reports` keeps all. With `--lora` they are
of the weights that it changes, and say so.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, build, check_options, option
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import likelihood, report
from diffusion_jax.files import writable
from diffusion_jax.modes.options import PAGE_HELP, Page, Weights, group
from diffusion_jax.pipelines.lora import listed, opened
from diffusion_jax.runs import held_out, page
from diffusion_jax.runs.folder import Run
from diffusion_jax.tasks import kinds
from diffusion_jax.train.state import plain

WRITTEN = {".json": "likelihood.json", ".png": "reconstructions.png"}
"""The files of the newest, by their suffix."""


@dataclass(frozen=True)
class Options:
    """Of which images, and how many."""

    config: Page | None = option(None, f"Of a first stage, whose held-out images. {PAGE_HELP}")
    num: int | None = option(
        None, "Held-out images at most, spread over them; all by default", least=1
    )
    batch: int = option(100, "Images at a time", least=1)
    weights: Weights = group(Weights)

    def __post_init__(self):
        check_options(self)


def run(options: Options, workdir: str) -> None:
    """Measures a checkpoint on its own held-out data, or on those of a page.

    Args:
      options: of which images, and how many.
      workdir: the run's folder.

    Raises:
      ConfigError: what `opened` refuses, a run without data, or a page for a transformer or with
        other images than a first stage sees.
    """
    weights = options.weights
    # Another kind of model is refused with the names of these.
    measurable = tuple(likelihood.BY_KIND)
    measured_run = opened(workdir, measurable, weights.which, weights.step, weights.loras)
    about: dict[str, Any] = {}
    if options.config is None:
        data = measured_run.data("give a --config that says what to measure it on")
    else:
        data = page.data_of(plain(options.config), "give another --config")
        check_data(measured_run, data)
        about = {"data": data["test"].get("path", data["test"]["name"])}
    newest = {suffix: Path(workdir, name) for suffix, name in WRITTEN.items()}
    for path in newest.values():
        writable(path)
    writable(f"{Path(workdir, report.KEPT)}/")
    # All at once: perplexity is of the codes of the whole set, and the picture is of its first.
    batches = list(held_out.batches(data, "test", options.num, options.batch))
    figures, picture = likelihood.measured(measured_run.model, batches)
    loras = {"lora": listed(measured_run.identity)} if measured_run.loras else {}
    count = sum(len(batch["image"]) for batch in batches)
    lines = {**about, **loras, "images": count, **figures}
    text = json.dumps(lines, indent=2) + "\n"
    options_set: dict[str, Any] = {} if options.num is None else {"num": options.num}
    options_set |= about
    which = {"step": measured_run.step, "weights": measured_run.which}
    name = report.name_of("likelihood", options_set | loras, **which)
    history = report.place_of(Path(workdir, report.KEPT), name, text)
    for path in (history, newest[".json"]):
        report.save(path, text)
    if picture is not None:
        for path in (history.with_suffix(".png"), newest[".png"]):
            save_png(path, picture)
    for name, value in lines.items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")


def check_data(run: Run, data: Mapping[str, Any]) -> None:
    """Raises ConfigError for held-out images that a first stage cannot read, and for a transformer,
    whose captions a page would spell otherwise."""
    if isinstance(run.task, kinds.Tokens):
        raise ConfigError(
            f"--config is for a first stage: {run.task.noun} is measured on its own held-out images"
        )
    if "test" not in data:
        raise ConfigError("mode likelihood needs data.test: add it to the --config")
    if not len(build(data["test"])):
        raise ConfigError("data.test has no images: there is nothing to measure")
    record = build(data["test"])[0]
    shape = build(data["decode"])(record, np.random.default_rng(0))["image"].shape
    own = run.task.shape
    # The codes of a discrete VAE are of a grid, an autoencoder's latents of any.
    if shape[-1] != own[-1] or (isinstance(run.task, kinds.Discrete) and shape != own):
        raise ConfigError(
            f"{run.task.noun} of images of {own}, data.decode gives {shape}: choose another "
            "--config"
        )
