"""Mode `export_weights`: a run -> a folder for others, with a model card.

    --workdir runs/x --to diffusers --out x/        what diffusers or transformers load
    --workdir runs/x --to original --out x/         what the official code loads, and import_weights
    --workdir runs/x --to diffusion_jax --out x/    what this package opens, without what training
                                                    needs; half as large with --dtype float16

Whose network it is, its page tells; docs/export.md has a table of what can be written, and how it
is loaded. With a decoder of unCLIP go the prior and the upsampler in its folder, if they are there.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.evaluation import card
from diffusion_jax.files import free, whole_folder
from diffusion_jax.modes.options import Weights, group
from diffusion_jax.pipelines import lora, unclip
from diffusion_jax.pretrained import export, package
from diffusion_jax.runs.folder import FIRST, Run, holds_run, open_run
from diffusion_jax.runs.release import save_release
from diffusion_jax.tasks import kinds
from diffusion_jax.train.checkpoint import data_of
from diffusion_jax.types import Params

OURS = "diffusion_jax"
"""As a program to write for: a folder like any run's, to be opened by this package."""


@dataclass(frozen=True)
class Options:
    """For which program, where to, and which weights."""

    to: str = option(
        "",
        "For which program: diffusers (or transformers), original, the official code, or "
        "diffusion_jax",
        choices=(*export.TARGETS, OURS),
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
    if options.to == OURS:
        return _release(options, opened, data)
    page, params = _with_parts(opened)
    exported = export.package(page, params, options.to, tuple(data.get("classes") or ()))
    files = exported.files | card.files(opened, exported, data)
    package.write(out, files, options.dtype)
    for note in exported.notes:
        print(note)
    print(f"{exported.title}: {len(files)} files, {out}; fill in the license in README.md")


def _release(options: Options, run: Run, data: Mapping[str, Any]) -> None:
    """The folder for this package."""
    out = Path(options.out).expanduser()
    makes = isinstance(run.task, kinds.Pictures)
    code = PIPELINE if makes else OPEN
    exported = package.Package({}, OURS, code, OURS)
    with whole_folder(out) as folder:
        save_release(folder, run, options.dtype, data or None)
        for name, part in _parts_of(run).items():
            save_release(folder / name, part, options.dtype, data_of(part.folder))
        package.write_into(folder, card.files(run, exported, data))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{OURS}: {size:,} bytes, {out}; fill in the license in README.md")


PIPELINE = """import diffusion_jax as dj
pipe = dj.pipeline("FOLDER")
pipe(num=4, seed=0).save("samples.png")"""
OPEN = """import diffusion_jax as dj
run = dj.open_run("FOLDER")"""
PARTS = {unclip.FOLDER: kinds.Prior, unclip.UPSAMPLER: kinds.Pictures}
"""What may lie in the folder of a decoder of unCLIP, as it does in that of an imported one."""


def _with_parts(run: Run) -> tuple[dict[str, Any], Params]:
    """A run's page and its parameters, with those of its first stage; of a decoder of unCLIP also
    the 'parts' that sampling finds in its folder."""
    page = {**run.config}
    params = _with_first(run)
    if getattr(run.task, "embedder", None) is None:
        return page, params
    runs = _parts_of(run)
    page["parts"] = {name: part.config for name, part in runs.items()}
    return page, {**params, "parts": {name: _with_first(part) for name, part in runs.items()}}


def _parts_of(run: Run) -> dict[str, Run]:
    """What lies in the folder of a decoder of unCLIP, of `PARTS`; {} of any other model."""
    if getattr(run.task, "embedder", None) is None:
        return {}
    inner = {name: Path(run.folder, name) for name in PARTS}
    return {name: open_run(inner[name], PARTS[name]) for name in PARTS if holds_run(inner[name])}


def _with_first(run: Run) -> dict[str, Any]:
    """A run's parameters, and as first_stage those of its frozen first stage."""
    first = {} if run.model.first is None else {FIRST: run.model.first}
    return {**run.model.params, **first}
