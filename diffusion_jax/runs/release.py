"""A run as others get it: one set of weights and no state of its training.

    folder/checkpoints/<step>     the weights, and of the page what sampling needs
    folder/first_stage            the frozen part that they need, where there is one

`open_run` opens it like any run. In 16 bits it takes half the bytes; in memory its weights have 32
again, since it is the file alone that is to be small.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.folder import FIRST, Run, save_start
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.types import Array, Params

SECTIONS = ("task", "model", "sample")
"""Of a page, what sampling needs."""


def save_release(
    folder: str | Path, run: Run, dtype: str, data: Mapping[str, Any] | None = None
) -> None:
    """Writes a run into a new folder.

    Args:
      folder: see `save_start`.
      run: with the weights that are chosen.
      dtype: that floating point weights are stored in.
      data: what the checkpoint says of its data (data/fingerprint.py), for the names of classes.

    Raises:
      ConfigError: what `save_start` refuses; a run that trains a LoRA, whose file is small already.
    """
    if "lora" in run.config:
        raise ConfigError(
            f"{run.folder} trains a LoRA, which is small: write it --to diffusers, and give it on "
            "beside the run that it changes"
        )
    save_start(folder, released(run.config), stored_as(run.model.params, dtype), run.step, data)
    if run.model.first is not None:
        page = released(config_of(Path(run.folder, FIRST)))
        save_start(Path(folder, FIRST), page, stored_as(run.model.first, dtype))


def released(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a page what sampling needs: no data, and no place on the disk of whoever trained it."""
    page = {name: config[name] for name in SECTIONS if name in config}
    decode = config.get("data", {}).get("decode", {})
    # The tokenizer reads prompts.
    if decode.get("tokenizer"):
        page["data"] = {"decode": decode | ({"path": ""} if "path" in decode else {})}
    return page


def stored_as(params: Params, dtype: str) -> Params:
    """Weights of floating point in another type, the others as they are.

    Raises:
      ConfigError: one is larger than the type goes.
    """

    def typed(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if jnp.abs(leaf).max(initial=0) > jnp.finfo(dtype).max:
            raise ConfigError(f"a weight is larger than {dtype} goes: choose --dtype bfloat16")
        return leaf.astype(dtype)

    return jax.tree.map(typed, params)
