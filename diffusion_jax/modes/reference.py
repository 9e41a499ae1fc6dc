"""Mode `reference`: the statistics of one's own data, to measure against: mu, sigma and, of Inception, mu_s, sigma_s."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import moments
from diffusion_jax.modes.evaluate import BATCH
from diffusion_jax.modes.measure import data_of, found_in, images_at, network_of
from diffusion_jax.train.state import plain


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Computes the statistics of a page's training data, or of given images.

    Args:
      config: the page whose data is meant, where no images are given.
      workdir: where features are kept meanwhile.
      options: features and resize; images; batch; out, the file, 'reference.npz' in the working folder.

    Raises:
      ConfigError: neither images nor a page, an option that is not taken, or what `network_of` and `images_at` refuse.
    """
    options = dict(options)
    network, path, batch = network_of(options), options.pop("images", None), options.pop("batch", BATCH)
    out = Path(options.pop("out", Path(workdir, "reference.npz")))
    for name in options:
        raise ConfigError(f"mode reference takes no --{name}")
    if path is None and config is None:
        raise ConfigError("mode reference needs images: --images, a folder or an .npz, or the training data of a --config")
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out}: end it in .npz")
    data = plain(config)["data"] if path is None else {}
    images = images_at(path) if path else data_of(data, "train")
    found = found_in(network, images, workdir, {"images": path, "data": data}, batch, 0.0)
    spatial = found.moments("spatial") if found.has("spatial") else None
    statistics = found.moments("features")
    if jax.process_index() == 0:
        moments.save(out, statistics, spatial, network=network.label, images=found.count)
        print(f"reference: {out}, {found.count} images in the features of {network.label}")
