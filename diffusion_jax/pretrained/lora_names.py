"""The modules of published systems by the names that files of LoRAs have for them, and where their weights lie in ours.

    unet.down_blocks.0.attentions.0.proj_in                            model/down_0_attn_0/proj_in/kernel
    text_encoder.text_model.encoder.layers.0.self_attn.k_proj          cond/tower/transformer/blocks_0/qkv/kernel, part 1 of 3

The paths come from the rules of the system (pretrained/rules.py). To add a network is to list its official names, as `unet_names`
and `text_names` do, and to name it in `modules`.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.cond import Nothing
from diffusion_jax.models.text_cond import TowerText
from diffusion_jax.models.unet import UNet, of_level
from diffusion_jax.pretrained import clip, ldm_unet, rules
from diffusion_jax.pretrained.rules import Layout
from diffusion_jax.types import Params

KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""Part of a system -> what kohya calls it."""


class Module(NamedTuple):
    """Where the weight of an official module lies in our parameters.

    Attributes:
      path: of our kernel.
      layout: from its official weight to ours.
      part, parts: which of so many equal parts of our kernel's columns it is: 0 of 3 for the queries of a fused layer.
      pixels: whether it is a convolution over single pixels, which is a matrix here.
    """

    path: str
    layout: Layout
    part: int = 0
    parts: int = 1
    pixels: bool = False


def modules(task: Any, params: Params) -> dict[str, Module]:
    """Official name, 'unet.mid_block.attentions.0.proj_in' for example -> module, for the kernels of a task that have one.

    Args:
      task: what was trained; only diffusion tasks have public names.
      params: its parameters, or their shapes.
    """
    table: dict[str, Module] = {}
    model = getattr(task, "model", None)
    if isinstance(model, UNet) and model.transformer:
        table |= {f"unet.{name}": module for name, module in _of_unet(model)}
    for prefix, cond in _conditioners(getattr(task, "cond", None), "cond"):
        if isinstance(cond, TowerText) and isinstance(cond.tower, TextTower):
            table |= {f"text_encoder.{name}": module for name, module in _of_text(cond.tower, f"{prefix}/tower")}
    paths = flatten_dict(params, sep="/").keys()
    return {name: module for name, module in table.items() if module.path in paths}


def _conditioners(cond: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path of its parameters, conditioner) of one, of those that it joins, and of the one that it stands around."""
    yield path, cond
    for i, part in enumerate(getattr(cond, "parts", ())):
        yield from _conditioners(part, f"{path}/parts_{i}")
    if hasattr(cond, "cond"):
        yield from _conditioners(cond.cond, f"{path}/cond")


def unet_names(model: UNet) -> list[str]:
    """diffusers' names of the modules of a UNet, those with attention first and in the order in which its network has them.

    Some do not exist in every network: whoever maps them finds no parameter.
    """
    blocks = [f"{kind}_blocks.{level}" for kind in ("down", "up") for level in range(len(model.mults))] + ["mid_block"]
    attentions = [f"{block}.attentions.{i}" for block in blocks for i in range(model.depth + 1)]
    resnets = [f"{block}.resnets.{i}" for block in blocks for i in range(max(model.depth + 1, 2))]
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    deepest = max(of_level(model.transformer, level) for level in range(len(model.mults)))
    inside = [*(f"attn1.{name}" for name in attention), "ff.net.0.proj", *(f"attn2.{name}" for name in attention), "ff.net.2"]
    return [
        *(f"{place}.transformer_blocks.{k}.{name}" for place in attentions for k in range(deepest) for name in inside),
        *(f"{place}.{name}" for place in attentions for name in ("proj_in", "proj_out")),
        *(f"{place}.{name}" for place in resnets for name in ("conv1", "time_emb_proj", "conv2", "conv_shortcut")),
        *(f"{block}.{name}.0.conv" for block in blocks for name in ("downsamplers", "upsamplers")),
        "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2",
    ]


def _of_unet(model: UNet) -> Iterator[tuple[str, Module]]:
    """(name, module) of a UNet of latent diffusion."""
    table = ldm_unet.table(model, False, Nothing())
    names = {f"{name}.weight": name for name in unet_names(model)}
    # Stable Diffusion 2, whose heads have a fixed width, projects by linear layers, the others by convolutions.
    pixels = r".*\.conv_shortcut" if model.head_channels else r".*\.(conv_shortcut|proj_in|proj_out)"
    for key, name in ldm_unet.renamed(names, model).items():
        rule, path = rules.find(key, table)
        if isinstance(rule, rules.Rule):
            yield name, Module(path, rule.layout, pixels=re.fullmatch(pixels, name) is not None)


def text_names(layers: int) -> list[str]:
    """transformers' names of the modules of CLIP's text encoder, in the order in which its network has them."""
    inside = (*(f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")), "mlp.fc1", "mlp.fc2")
    return [f"text_model.encoder.layers.{i}.{name}" for i in range(layers) for name in inside]


def _of_text(tower: TextTower, prefix: str) -> Iterator[tuple[str, Module]]:
    """(name, module) of a text tower whose parameters lie under a prefix."""
    for name in text_names(tower.layers):
        fused = re.fullmatch(r"(.+\.)([qkv])(_proj)", name)
        key = f"{fused[1]}qkv{fused[3]}" if fused else name
        rule, path = rules.find(f"{key}.weight", clip.TRANSFORMERS)
        assert isinstance(rule, rules.Rule), name
        part, parts = ("qkv".index(fused[2]), 3) if fused else (0, 1)
        yield name, Module(path.replace("text/", f"{prefix}/", 1), rule.layout, part, parts)


def kohya(name: str) -> str:
    """kohya's name of a module."""
    part, _, rest = name.partition(".")
    return f"{KOHYA[part]}_{rest.replace('.', '_')}"


def aliases(table: Mapping[str, Module]) -> dict[str, str]:
    """All names that files give the modules -> official name."""
    names = {name: name for name in table} | {kohya(name): name for name in table}
    for name in table:
        part, _, rest = name.partition(".")
        # The first files of a UNet alone have no part before its names, today's transformers no text_model.
        names[rest if part == "unet" else name.replace(".text_model.", ".", 1)] = name
    return names
