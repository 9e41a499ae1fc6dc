"""Mode `export_weights`: a run -> a folder for other programs, with a model card.

    --workdir runs/x --to diffusers --out x/        what diffusers or transformers load
    --workdir runs/x --to original --out x/         what the official code loads, and import_weights

Whose network it is, its page tells; docs/export.md has a table of what can be written, and how it
is loaded.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.evaluation import card
from diffusion_jax.files import free
from diffusion_jax.modes.options import Weights, group
from diffusion_jax.pipelines import lora
from diffusion_jax.pretrained import export, package
from diffusion_jax.runs.folder import FIRST
from diffusion_jax.train.checkpoint import data_of


@dataclass(frozen=True)
class Options:
    """For which program, where to, and which weights."""

    to: str = option(
        "",
        "For which program: diffusers (or transformers), or original, the official code",
        choices=export.TARGETS,
    )
    out: str = option("", "A new folder")
    dtype: str = option("float32", "Of the weights", choices=package.DTYPES)
    weights: Weights = group(Weights)

    def __post_init__(self):
        for name in ("to", "out"):
            if not getattr(self, name):
                raise ConfigError(f"mode export_weights needs --{name}")
        check_options(self)


def run(options: Options, workdir: str) -> None:
    """Writes the folder, whole or not at all.

    Args:
      options: see there.
      workdir: the run's folder.

    Raises:
      ConfigError: a folder that is not empty, several processes, or what `export.package` refuses.
    """
    if jax.process_count() > 1:
        raise ConfigError("mode export_weights runs in one process: leave --distributed out")
    # Before the weights are read: they may be gigabytes.
    out = Path(options.out).expanduser()
    free(out)
    weights = options.weights
    opened = lora.opened(workdir, None, weights.which, weights.step, weights.loras)
    data = data_of(opened.folder) or {}
    first = {} if opened.model.first is None else {FIRST: opened.model.first}
    params = {**opened.model.params, **first}
    exported = export.package(opened.config, params, options.to, tuple(data.get("classes") or ()))
    files = exported.files | card.files(opened, exported, data)
    package.write(out, files, options.dtype)
    for note in exported.notes:
        print(note)
    print(f"{exported.title}: {len(files)} files, {out}; fill in the license in README.md")
