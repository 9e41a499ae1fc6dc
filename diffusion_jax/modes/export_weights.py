"""Mode `export_weights`: a run -> a folder for other programs, with a model card.

    --workdir runs/x --to diffusers --out x/        what diffusers or transformers load
    --workdir runs/x --to original --out x/         what the official code loads, and import_weights

Whose network it is, its page tells; docs/export.md has a table of what can be written, and how it
is loaded. With a decoder of unCLIP go the prior and the upsampler in its folder, if they are there.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.evaluation import card
from diffusion_jax.files import free
from diffusion_jax.modes.options import Weights, group
from diffusion_jax.pipelines import lora, unclip
from diffusion_jax.pretrained import export, package
from diffusion_jax.runs.folder import FIRST, Run, holds_run, open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.train.checkpoint import data_of
from diffusion_jax.types import Params


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
    page, params = _with_parts(opened)
    exported = export.package(page, params, options.to, tuple(data.get("classes") or ()))
    files = exported.files | card.files(opened, exported, data)
    package.write(out, files, options.dtype)
    for note in exported.notes:
        print(note)
    print(f"{exported.title}: {len(files)} files, {out}; fill in the license in README.md")


PARTS = {unclip.FOLDER: kinds.Prior, unclip.UPSAMPLER: kinds.Pictures}
"""What may lie in the folder of a decoder of unCLIP, as it does in that of an imported one."""


def _with_parts(run: Run) -> tuple[dict[str, Any], Params]:
    """A run's page and its parameters, with those of its first stage; of a decoder of unCLIP also
    the 'parts' that sampling finds in its folder."""
    page = {**run.config}
    params = _with_first(run)
    if getattr(run.task, "embedder", None) is None:
        return page, params
    inner = {name: Path(run.folder, name) for name in PARTS}
    runs = {name: open_run(inner[name], PARTS[name]) for name in PARTS if holds_run(inner[name])}
    page["parts"] = {name: part.config for name, part in runs.items()}
    return page, {**params, "parts": {name: _with_first(part) for name, part in runs.items()}}


def _with_first(run: Run) -> dict[str, Any]:
    """A run's parameters, and as first_stage those of its frozen first stage."""
    first = {} if run.model.first is None else {FIRST: run.model.first}
    return {**run.model.params, **first}
