"""Mode `import_weights`: published weights -> a run's folder.

It samples like one that was trained here:

    --system dit --source DiT-XL-2-256x256.pt --first_stage runs/sd_vae --workdir runs/dit_xl2
    --system sd3 --source stable-diffusion-3-medium/ --dtype bfloat16 --workdir runs/sd3
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.files import writable
from diffusion_jax.pretrained import systems
from diffusion_jax.runs import first_stage
from diffusion_jax.runs.folder import FIRST, holds_run, save_start
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain


@dataclass(frozen=True)
class Options:
    """Whose weights, and where they are."""

    system: str = option("", systems.SYSTEM_HELP)
    source: str = option("", systems.SOURCE_HELP)
    official: str | None = option(None, systems.OFFICIAL_HELP)
    first_stage: str | None = option(None, systems.FIRST_STAGE_HELP)
    dtype: str = option("float32", systems.DTYPE_HELP, choices=systems.DTYPES)

    def __post_init__(self):
        for name in ("system", "source"):
            if not getattr(self, name):
                raise ConfigError(f"mode import_weights needs --{name}")
        check_options(self)
        systems.check_dtype(systems.find(self.system), self.dtype)


def run(options: Options, workdir: str) -> None:
    """Writes a checkpoint of step 0: the weights, their network, their process, how they sample.

    Args:
      options: which weights.
      workdir: a new folder.

    Raises:
      ConfigError: a folder that holds a run, a first stage that does not go with the system, or
        what its `load` refuses.
    """
    # Refused before anything is read: published weights are gigabytes.
    changes = {} if options.first_stage is None else systems.latents(options.system)
    if holds_run(workdir):
        raise ConfigError(f"{workdir} holds a run: choose another workdir")
    new = not Path(workdir).exists()
    writable(f"{workdir}/")
    if new:  # what is refused leaves nothing behind
        Path(workdir).rmdir()
    page, params = systems.load(options.system, options.source, options.official, options.dtype)
    # Karlo is a decoder, a prior and an upsampler: each of them is a run of its own.
    parts = params.get("parts", {})
    of_run = {name: part for name, part in params.items() if name not in (FIRST, "parts")}
    if options.first_stage is not None:
        check_first_stage(options.first_stage, page)
    if FIRST in params:
        save_start(Path(workdir, FIRST), {"task": page["task"][FIRST]}, params[FIRST])
    for name, part in parts.items():
        save_start(Path(workdir, name), page["parts"][name], part)
    page = {name: section for name, section in page.items() if name != "parts"}
    # Whatever scale the autoencoder's folder has: the network knows the one of its authors.
    if options.first_stage is not None:
        page, _ = first_stage.joined(
            page | {FIRST: {"folder": options.first_stage, **changes}}, workdir
        )
    save_start(workdir, page, of_run)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{count:,} parameters of {options.source}: {workdir}")


def check_first_stage(folder: str, page: Mapping[str, Any]) -> None:
    """Raises ConfigError where a folder holds no autoencoder of the latents of a page's network."""
    latent = page["task"]["shape"][-1]
    if plain(config_of(folder)).get("model", {}).get("latent") != latent:
        raise ConfigError(
            f"--first_stage {folder} is no autoencoder with latents of {latent} channels"
        )
