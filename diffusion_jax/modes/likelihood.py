"""Mode `likelihood`: what a token model or a first stage makes of held-out data.

    transformer    bits per token of captions, of images given their captions, and of images alone
    autoencoder    PSNR in dB of the mean of the images' posterior, decoded; of a VQ also usage and
                   perplexity
    discrete VAE   -ln p of the reconstruction, per pixel and channel; mean squared error; usage and
                   perplexity of the codebook over the whole set

Prints a table and writes likelihood.json and, of a first stage, reconstructions.png: images above
what is left of them.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from diffusion_jax.build import check_options, option
from diffusion_jax.data.pictures import save_png
from diffusion_jax.evaluation import likelihood
from diffusion_jax.modes.options import Weights, group
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import open_run


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
      ConfigError: what `open_run` refuses, or a run without data.
    """
    weights = options.weights
    # Another kind of model is refused with the names of these.
    measured_run = open_run(workdir, tuple(likelihood.BY_KIND), weights.which, weights.step)
    data = measured_run.data("likelihood is of a run's own held-out images")
    # All at once: perplexity is of the codes of the whole set, and the picture is of its first.
    batches = list(held_out.batches(data, "test", options.num, options.batch))
    figures, picture = likelihood.measured(measured_run.model, batches)
    if picture is not None:
        save_png(Path(workdir, "reconstructions.png"), picture)
    report = {"images": sum(len(batch["image"]) for batch in batches), **figures}
    Path(workdir, "likelihood.json").write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report.items():
        print(f"{name:40} {value:.4g}" if isinstance(value, float) else f"{name:40} {value}")
