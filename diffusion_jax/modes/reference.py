"""Mode `reference`: the statistics of one's own data, to measure against.

    mu, sigma        mean and covariance of the features
    mu_s, sigma_s    those of Inception's spatial features
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.evaluation import features
from diffusion_jax.evaluation.options import BATCH, Features
from diffusion_jax.metrics import moments
from diffusion_jax.modes.options import PAGE_HELP, Page, group
from diffusion_jax.train.state import plain


@dataclass(frozen=True)
class Options:
    """Of which images, in whose features."""

    config: Page | None = option(None, PAGE_HELP)
    features: Features = group(Features)
    images: str | None = option(
        None,
        "Images to take the statistics of, a folder or an .npz, in place of a page's training data",
    )
    batch: int | None = option(None, "Images at a time; 250 by default", least=1)
    out: str | None = option(None, "x.npz; reference.npz in the working folder by default")

    def __post_init__(self):
        check_options(self)
        if self.images is None and self.config is None:
            raise ConfigError(
                "mode reference needs images: --images, a folder or an .npz, or the training data "
                "of a --config"
            )
        if self.images is not None and self.config is not None:
            raise ConfigError(
                "mode reference takes the training data of a --config or --images: leave one out"
            )
        if self.out is not None and Path(self.out).suffix != ".npz":
            raise ConfigError(f"--out {self.out}: end it in .npz")


def run(options: Options, workdir: str) -> None:
    """Computes the statistics of a page's training data, or of images.

    Args:
      options: of what, and in whose features.
      workdir: where features are kept, and the file goes by default.

    Raises:
      ConfigError: what `network_of` and `images_at` refuse.
    """
    network = features.network_of(options.features.features, options.features.resize)
    extractor = features.Extractor(network, workdir, options.batch or BATCH)
    if options.images is None:
        data = plain(options.config)["data"]
        extracted = extractor(features.data_of(data, "train"), {"data": data})
    else:
        images = features.images_at(options.images)
        extracted = extractor(images, features.identity_at(options.images))
    # Of Inception alone, for sFID; other networks have no such features.
    spatial = extracted.moments("spatial") if extracted.has("spatial") else None
    statistics = extracted.moments("features")
    # The label says in whose features these are: against another network they would mean nothing.
    if jax.process_index() == 0:
        out = Path(options.out or Path(workdir, "reference.npz"))
        moments.save(out, statistics, spatial, network=network.label, images=extracted.count)
        print(f"reference: {out}, {extracted.count} images in the features of {network.label}")
