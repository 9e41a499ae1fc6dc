"""Mode `likelihood`: what a token model or a first stage makes of held-out data.

    transformer    bits per token of captions, of images given their captions, and of images alone
    autoencoder    PSNR in dB of the mean of the images' posterior, decoded; of a VQ also usage and
                   perplexity
    discrete VAE   -ln p of the reconstruction, per pixel and channel; mean squared error; usage and
                   perplexity of the codebook over the whole set

Prints a table and writes likelihood.json and, of a first stage, reconstructions.png: images above
what is left of them. Both are of the newest; the folder `reports` keeps all. With `--lora` they are
of the weights that it changes, and say so.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diffusion_jax.build import check_options, option
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import likelihood, report
from diffusion_jax.files import writable
from diffusion_jax.modes.options import Weights, group
from diffusion_jax.pipelines.lora import listed, opened
from diffusion_jax.runs import held_out

WRITTEN = {".json": "likelihood.json", ".png": "reconstructions.png"}
"""The files of the newest, by their suffix."""


@dataclass(frozen=True)
class Options:
    """Of how many images."""

    num: int | None = option(
        None, "Held-out images at most, spread over them; all by default", least=1
    )
    batch: int = option(100, "Images at a time", least=1)
    weights: Weights = group(Weights)

    def __post_init__(self):
        check_options(self)


def run(options: Options, workdir: str) -> None:
    """Measures a checkpoint on its own held-out data.

    Args:
      options: of how many images.
      workdir: the run's folder.

    Raises:
      ConfigError: what `opened` refuses, or a run without data.
    """
    weights = options.weights
    # Another kind of model is refused with the names of these.
    kinds = tuple(likelihood.BY_KIND)
    measured_run = opened(workdir, kinds, weights.which, weights.step, weights.loras)
    data = measured_run.data("likelihood is of a run's own held-out images")
    newest = {suffix: Path(workdir, name) for suffix, name in WRITTEN.items()}
    for path in newest.values():
        writable(path)
    writable(f"{Path(workdir, report.KEPT)}/")
    # All at once: perplexity is of the codes of the whole set, and the picture is of its first.
    batches = list(held_out.batches(data, "test", options.num, options.batch))
    figures, picture = likelihood.measured(measured_run.model, batches)
    loras = {"lora": listed(measured_run.identity)} if measured_run.loras else {}
    count = sum(len(batch["image"]) for batch in batches)
    lines = {**loras, "images": count, **figures}
    text = json.dumps(lines, indent=2) + "\n"
    options_set = {} if options.num is None else {"num": options.num}
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
