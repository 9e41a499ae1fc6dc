"""The official ADM weights (openai/guided-diffusion, arXiv 2105.05233) as our UNet, Classifier and Label.

The published files are flat state dicts that number the blocks of the network in one row:

    64x64_diffusion.pt  128x128_diffusion.pt  256x256_diffusion.pt  256x256_diffusion_uncond.pt  512x512_diffusion.pt
    64_256_upsampler.pt  128_512_upsampler.pt  lsun_bedroom.pt  lsun_cat.pt  lsun_horse.pt  lsun_horse_nodropout.pt
    64x64_classifier.pt  128x128_classifier.pt  256x256_classifier.pt  512x512_classifier.pt

Our blocks are named by level, so keys are renamed first (`block_names`), then one table serves every network. The channels of
query, key and value come in two official orders, [head][q, k, v][channel] and [q, k, v][head][channel]; ours is the second.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models import classifier, unet
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.cond import Joint, Nothing
from diffusion_jax.models.unet import Backbone, UNet
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import CONV, POINT, SAME, TRANSPOSE, Layout, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params


def _swap(w: Array, outer: int, inner: int) -> Array:
    """[outer][inner][...] channels in the first axis as [inner][outer][...]."""
    return w.reshape(outer, inner, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)


def per_head(parts: int, heads: Callable[[int], int]) -> Layout:
    """A `POINT`, or its bias, whose outputs are ordered [head][part][channel] <-> [part][head][channel].

    Args:
      parts: 3 for q, k, v.
      heads: channels of one part -> number of heads.
    """
    def ours(w: Array) -> Array:
        return _swap(w.reshape(w.shape[:2]), heads(w.shape[0] // parts), parts).T

    def official(w: Array, shape: rules.Shape) -> Array:
        return _swap(w.T, parts, heads(shape[0] // parts)).reshape(shape)

    return Layout(ours, official, POINT.shape)


def _attention(blocks: str, heads: Callable[[int], int], new_order: bool) -> list[Rule]:
    """The rules of the attention blocks whose names match `blocks`."""
    qkv = per_head(3, heads)
    kv = per_head(2, heads)
    weight, bias = (POINT, SAME) if new_order else (qkv, qkv)    # the new order is ours
    return [
        *norm(rf"({blocks})\.norm", r"model/\1/norm"),
        *layer(rf"({blocks})\.qkv", r"model/\1/qkv", weight, bias=bias),
        *layer(rf"({blocks})\.encoder_kv", r"model/\1/kv", kv, bias=kv),
        *layer(rf"({blocks})\.proj_out", r"model/\1/proj", POINT),
    ]


_RES = r"(\w+_res_\d+|\w+_resize)"
BLOCKS = [
    *layer(r"time_embed\.0", "model/time/fc1"),
    *layer(r"time_embed\.2", "model/time/fc2"),
    *layer("stem", "model/stem", CONV),
    *norm(rf"{_RES}\.in_layers\.0", r"model/\1/norm1"),
    *layer(rf"{_RES}\.in_layers\.2", r"model/\1/conv1", CONV),
    *layer(rf"{_RES}\.emb_layers\.1", r"model/\1/emb"),
    *norm(rf"{_RES}\.out_layers\.0", r"model/\1/norm2"),
    *layer(rf"{_RES}\.out_layers\.3", r"model/\1/conv2", CONV),
    *layer(rf"{_RES}\.skip_connection", r"model/\1/skip", POINT),
    *layer(r"(\w+_resize)\.(?:op|conv)", r"model/\1", CONV),
]
FINAL = [*norm(r"out\.0", "model/final_norm"), *layer(r"out\.2", "model/final_conv", CONV)]
_POOLS = {
    "adaptive": [
        *norm(r"out\.0", "model/final_norm"),
        *layer(r"out\.3", "model/final_linear", POINT),
    ],
    "attention": [
        *norm(r"out\.0", "model/final_norm"),
        Rule(r"out\.2\.positional_embedding", "model/pool_attn/position", TRANSPOSE),
        *layer(r"out\.2\.qkv_proj", "model/pool_attn/qkv", POINT),
        *layer(r"out\.2\.c_proj", "model/pool_attn/proj", POINT),
    ],
    "spatial": [*layer(r"out\.0", "model/hidden"), *layer(r"out\.2", "model/final_linear")],
    "spatial_v2": [
        *layer(r"out\.0", "model/hidden"),
        *norm(r"out\.1", "model/final_norm"),
        *layer(r"out\.3", "model/final_linear"),
    ],
}


def attention_rules(model: Backbone, new_order: bool = False) -> list[Rule]:
    """The rules of all attention blocks."""
    heads_up = model.heads_up or model.heads if isinstance(model, UNet) else model.heads
    return [
        *_attention(r"(?:down|mid)_\w*attn\w*", lambda c: model.heads_for(c, model.heads), new_order),
        *_attention(r"up_\w*attn\w*", lambda c: model.heads_for(c, heads_up), new_order),
    ]


def table(model: Backbone, new_order: bool = False, cond: nn.Module = Nothing()) -> list[Rule]:
    """The rules for a network: renamed official keys to our parameters; new_order is the official use_new_attention_order."""
    labels = "cond/parts_0/table" if isinstance(cond, Joint) else "cond/table"
    return [
        *BLOCKS, *attention_rules(model, new_order),
        *(_POOLS[model.pool] if isinstance(model, Classifier) else [*FINAL, Rule(r"label_emb\.weight", labels)]),
    ]


def block_names(model: Backbone) -> dict[str, str]:
    """Official block -> ours, 'input_blocks.4.1' -> 'down_1_attn_0' for example."""
    names = {"input_blocks.0.0": "stem"}
    names |= {f"middle_block.{j}": name for j, name in enumerate(("mid_res_0", "mid_attn", "mid_res_1"))}
    levels = range(len(model.mults))
    number = 1
    for level in levels:
        for i in range(model.depth):
            names |= {f"input_blocks.{number}.0": f"down_{level}_res_{i}", f"input_blocks.{number}.1": f"down_{level}_attn_{i}"}
            number += 1
        names[f"input_blocks.{number}.0"] = f"down_{level}_resize"
        number += 1
    number = 0
    for level in reversed(levels):
        for i in range(model.depth + 1):
            row = [f"up_{level}_res_{i}"] + [f"up_{level}_attn_{i}"] * model.attends(level)
            row += [f"up_{level}_resize"] * (level > 0 and i == model.depth)
            names |= {f"output_blocks.{number}.{j}": name for j, name in enumerate(row)}
            number += 1
    return names


def rename(keys: Mapping[str, Any], model: Backbone) -> dict[str, Any]:
    """A state dict (of arrays or shapes) whose blocks have our names; keys outside the blocks, or of none of ours, stay."""
    names = block_names(model)

    def ours(key: str) -> str:
        block = re.match(r"(input|output)_blocks\.\d+\.\d+|middle_block\.\d+", key)
        return names.get(block[0], block[0]) + key[block.end():] if block else key

    return {ours(key): value for key, value in keys.items()}


def config(official: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to `build` the network and its conditioner from.

    Args:
      official: the options of the official constructor: model_channels, num_res_blocks, ..., in_channels without those of the
        low-resolution image; with 'pool', those of a classifier; with 'large_size' and 'small_size', those of an upsampler.
        Options left out have the official defaults.
    """
    o = official
    size = _or_none(o.get("num_head_channels"))
    heads = o.get("num_heads", 1)
    resample = "conv" if o.get("conv_resample", True) else "pool"
    mults = tuple(o.get("channel_mult", (1, 2, 4, 8)))
    levels = {2**level for level in range(len(mults))}                          # some published lists name more of them
    blocks = dict(
        width=o["model_channels"], mults=mults, depth=o["num_res_blocks"],
        attend=tuple(sorted(levels & set(o["attention_resolutions"]))), dropout=float(o.get("dropout", 0)),
        heads=1 if size else heads, head_channels=size, scale_shift=o.get("use_scale_shift_norm", False),
        resample="res" if o.get("resblock_updown") else resample,
    )
    if "pool" in o:
        return _classifier(blocks | dict(num_classes=o["out_channels"], pool=o["pool"])), label(None, 0)
    heads_up = _or_none(o.get("num_heads_upsample"))
    blocks |= outputs(o["in_channels"], o["out_channels"])
    blocks |= dict(heads_up=None if size or heads_up == heads else heads_up)
    factor = o["large_size"] // o["small_size"] if "large_size" in o else 1
    return _unet(blocks), label(o.get("num_classes"), o["model_channels"], factor)


class Published(NamedTuple):
    """A published network.

    Attributes:
      preset: of models/unet.py, or of models/classifier.py for a classifier.
      size: side of its images.
      schedule: of its process.
      factor: how much an upsampler enlarges, 1 for the others.
      new_order: of the channels of query, key and value.
      classifier: whether it is one.
    """

    preset: str
    size: int
    schedule: str = "linear"
    factor: int = 1
    new_order: bool = False
    classifier: bool = False


PUBLISHED = {
    # (keys, width) of the state dict; the networks of LSUN are built like adm-imagenet256-uncond.
    (541, 192): Published("adm-imagenet64", 64, "squaredcos", new_order=True),
    (493, 256): Published("adm-imagenet128", 128),
    (567, 256): Published("adm-imagenet256", 256),
    (566, 256): Published("adm-imagenet256-uncond", 256),
    (645, 256): Published("adm-imagenet512", 512),
    (567, 192): Published("adm-upsample-64-256", 256, factor=4),
    (537, 192): Published("adm-upsample-128-512", 512, factor=4),
    (307, 128): Published("adm-imagenet64", 64, "squaredcos", classifier=True),
    (221, 128): Published("adm-imagenet128", 128, classifier=True),
    (249, 128): Published("adm-imagenet256", 256, classifier=True),
    (281, 128): Published("adm-imagenet512", 512, classifier=True),
}


def recognised(state_dict: Mapping[str, Any]) -> Published:
    """Which published network a state dict (of arrays or shapes) belongs to.

    Raises:
      ConfigError: none, so that its heads, its order of channels and its process are not known.
    """
    width = state_dict["time_embed.0.weight"].shape[1] if "time_embed.0.weight" in state_dict else 0
    if (len(state_dict), width) not in PUBLISHED:
        raise ConfigError("this is no state dict that was published with ADM: give the options of the official constructor")
    return PUBLISHED[len(state_dict), width]


def published(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """What to `build` a published network and its conditioner from, and its new_order, by its state dict (of arrays or shapes).

    Raises:
      ConfigError: see `recognised`.
    """
    network = recognised(state_dict)
    if network.classifier:
        return _classifier(classifier.preset(network.preset)), label(None, 0), False
    options = unet.preset(network.preset)
    labels = state_dict.get("label_emb.weight")
    classes = None if labels is None else labels.shape[0]
    cond = label(classes, options["width"], network.factor)
    return _unet(options), cond, network.new_order


def outputs(channels: int, out: int) -> dict[str, Any]:
    """The options of a UNet for images of so many channels, and so many out: as many, twice as many, or any other number."""
    plain = dict(channels=channels, learn_sigma=out == 2 * channels)
    return plain if out in (channels, 2 * channels) else plain | {"out_channels": out}


def _or_none(number: int | None) -> int | None:
    """The official options say -1 for None."""
    return None if number == -1 else number


def _unet(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "diffusion_jax.models.unet:UNet", **options}


def _classifier(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "diffusion_jax.models.classifier:Classifier", **options}


def label(num_classes: int | None, width: int, factor: int = 1) -> dict[str, Any]:
    """The conditioner of an unconditional network, or of one with labels but no null label; of an upsampler with a factor."""
    label = {"name": "diffusion_jax.models.cond:Nothing"}
    if num_classes is not None:
        label = {"name": "diffusion_jax.models.cond:Label", "num_classes": num_classes, "width": 4 * width, "null_row": False}
    if factor == 1:
        return label
    low_res = {"name": "diffusion_jax.models.cond:LowRes", "factor": factor}
    return {"name": "diffusion_jax.models.cond:Joint", "parts": [label, low_res]}


def shapes(model: Backbone, cond: nn.Module, state_dict: Mapping[str, Any]) -> Params:
    """Shapes and types of the parameters {'model': ..., 'cond': ...}; computes nothing.

    A state dict (of arrays or shapes) tells what the modules do not: the channels of a low-resolution image, the width of tokens,
    the pixels that a classifier pools.
    """
    channels = state_dict["input_blocks.0.0.weight"].shape[1]
    tokens = [value.shape[1] for key, value in state_dict.items() if key.endswith("encoder_kv.weight")]
    table = state_dict.get("out.2.positional_embedding")
    side = 2 ** (len(model.mults) - 1) * (math.isqrt(table.shape[1] - 1) if table is not None else 1)
    one = jnp.zeros(1, jnp.int32)

    def init() -> Params:
        key = jax.random.key(0)
        conditions: dict[str, Array] = {}
        if isinstance(model, Classifier):
            return {"model": model.init(key, jnp.zeros((1, side, side, channels)), one)["params"], "cond": {}}
        if channels > model.channels:
            conditions["cat"] = jnp.zeros((1, side, side, channels - model.channels))
        if tokens:
            conditions["seq"] = jnp.zeros((1, 1, tokens[0]))
        params = model.init(key, jnp.zeros((1, side, side, model.channels)), one, conditions)["params"]
        raw = {"label": one, "low_res": jnp.zeros((1, 1, 1, model.channels))}
        return {"model": params, "cond": cond.init(key, raw).get("params", {})}

    return shapes_of(init)


def convert(state_dict: Mapping[str, Array], model: Backbone, cond: nn.Module, new_order: bool = False) -> Params:
    """An official state dict as the parameters {'model': ..., 'cond': ...}.

    Args:
      state_dict: official key -> array.
      model, cond: see `config`.
      new_order: the official option use_new_attention_order.

    Raises:
      ConfigError: the weights do not fit; the line says where.

    Example:
      model, cond, new_order = published(state_dict)
      params = convert(state_dict, build(model), build(cond), new_order)
    """
    params = rules.convert(rename(state_dict, model), table(model, new_order, cond), shapes(model, cond, state_dict))
    return {"cond": {}} | params


def revert(
    params: Params, shapes: Mapping[str, rules.Shape], model: Backbone, new_order: bool = False, cond: nn.Module = Nothing()
) -> dict[str, Array]:
    """Parameters (or gradients) as an official state dict of the given shapes."""
    names = rename({key: key for key in shapes}, model)
    return rules.revert_renamed(params, table(model, new_order, cond), shapes, names)


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`.

    Raises:
      ConfigError: shapes of an unpublished network: a run does not hold its order of channels.
    """
    new_order = recognised(rules.structs(shapes)).new_order
    cond = build(page["task"].get("cond", label(None, 0)))                # a classifier has none
    return revert(params, shapes, build(page["model"]), new_order, cond)


def page(model: Mapping[str, Any], cond: Mapping[str, Any], size: int, schedule: str) -> dict[str, Any]:
    """The sections model, task and, but for a classifier, sample of the published recipe for images of size x size."""
    shape = (size, size, 3)
    process = dict(name="diffusion_jax.diffusion.process:DDPM", schedule=schedule)
    if model["name"].endswith(":Classifier"):
        name = "diffusion_jax.tasks.classifier:NoisyClassifier"
        return dict(model=model, task=dict(name=name, process=process, shape=shape))
    learned = model.get("learn_sigma", True)
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, process=process,
        scale=dict(name="diffusion_jax.diffusion.scales:Eps"), shape=shape,
        variance="learned_range" if learned else "fixed_large", objective="hybrid" if learned else "mse",
    )
    return dict(model=model, task=task, sample=dict(sampler="ancestral", steps=250, times="respace", clip=1.0))


SCHEDULES = {"linear": "linear", "cosine": "squaredcos"}
"""The official names of schedules, and ours."""


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """An official weights file as (config, params).

    Args:
      path: the file, see `reader.read`.
      official: for networks that were not published, the options of the official constructor (see `config`), with image_size and,
        where it is not linear, noise_schedule; of a published one at most image_size.

    Returns:
      The sections model, task and, but for a classifier, sample of a page, and the parameters.

    Raises:
      ConfigError: see `read`, `recognised` and `convert`.
    """
    state_dict = read(path)
    official = official or {}
    if set(official) - {"image_size"}:
        model, cond = config(official)
        new_order = official.get("use_new_attention_order", False)
        size = official["image_size"]
        schedule = SCHEDULES[official.get("noise_schedule", "linear")]
    else:
        model, cond, new_order = published(state_dict)
        network = recognised(state_dict)
        size = official.get("image_size", network.size)
        schedule = network.schedule
    params = convert(state_dict, build(model), build(cond), new_order)
    return page(model, cond, size, schedule), params
