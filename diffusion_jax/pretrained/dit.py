"""The official DiT weights (facebookresearch/DiT, arXiv 2212.09748) as our DiT and Label.

The published files DiT-XL-2-256x256.pt and DiT-XL-2-512x512.pt are flat state dicts; a checkpoint of the official training script
holds 'model', 'ema', 'opt' and 'args', of which the average is taken.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.cond import Label
from diffusion_jax.models.dit import PRESETS, DiT, stack_layers, unstack_layers
from diffusion_jax.nn.embed import sincos_2d
from diffusion_jax.pretrained import names, rules
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, only, process_note, refuse, square
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import PATCH, SAME, Constant, Rule, layer
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.pretrained.vae import SCALE
from diffusion_jax.types import Array, Params


def positions(shape: rules.Shape) -> np.ndarray:
    """The official pos_embed [1, T, D] of a square grid."""
    side = math.isqrt(shape[1])
    return sincos_2d(side, side, shape[2])[None]


TRUNK = [
    Constant(r"pos_embed", positions),
    *layer(r"x_embedder\.proj", "model/patch", PATCH),
    *layer(r"t_embedder\.mlp\.0", "model/time/fc1"),
    *layer(r"t_embedder\.mlp\.2", "model/time/fc2"),
    Rule(r"y_embedder\.embedding_table\.weight", "cond/table", SAME),
    *layer(r"blocks\.(\d+)\.attn\.(qkv|proj)", r"model/blocks_\1/attn/\2"),
    *layer(r"blocks\.(\d+)\.mlp\.(fc1|fc2)", r"model/blocks_\1/mlp/\2"),
    *layer(r"final_layer\.linear", "model/final/linear"),
]
"""What DiT shares with other transformers that grew from its code."""
RULES = [
    *TRUNK,
    *layer(r"blocks\.(\d+)\.adaLN_modulation\.1", r"model/blocks_\1/modulation/linear"),
    *layer(r"final_layer\.adaLN_modulation\.1", "model/final/modulation/linear"),
]
"""Official keys to our parameters with unrolled blocks; use `convert`, which stacks them where the model scans."""


LATENTS = dict(scale=SCALE)
"""How the published models use Stable Diffusion's first stage."""
DEFAULTS = {"mlp_ratio": 4.0, "learn_sigma": True, "class_dropout_prob": 0.1}
"""Of the official constructor."""


def config(official: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of `DiT` and `Label` for an official model.

    Args:
      official: the options of the official constructor (hidden_size, depth, ...), or a state dict (of arrays or shapes). A state
        dict does not tell the number of heads, which is then that of the published size of this width, nor whether its last
        label row is the null label, which is taken to be so.

    Raises:
      ConfigError: a state dict that is no DiT's, or of an unpublished width.
    """
    return arguments(official if "hidden_size" in official else options(official, "DiT"))


def arguments(o: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the official constructor as keyword arguments of `DiT` and `Label`; some may be left out."""
    o = {**DEFAULTS, **o}
    model = dict(
        patch=o["patch_size"], width=o["hidden_size"], depth=o["depth"], heads=o["num_heads"], mlp_ratio=o["mlp_ratio"],
        channels=o["in_channels"], learn_sigma=o["learn_sigma"],
    )
    return model, dict(num_classes=o["num_classes"], width=o["hidden_size"], null_row=o["class_dropout_prob"] > 0)


def options(state_dict: Mapping[str, Any], title: str, heads: int | None = None) -> dict[str, Any]:
    """The official constructor's options, read off the shapes of a state dict.

    Args:
      state_dict: key -> an array, or anything with a shape.
      title: the network in words.
      heads: their number; None takes that of the published DiT of this width.

    Raises:
      ConfigError: a key that is not there, or an unpublished width without `heads`.
    """
    try:
        width, channels, patch, _ = state_dict["x_embedder.proj.weight"].shape
        hidden = state_dict["blocks.0.mlp.fc1.weight"].shape[0]
        out = state_dict["final_layer.linear.weight"].shape[0]
        rows = state_dict["y_embedder.embedding_table.weight"].shape[0]
    except KeyError as error:
        raise ConfigError(f"this is no state dict of a {title}: there is no {error.args[0]}") from None
    published = {size["width"]: size["heads"] for size in PRESETS.values()}
    if heads is None and width not in published:
        raise ConfigError(f"a state dict does not tell the heads of a {title} of width {width}: give the official options")
    return dict(
        patch_size=patch, hidden_size=width, depth=len({key.split(".")[1] for key in state_dict if key.startswith("blocks.")}),
        num_heads=heads or published[width], mlp_ratio=hidden / width, in_channels=channels,
        learn_sigma=out == 2 * channels * patch**2, num_classes=rows - 1, class_dropout_prob=0.1,
    )


def convert(state_dict: rules.Weights, model: DiT, cond: Label) -> Params:
    """An official state dict as the parameters {'model': ..., 'cond': ...}, stacked where the model scans its layers.

    Raises:
      ConfigError: the weights do not fit; the line says where.

    Example:
      model_options, cond_options = config(state_dict)
      params = convert(state_dict, DiT(**model_options), Label(**cond_options))
    """
    return fill(state_dict, RULES, model, cond, jnp.zeros((1, model.patch, model.patch, model.channels)))


def fill(state_dict: rules.Weights, table: rules.Rules, model: nn.Module, cond: Label, x: Array) -> Params:
    """`convert` by any table for any network that has the option `scan`; x is an image that it takes."""
    one = jnp.zeros(1, jnp.int32)
    scanned = model.clone(scan=True)                          # a single block is then traced

    def init() -> Params:
        labels = cond.init(jax.random.key(0), {"label": one})["params"]
        return unstack_layers({"model": scanned.init(jax.random.key(0), x, one, {})["params"], "cond": labels})

    params = rules.convert(state_dict, table, shapes_of(init))
    return stack_layers(params) if model == scanned else params


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
from models import DiT                                   # github.com/facebookresearch/DiT
model = DiT(**json.load(open("FOLDER/config.json")))
model.load_state_dict(load_file("FOLDER/model.safetensors"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: its state dict, and the options of the constructor.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    title = "the official DiT"
    only(title, build(page["model"]), block="adaln_zero")
    options = constructor(title, page)
    weights = revert(params, shapes(params, RULES, options))
    return Package({WEIGHTS: weights, CONFIG: options}, title, CODE, notes=process_note(page, "Eps", "linear"))


def constructor(title: str, page: Mapping[str, Any]) -> dict[str, Any]:
    """The official options of a run's DiT, or DiffiT.

    Raises:
      ConfigError: it has none, or the conditions are not labels alone.
    """
    model = build(page["model"])
    cond = build(page["task"]["cond"])
    side = square(title, page)
    refuse(title, {
        "sees labels and nothing else (task.cond is a Label)": not isinstance(cond, Label),
        f"has positions that count patches (grid is {side // model.patch})": model.grid not in (None, side // model.patch),
    })
    drop = page["task"].get("drop", {}).get("label", 0.0) or DEFAULTS["class_dropout_prob"]
    return dict(
        input_size=side, patch_size=model.patch, in_channels=model.channels, hidden_size=model.width, depth=model.depth,
        num_heads=model.heads, mlp_ratio=model.mlp_ratio, class_dropout_prob=drop if cond.null_row else 0.0,
        num_classes=cond.num_classes, learn_sigma=model.learn_sigma,
    )


def shapes(params: Params, table: rules.Rules, options: Mapping[str, Any]) -> dict[str, rules.Shape]:
    """Official key -> shape, for parameters with scanned or unrolled blocks and the options of `constructor`."""
    patch, width = options["patch_size"], options["hidden_size"]
    special = {
        "x_embedder.proj.weight": (width, options["in_channels"], patch, patch),
        "pos_embed": (1, (options["input_size"] // patch) ** 2, width),
    }
    return names.shapes(unstack_layers(params), table, special=special)


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """An official weights file as (config, params).

    Args:
      path: the file, see `reader.read`.
      official: the options of the official constructor, for sizes that were not published; image_size alone says nothing new.

    Returns:
      The sections model (with scanned layers), task and sample of a page, and the parameters.

    Raises:
      ConfigError: see `read`, `config` and `convert`.
    """
    state_dict = read(path, key="ema")
    model, cond = arguments(official) if official and set(official) != {"image_size"} else config(state_dict)
    model["scan"] = True
    return page(model, cond, state_dict["pos_embed"].shape[1]), convert(state_dict, DiT(**model), Label(**cond))


def page(model: Mapping[str, Any], cond: Mapping[str, Any], patches: int) -> dict[str, Any]:
    """The sections model, task and sample of the published recipe for a square image of so many patches."""
    side = math.isqrt(patches) * model["patch"]
    learned = model["learn_sigma"]
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=dict(name="diffusion_jax.models.cond:Label", **cond),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="linear"),
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"),
        shape=(side, side, model["channels"]),
        drop=dict(label=0.1) if cond["null_row"] else {},
        variance="learned_range" if learned else "fixed_large",
        objective="hybrid" if learned else "mse",
    )
    sample = dict(sampler="ancestral", steps=250, times="respace", guidance=4.0 if cond["null_row"] else 1.0, channels=3)
    return dict(model=dict(name="diffusion_jax.models.dit:DiT", **model), task=task, sample=sample)
