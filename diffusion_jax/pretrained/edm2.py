"""The official EDM2 weights (NVlabs/edm2, arXiv 2312.02696) as our EDM2, OneHot and Uncertainty.

The published files, edm2-img512-s-2147483-0.130.pkl for example, are pickles that carry program text; none of it is run (see
`persistent.py`). The state dict alone may also come as .safetensors. Weights are stored as the optimiser left them, not
normalised: the layers normalise at use.

The official blocks are named by the side of their images ('enc.32x32_block0'), ours by level ('enc_1_block0').
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.latents import Whitening
from diffusion_jax.models.cond import Nothing, OneHot
from diffusion_jax.models.edm2 import EDM2, Uncertainty
from diffusion_jax.pretrained import names, persistent, rules
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, only, refuse, square
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import CONV, POINT, SAME, TRANSPOSE, Layout, Rule
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

QKV = Layout(
    lambda w: w.reshape(-1, 3, w.shape[1]).transpose(2, 1, 0).reshape(w.shape[1], -1),
    lambda w, shape: w.reshape(shape[1], 3, -1).transpose(2, 1, 0).reshape(shape),
    POINT.shape,
)
"""A `POINT` whose outputs are ordered [head][channel][q, k, v] <-> [q, k, v][head][channel]."""

BLOCK = r"(\w+_(?:down|up|in\d|block\d+))"
RULES = [
    Rule(r"unet\.emb_fourier\.(freqs|phases)", r"model/emb_fourier/\1"),
    Rule(r"unet\.emb_noise\.weight", "model/emb_noise/weight", TRANSPOSE),
    Rule(r"unet\.emb_label\.weight", "cond/emb/weight", TRANSPOSE),
    Rule(r"unet\.(enc_0_conv|out_conv)\.weight", r"model/\1/weight", CONV),
    Rule(r"unet\.out_gain", "model/out_gain"),
    Rule(rf"unet\.{BLOCK}\.emb_gain", r"model/\1/emb_gain"),
    Rule(rf"unet\.{BLOCK}\.emb_linear\.weight", r"model/\1/emb/weight", TRANSPOSE),
    Rule(rf"unet\.{BLOCK}\.conv_res0\.weight", r"model/\1/conv1/weight", CONV),
    Rule(rf"unet\.{BLOCK}\.conv_res1\.weight", r"model/\1/conv2/weight", CONV),
    Rule(rf"unet\.{BLOCK}\.conv_skip\.weight", r"model/\1/skip/weight", POINT),
    Rule(rf"unet\.{BLOCK}\.attn_qkv\.weight", r"model/\1/qkv/weight", QKV),
    Rule(rf"unet\.{BLOCK}\.attn_proj\.weight", r"model/\1/proj/weight", POINT),
    Rule(r"logvar_fourier\.(freqs|phases)", r"uncertainty/fourier/\1", SAME),
    Rule(r"logvar_linear\.weight", "uncertainty/linear/weight", TRANSPOSE),
]
"""Renamed official keys to our parameters."""

LATENTS = Whitening().options
"""How the published models of latents use Stable Diffusion's first stage."""
DEFAULTS = {
    "sigma_data": 0.5, "logvar_channels": 128, "channel_mult": (1, 2, 3, 4), "channel_mult_noise": None, "channel_mult_emb": None,
    "num_blocks": 3, "attn_resolutions": (16, 8), "channels_per_head": 64, "label_balance": 0.5, "concat_balance": 0.5,
    "res_balance": 0.3, "attn_balance": 0.3, "clip_act": 256, "resample_filter": (1, 1), "dropout": 0.0,
}
"""The official constructor's."""


def config(official: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The keyword arguments of `EDM2`, `OneHot` and `Uncertainty`, the second empty for a network without labels.

    Args:
      official: the options of the official constructor: any of `DEFAULTS`, and img_resolution, img_channels ...

    Raises:
      ConfigError: an option is missing.
    """
    o = DEFAULTS | dict(official)
    for key in ("img_resolution", "img_channels", "label_dim", "model_channels"):
        if key not in o:
            raise ConfigError(f"the official options lack {key!r}")
    mults = tuple(o["channel_mult"])
    side = o["img_resolution"]
    levels = [2**level for level in range(len(mults))]
    model = dict(
        width=o["model_channels"], mults=mults, depth=o["num_blocks"], head_channels=o["channels_per_head"],
        attend=tuple(factor for factor in levels if side // factor in o["attn_resolutions"]), channels=o["img_channels"],
        mult_noise=o["channel_mult_noise"], mult_emb=o["channel_mult_emb"], label_balance=o["label_balance"],
        concat_balance=o["concat_balance"], res_balance=o["res_balance"], attn_balance=o["attn_balance"], clip=o["clip_act"],
        filter=tuple(o["resample_filter"]), dropout=o["dropout"],
    )
    cond = dict(num_classes=o["label_dim"], width=EDM2(**model).emb_channels) if o["label_dim"] else {}
    return model, cond, dict(features=o["logvar_channels"])


def options(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The official constructor's options, read off the names and shapes of a state dict.

    What shapes do not tell is taken to be as published: heads of 64 channels, balances, sigma_data.

    Raises:
      ConfigError: this is no state dict of EDM2.
    """
    first = next((match for key in state_dict if (match := re.fullmatch(r"unet\.enc\.(\d+)x\d+_conv\.weight", key))), None)
    if first is None or "unet.out_conv.weight" not in state_dict:
        raise ConfigError("this is no state dict of an EDM2 network: there is no unet.enc.<side>x<side>_conv.weight")
    side = int(first[1])
    emb = state_dict["unet.emb_noise.weight"].shape
    sides = sorted({int(key.split(".")[2].partition("x")[0]) for key in state_dict if key.startswith("unet.enc.")}, reverse=True)
    widths = [state_dict[f"unet.enc.{s}x{s}_block0.conv_res0.weight"].shape[0] for s in sides]
    return dict(
        img_resolution=side, img_channels=state_dict["unet.out_conv.weight"].shape[0], model_channels=widths[0],
        label_dim=state_dict["unet.emb_label.weight"].shape[1] if "unet.emb_label.weight" in state_dict else 0,
        channel_mult=[width // widths[0] for width in widths], channel_mult_noise=emb[1] // widths[0],
        channel_mult_emb=emb[0] // widths[0],
        num_blocks=sum(re.fullmatch(rf"unet\.enc\.{side}x{side}_block\d+\.emb_gain", key) is not None for key in state_dict),
        attn_resolutions=[s for s in sides if f"unet.enc.{s}x{s}_block0.attn_qkv.weight" in state_dict],
        logvar_channels=state_dict["logvar_linear.weight"].shape[1],
    )


def modules(official: Mapping[str, Any]) -> tuple[EDM2, OneHot | Nothing, Uncertainty]:
    """The network, conditioner and uncertainty of the official options."""
    model, cond, uncertainty = config(official)
    return EDM2(**model), OneHot(**cond) if cond else Nothing(), Uncertainty(**uncertainty)


def rename(key: str, side: int) -> str:
    """An official key with its block named by level; `side` is that of the network's images."""
    def ours(match: re.Match) -> str:
        return f"{match[1]}_{(side // int(match[2])).bit_length() - 1}_"

    return re.sub(r"(enc|dec)\.(\d+)x\d+_", ours, key)


def shapes(model: EDM2, cond: OneHot | Nothing, uncertainty: Uncertainty) -> Params:
    """Shapes and types of the parameters {'model', 'cond', 'uncertainty'}; computes nothing."""
    side = 2 ** (len(model.mults) - 1)
    x = jnp.zeros((1, side, side, model.channels))
    one = jnp.zeros(1, jnp.int32)
    key = jax.random.key(0)

    def init() -> Params:
        labels = cond.init(key, {"label": one}).get("params", {})
        parts = {"model": model.init(key, x, one, {})["params"], "uncertainty": uncertainty.init(key, one)["params"]}
        return parts | {"cond": labels}

    return shapes_of(init)


def convert(state_dict: rules.Weights, official: Mapping[str, Any]) -> Params:
    """An official state dict as the parameters {'model', 'cond', 'uncertainty'}.

    Raises:
      ConfigError: the weights do not fit; the line says where.

    Example:
      params = convert(state_dict, options(state_dict))
    """
    renamed = {rename(key, official["img_resolution"]): value for key, value in state_dict.items()}
    params = rules.convert(renamed, RULES, shapes(*modules(official)))
    return {"cond": {}} | params


def revert(params: Params, shapes: Mapping[str, rules.Shape], side: int) -> dict[str, Array]:
    """Parameters, or gradients, as an official state dict of the given shapes; `side` is that of the network's images."""
    names = {rename(key, side): key for key in shapes}
    return rules.revert_renamed(params, RULES, shapes, names)


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`."""
    return revert(params, shapes, page["task"]["shape"][0])


RANKS = {r".*\.(?:conv_skip|attn_qkv|attn_proj)\.weight": 4}
CODE = """import json
from safetensors.torch import load_file
from training.networks_edm2 import Precond               # github.com/NVlabs/edm2
net = Precond(**json.load(open("FOLDER/config.json")))
net.load_state_dict(load_file("FOLDER/model.safetensors"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: the state dict of its Precond, and the options of the constructor.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    title = "the official EDM2"
    options = constructor(title, page)
    side = options["img_resolution"]
    keys = {official_name(key, side): shape for key, shape in names.shapes(params, RULES, RANKS).items()}
    weights = revert(params, keys, side)
    return Package({WEIGHTS: weights, CONFIG: options}, title, CODE)


def constructor(title: str, page: Mapping[str, Any]) -> dict[str, Any]:
    """The official options of a run's network.

    Raises:
      ConfigError: it has none; the line names the option.
    """
    model = build(page["model"])
    task = page["task"]
    cond = build(task["cond"])
    side = square(title, page)
    only(title, model, ladder="G")
    refuse(title, {
        "sees labels or nothing (task.cond is a OneHot)": not isinstance(cond, (OneHot, Nothing)),
        "preconditions by sigma_data (task.scale is EDM's)": not task["scale"]["name"].endswith(":EDM"),
        "knows its uncertainty (task.uncertainty)": not task.get("uncertainty"),
    })
    return dict(
        img_resolution=side, img_channels=model.channels, label_dim=cond.num_classes, model_channels=model.width,
        sigma_data=build(task["scale"]).sigma_data, logvar_channels=build(task["uncertainty"]).features,
        channel_mult=list(model.mults), channel_mult_noise=model.mult_noise, channel_mult_emb=model.mult_emb,
        num_blocks=model.depth, attn_resolutions=[side // factor for factor in model.attend],
        channels_per_head=model.head_channels, label_balance=model.label_balance, concat_balance=model.concat_balance,
        res_balance=model.res_balance, attn_balance=model.attn_balance, clip_act=model.clip,
        resample_filter=list(model.filter), dropout=model.dropout,
    )


def official_name(key: str, side: int) -> str:
    """The inverse of `rename`."""
    def official(match: re.Match) -> str:
        size = side >> int(match[2])
        return f"unet.{match[1]}.{size}x{size}_"

    return re.sub(r"^unet\.(enc|dec)_(\d+)_", official, key)


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """An official weights file as (config, params).

    Args:
      path: a published .pkl, or a file that `reader.read` reads.
      official: the options of the official constructor, for what a state dict does not tell (see `options`); a .pkl tells all.

    Returns:
      The sections model, task and sample of a page, and the parameters.

    Raises:
      ConfigError: see `persistent.read`, `reader.read`, `options` and `convert`.
    """
    if Path(path).suffix == ".pkl":
        state_dict, arguments = persistent.read(path)
        official = official or arguments
    else:
        state_dict = read(path, key="ema")
    official = DEFAULTS | (official or options(state_dict))
    return page(official), convert(state_dict, official)


def page(official: Mapping[str, Any]) -> dict[str, Any]:
    """The sections model, task and sample of the published recipe."""
    model, cond, uncertainty = config(official)
    side = official["img_resolution"]
    mean, std = (-0.4, 1.0) if official["img_channels"] == 4 else (-0.8, 1.6)     # latents, or pixels
    name = dict(name="diffusion_jax.models.cond:OneHot", **cond) if cond else dict(name="diffusion_jax.models.cond:Nothing")
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion",
        cond=name,
        process=dict(name="diffusion_jax.diffusion.process:EDM"),
        scale=dict(name="diffusion_jax.diffusion.scales:EDM", sigma_data=official["sigma_data"]),
        shape=(side, side, official["img_channels"]),
        times=dict(name="diffusion_jax.diffusion.times:LogNormal", mean=mean, std=std),
        uncertainty=dict(name="diffusion_jax.models.edm2:Uncertainty", **uncertainty),
        forced=True,
    )
    sample = dict(sampler="edm", steps=32, times="karras", guidance=1.0)
    return dict(model=dict(name="diffusion_jax.models.edm2:EDM2", **model), task=task, sample=sample)
