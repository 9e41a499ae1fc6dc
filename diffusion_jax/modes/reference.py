"""Mode `reference`: the statistics of one's own data, to measure against.

    mu, sigma        mean and covariance of the features
    mu_s, sigma_s    those of Inception's spatial features
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.evaluation import features, identity
from diffusion_jax.evaluation.options import BATCH, Features
from diffusion_jax.files import unused, writable
from diffusion_jax.metrics import moments
from diffusion_jax.metrics.images import Pictures
from diffusion_jax.modes.options import PAGE_HELP, Page, group
from diffusion_jax.runs import page
from diffusion_jax.train.state import plain

NAME, EARLIER = "reference.npz", "reference-earlier.npz"
"""Of the newest statistics, where nobody names them, and of those before."""


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
    features.named(options.features.features, options.features.resize)
    images, what = images_of(options)
    if len(images) < 2:
        raise ConfigError(f"a covariance needs at least 2 images, {images.what} has {len(images)}")
    out = Path(options.out or Path(workdir, NAME)).expanduser()
    # Before the features are taken: that takes hours.
    for place in (str(out), f"{Path(workdir, features.FOLDER)}/"):
        writable(place)
    network = features.network_of(options.features.features, options.features.resize)
    extracted = features.Extractor(network, workdir, options.batch or BATCH)(images, what)
    # Of Inception alone, for sFID; other networks have no such features.
    spatial = extracted.moments("spatial") if extracted.has("spatial") else None
    statistics = extracted.moments("features")
    # The label says in whose features these are: against another network they would mean nothing.
    if jax.process_index() == 0:
        # The newest has the name that others read; what was there is not lost.
        if options.out is None and out.exists() and not holds(out, statistics):
            earlier = out.replace(unused(out.with_name(EARLIER)))
            print(f"the reference that was there is {earlier} now")
        moments.save(out, statistics, spatial, network=network.label, images=extracted.count)
        print(f"reference: {out}, {extracted.count} images in the features of {network.label}")


def holds(path: Path, statistics: moments.Moments) -> bool:
    """Whether a file holds these statistics already."""
    try:
        there = moments.load(path)
    except ConfigError:  # damaged, or of another kind
        return False
    pairs = zip(there, statistics, strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def images_of(options: Options) -> tuple[Pictures, Mapping[str, Any]]:
    """The images, and what tells them from all others.

    Raises:
      ConfigError: they are not there, or a page without data.
    """
    if options.images is not None:
        return features.images_at(options.images), identity.of_files(options.images)
    data = page.data_of(plain(options.config), "give --images")
    return features.data_of(data, "train"), identity.of_data(data, "train")
