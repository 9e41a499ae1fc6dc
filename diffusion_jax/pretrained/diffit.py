"""The official weights of DiffiT for latents (NVlabs/DiffiT, arXiv 2312.02139) as our DiffiT and Label.

The published files diffit_256.safetensors and diffit_512.safetensors are flat state dicts. Their model grew from DiT's code, so
most keys are DiT's. Beside them stand W_t of (3), the table of B in (4) and, as a constant, which of its rows each pair of tokens
reads.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Label
from diffusion_jax.models.diffit import DiffiT, relative_positions
from diffusion_jax.models.dit import unstack_layers
from diffusion_jax.pretrained import dit, rules
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, process_note
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import Constant, Rule, layer
from diffusion_jax.types import Array, Params

TABLE = "blocks.0.attn.relative_position_bias_table"
LATENT_256 = 32
"""Side of the largest latent that the official code guides by a schedule; larger ones it guides by a constant."""


def _positions(shape: rules.Shape) -> np.ndarray:
    """The official relative_position_index [T, T] of a square window."""
    return relative_positions(math.isqrt(shape[0]))


RULES = [
    *dit.TRUNK,
    *layer(r"blocks\.(\d+)\.attn\.qkv_temb", r"model/blocks_\1/attn/qkv_time"),
    Rule(r"blocks\.(\d+)\.attn\.relative_position_bias_table", r"model/blocks_\1/attn/table"),
    Constant(r"blocks\.\d+\.attn\.relative_position_index", _positions),
]
"""Official keys to our parameters with unrolled blocks; use `convert`, which stacks them where the model scans."""


def config(official: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of `DiffiT` and `Label` for an official model.

    Args:
      official: the options of the official constructor (input_size, hidden_size, ...), or a state dict (of arrays or shapes),
        which tells all but whether its last label row is the null label; that is taken to be so.

    Raises:
      ConfigError: a state dict that is no DiffiT's.
    """
    if "hidden_size" in official:
        return arguments(official)
    if TABLE not in official:
        raise ConfigError(f"this is no state dict of a DiffiT: there is no {TABLE}")
    rows, heads = official[TABLE].shape
    o = dit.options(official, "DiffiT", heads)
    return arguments(o | {"input_size": o["patch_size"] * ((math.isqrt(rows) + 1) // 2)})


def arguments(o: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the official constructor as keyword arguments of `DiffiT` and `Label`; see `dit.arguments`."""
    model, cond = dit.arguments(o)
    return model | {"grid": o["input_size"] // o["patch_size"]}, cond


def convert(state_dict: rules.Weights, model: DiffiT, cond: Label) -> Params:
    """An official state dict as the parameters {'model': ..., 'cond': ...}, stacked where the model scans its layers.

    Raises:
      ConfigError: the weights do not fit; the line says where.

    Example:
      model_options, cond_options = config(state_dict)
      params = convert(state_dict, DiffiT(**model_options), Label(**cond_options))
    """
    side = model.grid * model.patch
    return dit.fill(state_dict, RULES, model, cond, jnp.zeros((1, side, side, model.channels)))


def revert(params: Params, shapes: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters (or gradients) with scanned or unrolled blocks as an official state dict of the given shapes."""
    return rules.revert(unstack_layers(params), RULES, shapes)


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`."""
    return revert(params, shapes)


CODE = """import json
from safetensors.torch import load_file
from diffit import DiffiT                                # the model's file of github.com/NVlabs/DiffiT
model = DiffiT(**json.load(open("FOLDER/config.json")))
model.load_state_dict(load_file("FOLDER/model.safetensors"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: its state dict, and the options of the constructor.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    title = "the official DiffiT"
    options = dit.constructor(title, page)
    tokens = (options["input_size"] // options["patch_size"]) ** 2
    index = {f"blocks.{i}.attn.relative_position_index": (tokens, tokens) for i in range(options["depth"])}
    weights = revert(params, dit.shapes(params, RULES, options) | index)
    return Package({WEIGHTS: weights, CONFIG: options}, title, CODE, notes=process_note(page, "Eps", "linear"))


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """An official weights file as (config, params).

    Args:
      path: the file, see `reader.read`.
      official: the options of the official constructor; the state dict tells them too, and image_size alone says nothing new.

    Returns:
      The sections model (with scanned layers), task and sample of a page, and the parameters.

    Raises:
      ConfigError: see `read`, `config` and `convert`.
    """
    state_dict = read(path, key="ema")
    model, cond = arguments(official) if official and set(official) != {"image_size"} else config(state_dict)
    model["scan"] = True
    return page(model, cond), convert(state_dict, DiffiT(**model), Label(**cond))


def page(model: Mapping[str, Any], cond: Mapping[str, Any]) -> dict[str, Any]:
    """The sections model, task and sample of the published recipe: 250 ancestral steps, three guided channels."""
    sections = dit.page(model, cond, model["grid"] ** 2)
    sections["model"]["name"] = "diffusion_jax.models.diffit:DiffiT"
    if cond["null_row"]:
        small = model["grid"] * model["patch"] <= LATENT_256
        sections["sample"] |= dict(guidance=4.4, schedule="power_cosine,power=4") if small else dict(guidance=1.49)
    return sections
