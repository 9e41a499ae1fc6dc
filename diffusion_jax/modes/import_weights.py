"""Mode `import_weights`: published weights -> a run's folder that samples like one that was trained here."""
from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data.latents import Whitening
from diffusion_jax.modes import first_stage
from diffusion_jax.pretrained.vae import SCALE
from diffusion_jax.train.checkpoint import Checkpoints, available, config_of
from diffusion_jax.train.state import plain
from diffusion_jax.types import Params, TrainState

LATENTS = {"dit": dict(scale=SCALE), "diffit": dict(scale=SCALE), "edm2": Whitening().options}
"""The systems whose files have no first stage, and how they use Stable Diffusion's."""
SYSTEMS = ("adm", "clip", "dalle", "diffit", "dit", "dvae", "edm2", "glide", "karlo", "perceptual", "sd", "vae")


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Writes a checkpoint of step 0 with the weights, their network, their process and their way of sampling.

    Args:
      config: not needed: the weights say what they are.
      workdir: a new folder.
      options: system, one of `SYSTEMS`; source, the weights file (.safetensors, .npz, .pt, .pth, .ckpt or EDM2's .pkl) or, of
        sd and vae, a folder of diffusers, of karlo a folder; official, a JSON file with the options of the official constructor,
        for networks that were not published, and of glide the merges of its tokenizer; first_stage, the folder of an imported
        autoencoder of Stable Diffusion, for the models of latents among dit, diffit and edm2, which then make images.

    Raises:
      ConfigError: what is missing, a folder that holds a run, a first stage that does not go with the system, or what its `load`
        refuses.
    """
    options = dict(options)
    missing = [name for name in ("system", "source") if name not in options]
    if missing:
        raise ConfigError(f"mode import_weights needs --{missing[0]}")
    system, source, official = options.pop("system"), options.pop("source"), options.pop("official", None)
    stage = options.pop("first_stage", None)
    if options:
        raise ConfigError(f"--{min(options)} is not for importing: give --system, --source, perhaps --official and --first_stage")
    if system not in SYSTEMS:
        raise unknown("system", system, SYSTEMS)
    if stage and system not in LATENTS:
        raise ConfigError(f"--first_stage is for {', '.join(LATENTS)}: {system} brings its own or needs none")
    if Path(workdir).is_dir() and available(workdir):
        raise ConfigError(f"{workdir} holds a run: choose another workdir")
    load = importlib.import_module(f"diffusion_jax.pretrained.{system}").load
    try:
        page, params = load(source, None if official is None else _options(Path(official)))
    except KeyError as error:
        places = source if official is None else f"--official {official}, or in {source}"
        raise ConfigError(f"there is no {error.args[0]!r} in {places}: system {system} needs it") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if first_stage.NAME in params:
        _save(Path(workdir, first_stage.NAME), {"task": page["task"][first_stage.NAME]}, params.pop(first_stage.NAME))
    for name, part in params.pop("parts", {}).items():
        _save(Path(workdir, name), page["parts"][name], part)
    page = {name: section for name, section in page.items() if name != "parts"}
    if stage:
        latent = page["task"]["shape"][-1]
        if plain(config_of(stage)).get("model", {}).get("latent") != latent:
            raise ConfigError(f"--first_stage {stage} is no autoencoder with latents of {latent} channels")
        page, _ = first_stage.joined(page | {first_stage.NAME: {"folder": stage, **LATENTS[system]}}, workdir)
    _save(Path(workdir), page, params)
    print(f"{count:,} parameters of {source}: {workdir}")


def _save(folder: Path, page: Mapping[str, Any], params: Params) -> None:
    """A checkpoint of step 0."""
    with Checkpoints(folder, page, every=1, keep=1) as checkpoints:
        checkpoints.save(TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=(), ema={}))


def _options(file: Path) -> dict[str, Any]:
    """The official options in a JSON file."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--official {file} does not read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--official {file} holds a {type(found).__name__}, not a mapping of options")
    return found
