"""What a new run starts from in place of drawn weights: `config.init`.

    --config.init=runs/adm256                                   the average of a run, or an import
    config.init = {"cond/tower": "runs/clip_l14:model/text"}    of some parts, parts of others
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.folder import open_run
from diffusion_jax.train.checkpoint import config_of, weights
from diffusion_jax.types import Params


def initial_of(config: Mapping[str, Any]) -> dict[str, Params]:
    """What `state.create` starts from, by the path of the part; {} for drawn weights.

    Args:
      config: a page; its `init` is 'folder' for all parameters, or {'path': 'folder:path in it'}
        for those of some parts. Of a LoRA it names the weights that stay (runs/lora.py).

    Raises:
      ConfigError: what `weights` refuses; no such path.
    """
    spec = config.get("init") or {}
    if "lora" in config:
        return {}
    parts = {}
    for target, source in ({"": spec} if isinstance(spec, str) else spec).items():
        folder, _, path = source.partition(":")
        part = _weights(folder)
        for key in path.split("/") if path else ():
            if not isinstance(part, Mapping) or key not in part:
                raise ConfigError(f"config.init: {folder} has no parameters {path!r}")
            part = part[key]
        parts[target] = part
    return parts


def _weights(folder: str) -> Params:
    """The average of a run; of a LoRA with what it changes."""
    if "lora" in config_of(folder):
        return open_run(folder).model.params
    return weights(folder).params
