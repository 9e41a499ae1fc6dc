"""The published GLIDE weights (openai/glide-text2im, arXiv 2112.10741) as our UNet, its conditioners and a noised CLIP.

The files, at https://openaipublic.blob.core.windows.net/diffusion/dec-2021/, are flat state dicts:

    base.pt  base_inpaint.pt  upsample.pt  upsample_inpaint.pt          a UNet with its text transformer
    clip_image_enc.pt  clip_text_enc.pt                                 the towers of the noised CLIP

The UNet's blocks are ADM's with the text's keys and values in every attention block, so ADM's table serves (pretrained/adm.py).
A key's bias, which changes no softmax, is missing in the towers: ours is zero.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.clip import CLIP
from diffusion_jax.models.cond import Joint, Nothing
from diffusion_jax.models.glide import Text, joined, preset
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import adm, rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import PATCH, TRANSPOSE, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

CHANNELS = {3: ("glide-base-64", False), 7: ("glide-base-64", True),
            6: ("glide-upsample-64-256", False), 10: ("glide-upsample-64-256", True)}
"""Channels that a published network sees -> its preset, and whether it inpaints."""
PUBLISHED = (192, 512)
"""Widths of the UNet and of the text transformer of all published networks."""
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "squaredcos"}
"""The official names of schedules, and ours."""
IMAGE, TEXT = "clip_image_enc.pt", "clip_text_enc.pt"
"""The published files of the noised CLIP; with another suffix they are what was written here."""


def config(official: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to `build` the network and its conditioner from.

    Args:
      official: the official class as 'class' and the options of its constructor; with tokenizer_n_vocab in place of a tokenizer,
        and, for an upsampler, low_res_factor, 4 by default.
    """
    o = official
    kind = o.get("class", "Text2ImUNet")
    model, _ = adm.config(o)
    others: list[dict[str, Any]] = []
    if "Inpaint" in kind:
        others.append({"name": "diffusion_jax.models.glide:Inpaint"})
    if "SuperRes" in kind:
        factor = o.get("low_res_factor", 4)
        others.append({"name": "diffusion_jax.models.cond:LowRes", "factor": factor})
    if not o["xf_width"]:
        text = {"name": "diffusion_jax.models.cond:Nothing"}
        return model, joined(text, others)
    text = dict(
        name="diffusion_jax.models.glide:Text", vocab=o["tokenizer_n_vocab"], context=o["text_ctx"], width=o["xf_width"],
        layers=o["xf_layers"], heads=o["xf_heads"], out=4 * o["model_channels"], norm=o["xf_final_ln"],
        padding=o.get("xf_padding", False),
    )
    return model, joined(text, others)


def published(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to `build` a published network and its conditioner from, by its state dict (of arrays or shapes).

    Raises:
      ConfigError: none of them.
    """
    name, inpaint = recognised(state_dict)
    return preset(name, inpaint)


def recognised(state_dict: Mapping[str, Any]) -> tuple[str, bool]:
    """The preset of a published state dict (of arrays or shapes), and whether it inpaints.

    Raises:
      ConfigError: none of them.
    """
    shape = state_dict["input_blocks.0.0.weight"].shape if "input_blocks.0.0.weight" in state_dict else (0, 0)
    text = state_dict["final_ln.weight"].shape[0] if "final_ln.weight" in state_dict else 0
    if shape[1] not in CHANNELS or (shape[0], text) != PUBLISHED:
        raise ConfigError("this is no state dict that was published with GLIDE: give the options of the official constructor")
    return CHANNELS[shape[1]]


def _text(cond: nn.Module) -> tuple[Text | None, str]:
    """The text's conditioner and the path of its parameters."""
    first, path = (cond.parts[0], "cond/parts_0") if isinstance(cond, Joint) else (cond, "cond")
    return (first if isinstance(first, Text) else None), path


def table(model: UNet, cond: nn.Module) -> rules.Rules:
    """The rules for a network and its conditioner: official keys, renamed by `adm.rename`, to our parameters."""
    text, path = _text(cond)
    rest = [rule for rule in adm.table(model) if not rule.key.startswith("label_emb")]
    if text is None:
        return rest
    key = r"transformer\.resblocks\.(\d+)"
    block = rf"{path}/transformer/blocks_\1"
    qkv = adm.per_head(3, lambda channels: text.heads)
    return [
        *rest,
        Rule(r"token_embedding\.weight", f"{path}/token"),
        Rule("positional_embedding", f"{path}/position"),
        Rule("padding_embedding", f"{path}/padding"),
        *layer(rf"{key}\.attn\.c_qkv", f"{block}/qkv", qkv, bias=qkv),
        *layer(rf"{key}\.attn\.c_proj", f"{block}/proj"),
        *norm(rf"{key}\.ln_1", f"{block}/norm1"),
        *norm(rf"{key}\.ln_2", f"{block}/norm2"),
        *layer(rf"{key}\.mlp\.c_fc", f"{block}/fc1"),
        *layer(rf"{key}\.mlp\.c_proj", f"{block}/fc2"),
        *norm("final_ln", f"{path}/norm"),
        *layer("transformer_proj", f"{path}/proj"),
    ]


def shapes(model: UNet, cond: nn.Module, state_dict: Mapping[str, Any]) -> Params:
    """Shapes and types of the parameters {'model': ..., 'cond': ...}; computes nothing."""
    text, _ = _text(cond)
    image = jnp.zeros((1, 4, 4, model.channels))
    tokens = jnp.zeros((1, text.context if text else 1), jnp.int32)
    raw = {"tokens": tokens, "low_res": image, "mask": image[..., :1], "known": image}
    params = shapes_of(partial(cond.init, jax.random.key(0)), raw).get("params", {})
    return {"model": adm.shapes(model, Nothing(), state_dict)["model"], "cond": params}


def convert(state_dict: Mapping[str, Array], model: UNet, cond: nn.Module) -> Params:
    """An official state dict as the parameters {'model': ..., 'cond': ...}.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    params = rules.convert(adm.rename(state_dict, model), table(model, cond), shapes(model, cond, state_dict))
    return {"cond": {}} | params


def revert(params: Params, shapes: Mapping[str, rules.Shape], model: UNet, cond: nn.Module) -> dict[str, Array]:
    """Parameters (or gradients) as an official state dict of the given shapes."""
    names = adm.rename({key: key for key in shapes}, model)
    return rules.revert_renamed(params, table(model, cond), shapes, names)


# The noised CLIP ------------------------------------------------------------------------------------------------------------


WB = ("w", "b")
GB = ("g", "b")
"""What the keys of the towers' layers and of their norms end with."""


def _blocks(tower: str) -> list[Rule]:
    """The rules of one tower's transformer, once its query, key and value are joined (see `merge`)."""
    key = rf"{tower}/blocks\.block_(\d+)"
    path = rf"{tower}/transformer/blocks_\1"
    return [
        *norm(rf"{key}\.f_attn\.ln", f"{path}/norm1", GB),
        *layer(rf"{key}\.f_attn\.f_qkv", f"{path}/qkv", ends=WB),
        *layer(rf"{key}\.f_attn\.f_c", f"{path}/proj", ends=WB),
        *norm(rf"{key}\.f_mlp\.ln", f"{path}/norm2", GB),
        *layer(rf"{key}\.f_mlp\.f_1", f"{path}/fc1", ends=WB),
        *layer(rf"{key}\.f_mlp\.f_2", f"{path}/fc2", ends=WB),
    ]


NOISED = [
    *_blocks("image"),
    *_blocks("text"),
    Rule("logit_scale", "logit_scale"),
    Rule(r"image/blocks\.input\.(?:w_t|pred_state)", "image/cls"),
    Rule(r"image/blocks\.input\.w_pos", "image/position"),
    Rule(r"image/blocks\.input\.patch_proj", "image/patches/kernel", PATCH),
    *norm(r"image/blocks\.input\.ln", "image/norm_pre", GB),
    *norm(r"image/blocks\.output\.ln", "image/norm_post", GB),
    Rule(r"image/blocks\.output\.f\.w", "image/proj", TRANSPOSE),
    Rule(r"text/blocks\.input\.w_voc", "text/token"),
    Rule(r"text/blocks\.input\.w_pos", "text/position"),
    *norm(r"text/blocks\.output\.ln", "text/norm", GB),
    Rule(r"text/blocks\.output\.f\.w", "text/proj", TRANSPOSE),
]


def noised_config(image: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """What to `build` the noised CLIP from, by the options of the official ImageEncoder and TextEncoder."""
    head = (image.get("n_head_state", 64), text.get("n_head_state", 64))
    towers = dict(
        image=dict(
            name="diffusion_jax.models.clip:ViT", features=image["n_embd"], size=image["image_size"], patch=image["patch_size"],
            width=image["n_head"] * head[0], layers=image["n_xf_blocks"], heads=image["n_head"], act="gelu",
            steps=image.get("n_timestep", 0),
        ),
        text=dict(
            name="diffusion_jax.models.clip:TextTower", features=text["n_embd"], vocab=text["n_bpe_vocab"],
            context=text["max_text_len"], width=text["n_head"] * head[1], layers=text["n_xf_blocks"], heads=text["n_head"],
            act="gelu",
        ),
    )
    return dict(name="diffusion_jax.models.clip:CLIP", **towers)


def noised_published(image: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """What to `build` the noised CLIP of two state dicts (of arrays or shapes) from, whose heads have 64 channels."""
    steps, width = image["blocks.input.w_t"].shape
    patch = image["blocks.input.patch_proj"].shape[-1]
    patches = image["blocks.input.w_pos"].shape[0] - 1
    vocab, text_width = text["blocks.input.w_voc"].shape
    layers = [sum(key.endswith("f_q.w") for key in tower) for tower in (image, text)]
    features = image["blocks.output.f.w"].shape[0]
    return noised_config(
        dict(n_embd=features, image_size=patch * math.isqrt(patches), patch_size=patch, n_head=width // 64,
             n_xf_blocks=layers[0], n_timestep=steps),
        dict(n_embd=features, n_bpe_vocab=vocab, max_text_len=text["blocks.input.w_pos"].shape[0], n_head=text_width // 64,
             n_xf_blocks=layers[1]),
    )


def merge(tower: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's state dict whose f_q, f_k and f_v have become one f_qkv, with a zero bias for k."""
    merged: dict[str, Any] = {}
    for key, value in tower.items():
        block, _, end = key.rpartition(".f_q.")
        if block:
            k = tower[f"{block}.f_k.w"] if end == "w" else 0 * value
            v = tower[f"{block}.f_v.{end}"]
            join = np.concatenate if isinstance(value, np.ndarray) else jnp.concatenate
            merged[f"{block}.f_qkv.{end}"] = join([value, k, v])
        elif ".f_k." not in key and ".f_v." not in key:
            merged[key] = value
    return merged


def noised_convert(image: Mapping[str, Array], text: Mapping[str, Array], model: CLIP, scale: float = 100.0) -> Params:
    """The state dicts of both towers as the parameters of the noised CLIP, `model`; exp(s) is `scale`, which no file holds.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    state_dict = {f"{name}/{key}": w for name, tower in (("image", image), ("text", text)) for key, w in merge(tower).items()}
    x = jnp.zeros((1, model.image.size, model.image.size, 3))
    label = jnp.zeros(1) if model.image.steps else None
    target = shapes_of(model.init, jax.random.key(0), x, jnp.zeros((1, 1), jnp.int32), label)["params"]
    return rules.convert(state_dict | {"logit_scale": np.float32(np.log(scale))}, NOISED, target)


def noised_revert(params: Params, shapes: Mapping[str, rules.Shape], tower: str) -> dict[str, Array]:
    """One tower of the parameters, 'image' or 'text', as an official state dict of the given shapes."""
    merged = merge({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    wanted = {f"{tower}/{key}": value.shape for key, value in merged.items()}
    weights = rules.revert({tower: params[tower]}, NOISED, wanted)
    official: dict[str, Array] = {}
    for key in shapes:
        block, _, rest = key.rpartition(".f_")
        part, _, end = rest.partition(".")
        if part in ("q", "k", "v"):
            whole = weights[f"{tower}/{block}.f_qkv.{end}"]
            official[key] = jnp.split(whole, 3)["qkv".index(part)]
        else:
            official[key] = weights[f"{tower}/{key}"]
    return official


def page(
    model: Mapping[str, Any], cond: Mapping[str, Any], size: int, schedule: str, upsampler: bool, merges: str | None = None
) -> dict[str, Any]:
    """The sections model, task, data and sample of the published recipe for images of size x size; merges see `GlideBPE`.

    Raises:
      ConfigError: the merges do not read, or are not those of the network.
    """
    sections = adm.page(model, cond, size, schedule)
    sections["task"]["drop"] = dict(tokens=0.2)
    ways = dict(sampler="ddim", steps="fast27", times="respace", clip=1.0, temperature=0.997)
    sections["sample"] = ways if upsampler else dict(sampler="ancestral", steps=100, times="respace", clip=1.0, guidance=3.0)
    sections["data"] = dict(decode=dict(name="diffusion_jax.data.image:Decode", size=size))
    text = next(iter(cond.get("parts", [cond])))
    if text["name"].endswith(":Text"):
        tokenizer = dict(name="diffusion_jax.data.glide_bpe:GlideBPE", merges=merges, context=text["context"])
        if merges is not None and (vocab := build(tokenizer).vocab) != text["vocab"]:
            raise ConfigError(f"{merges} makes {vocab} tokens, the network reads {text['vocab']}: give the merges of its own")
        sections["data"]["decode"]["tokenizer"] = tokenizer
    return sections


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`.

    Of the noised CLIP, the tower whose shapes they are.
    """
    model = build(page["model"])
    if isinstance(model, CLIP):
        tower = "text" if "blocks.input.w_voc" in shapes else "image"
        return noised_revert(params["model"], shapes, tower)
    return revert(params, shapes, model, build(page["task"]["cond"]))


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """An official weights file as (config, params); either tower of the noised CLIP stands for both, which lie side by side.

    Args:
      path: the file, see `reader.read`.
      official: for networks that were not published, the options of `config` with image_size and noise_schedule; for all, merges:
        the file vocab.bpe, without which no prompts are read.

    Returns:
      The sections model, task, data and, but for the noised CLIP, sample of a page, and the parameters.

    Raises:
      ConfigError: see `read`, `recognised` and `convert`.
    """
    path = Path(path)
    options = dict(official or {})
    towers = [Path(name).stem for name in (IMAGE, TEXT)]
    if path.stem in towers:
        return _load_noised(*(read(path.with_stem(name)) for name in towers), options)
    state_dict = read(path)
    merges = options.get("merges")
    if merges:
        merges = str(Path(merges).expanduser().absolute())
    if set(options) - {"image_size", "merges"}:
        model, cond = config(options)
        upsampler = "SuperRes" in options.get("class", "")
        size = options["image_size"]
        schedule = SCHEDULES[options.get("noise_schedule", "squaredcos_cap_v2")]
    else:
        model, cond = published(state_dict)
        upsampler = "upsample" in recognised(state_dict)[0]
        size = options.get("image_size", 256 if upsampler else 64)
        schedule = "linear" if upsampler else "squaredcos"
    params = convert(state_dict, build(model), build(cond))
    return page(model, cond, size, schedule, upsampler, merges), params


def _load_noised(
    image: Mapping[str, Array], text: Mapping[str, Array], official: Mapping[str, Any]
) -> tuple[dict[str, Any], Params]:
    """`load` of the noised CLIP; official may hold the options of both towers, and logit_scale, which no file does."""
    model = noised_config(official["image"], official["text"]) if "image" in official else noised_published(image, text)
    size = model["image"]["size"]
    task = dict(
        name="diffusion_jax.tasks.clip:Contrastive", shape=(size, size, 3),
        process=dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos"),
    )
    tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=model["text"]["context"])
    data = dict(decode=dict(name="diffusion_jax.data.image:Decode", size=size, tokenizer=tokenizer))
    params = noised_convert(image, text, build(model), official.get("logit_scale", 100.0))
    return dict(model=model, task=task, data=data), {"model": params}


