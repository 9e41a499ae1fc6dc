"""Published CLIP weights as our CLIP, or as one of its towers alone.

Three layouts hold the same networks:

    openai         visual.*, transformer.*, token_embedding.weight ...    RN50.pt ... ViT-L-14-336px.pt, and OpenCLIP's files
    transformers   vision_model.*, text_model.*, visual_projection ...    model.safetensors; the text encoders of Stable Diffusion

The shapes tell the sizes, but neither the activation nor the number of heads. OpenAI's own files are known by what else is there;
beside all others lies a config.json (transformers) or open_clip_config.json (OpenCLIP), which is read, or its options are given.

OpenAI's .pt are TorchScript archives, which hold code; only their tensors are read, see pretrained/torchscript.py. Query, key and
value have one weight here, three in some files: `merge` and `split` go from one to the other.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.clip_resnet import ResNet
from diffusion_jax.pretrained import folder, rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import (
    CONV,
    PATCH,
    TRANSPOSE,
    Constant,
    Rule,
    batch_norm,
    layer,
    norm,
)
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

UNUSED = r"(?:.*\.)?(?:num_batches_tracked|attn_mask)|input_resolution|context_length|vocab_size"
"""Official tensors that change nothing: counters, masks and sizes."""
PUBLISHED = "input_resolution"
"""A key that only OpenAI's own files have."""
CONFIGS, PREPROCESSOR = ("open_clip_config.json", "config.json"), "preprocessor_config.json"
VOCAB = 49408
"""Tokens of CLIP's tokenizer."""
WIDE = {1280: 16, 1408: 16, 1664: 16}
"""Width of the vision transformers whose heads are not of 64 channels -> their number."""


def _unit(conv: str, bn: str, path: str) -> list[Rule]:
    """The rules of a convolution and its batch norm."""
    return [Rule(rf"{conv}\.weight", f"{path}/conv/kernel", CONV), *batch_norm(bn, f"{path}/norm")]


def _openai_blocks(key: str, path: str) -> list[Rule]:
    key = rf"{key}transformer\.resblocks\.(\d+)"
    path = rf"{path}/transformer/blocks_\1"
    return [
        Rule(rf"{key}\.attn\.in_proj_weight", f"{path}/qkv/kernel", TRANSPOSE),
        Rule(rf"{key}\.attn\.in_proj_bias", f"{path}/qkv/bias"),
        *layer(rf"{key}\.attn\.out_proj", f"{path}/proj"),
        *norm(rf"{key}\.ln_1", f"{path}/norm1"),
        *norm(rf"{key}\.ln_2", f"{path}/norm2"),
        *layer(rf"{key}\.mlp\.c_fc", f"{path}/fc1"),
        *layer(rf"{key}\.mlp\.c_proj", f"{path}/fc2"),
    ]


def _hf_blocks(key: str, path: str) -> list[Rule]:
    key = rf"{key}\.encoder\.layers\.(\d+)"
    path = rf"{path}/transformer/blocks_\1"
    return [
        *layer(rf"{key}\.self_attn\.qkv_proj", f"{path}/qkv"),
        *layer(rf"{key}\.self_attn\.out_proj", f"{path}/proj"),
        *norm(rf"{key}\.layer_norm([12])", rf"{path}/norm\2"),
        *layer(rf"{key}\.mlp\.(fc[12])", rf"{path}/\2"),
    ]


def _ids(shape: rules.Shape) -> np.ndarray:
    return np.arange(shape[-1]).reshape(shape)


RESNET = [
    *(rule for i in (1, 2, 3) for rule in _unit(rf"visual\.conv{i}", rf"visual\.bn{i}", f"image/stem_{i - 1}")),
    *(
        rule for stage in range(4) for i in (1, 2, 3)
        for rule in _unit(rf"visual\.layer{stage + 1}\.(\d+)\.conv{i}", rf"visual\.layer{stage + 1}\.(\d+)\.bn{i}",
                          rf"image/stage_{stage}_\1/conv{i}")
    ),
    *(
        rule for stage in range(4)
        for rule in _unit(rf"visual\.layer{stage + 1}\.(\d+)\.downsample\.0", rf"visual\.layer{stage + 1}\.(\d+)\.downsample\.1",
                          rf"image/stage_{stage}_\1/skip")
    ),
    Rule(r"visual\.attnpool\.positional_embedding", "image/pool_attn/position"),
    *layer(r"visual\.attnpool\.qkv_proj", "image/pool_attn/qkv"),
    *layer(r"visual\.attnpool\.c_proj", "image/pool_attn/proj"),
]
VIT = [
    Rule(r"visual\.conv1\.weight", "image/patches/kernel", PATCH),
    Rule(r"visual\.class_embedding", "image/cls"), Rule(r"visual\.positional_embedding", "image/position"),
    Rule(r"visual\.proj", "image/proj"),
    *norm(r"visual\.ln_pre", "image/norm_pre"), *norm(r"visual\.ln_post", "image/norm_post"),
    *_openai_blocks(r"visual\.", "image"),
]
TEXT = [
    Rule(r"token_embedding\.weight", "text/token"), Rule("positional_embedding", "text/position"),
    Rule("text_projection", "text/proj"),
    *norm("ln_final", "text/norm"),
    *_openai_blocks("", "text"),
]
TRANSFORMERS = [
    Rule("logit_scale", "logit_scale"),
    Rule(r"vision_model\.embeddings\.class_embedding", "image/cls"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image/patches/kernel", PATCH),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image/position"),
    Rule(r"visual_projection\.weight", "image/proj", TRANSPOSE),
    *norm(r"vision_model\.pre_layrnorm", "image/norm_pre"),
    *norm(r"vision_model\.post_layernorm", "image/norm_post"),
    *_hf_blocks("vision_model", "image"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/token"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "text/position"),
    Rule(r"text_projection\.weight", "text/proj", TRANSPOSE),
    *norm(r"text_model\.final_layer_norm", "text/norm"), *_hf_blocks("text_model", "text"),
    Constant(r"(?:text|vision)_model\.embeddings\.position_ids", _ids),
]


def is_transformers(keys: Mapping[str, Any]) -> bool:
    """Whether keys are those of transformers."""
    return any(key.startswith(("text_model.", "vision_model.")) for key in keys)


def table(keys: Mapping[str, Any]) -> rules.Rules:
    """The rules for a state dict with such keys."""
    if is_transformers(keys):
        return TRANSFORMERS
    return [Rule("logit_scale", "logit_scale"), *TEXT, *(VIT if "visual.class_embedding" in keys else RESNET)]


_SPLIT = re.compile(r"(.+\.)([qkv])(_proj\.(?:weight|bias))")


def merge(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict whose three keys '*.q_proj.*', '*.k_proj.*', '*.v_proj.*' have become one '*.qkv_proj.*'."""
    merged: dict[str, Any] = {}
    for key, value in state_dict.items():
        match = _SPLIT.fullmatch(key)
        names = [f"{match[1]}{part}{match[3]}" for part in "qkv"] if match else []
        if not match or any(name not in state_dict for name in names):
            merged[key] = value
        elif match[2] == "q":                                          # k and v come with it
            parts = [state_dict[name] for name in names]
            join = np.concatenate if all(isinstance(part, np.ndarray) for part in parts) else jnp.concatenate
            merged[f"{match[1]}qkv{match[3]}"] = join(parts)
    return merged


def split(state_dict: Mapping[str, Array], shapes: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """The inverse of `merge` for the keys of `shapes`."""
    parts = {}
    for key in shapes:
        match = _SPLIT.fullmatch(key)
        if match is None:
            parts[key] = state_dict[key]
            continue
        whole = state_dict[f"{match[1]}qkv{match[3]}"]
        parts[key] = jnp.split(whole, 3)["qkv".index(match[2])]
    return parts


def towers(state_dict: Mapping[str, Any], official: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """What to `build` the towers of a state dict (of arrays or shapes) from: {'image': ..., 'text': ...}, or one of them.

    Args:
      state_dict: official key -> array.
      official: the options of OpenAI's constructor, of a transformers config or of an OpenCLIP config; None for OpenAI's files.

    Raises:
      ConfigError: no options, and not a file of OpenAI's.
    """
    if official is None and PUBLISHED not in state_dict:
        raise ConfigError(f"these weights do not tell their activation and heads: put {' or '.join(CONFIGS)} beside the file, "
                          "or give --official")
    sizes = _from_transformers if is_transformers(state_dict) else _from_openai
    specs = sizes(state_dict)
    for part, options in _beyond_shapes(official or {}).items():
        if part in specs and "ResNet" not in specs[part]["name"]:        # which has neither option
            specs[part] |= options
    return specs


def _count(state_dict: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` among the keys."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def _named(kind: type[nn.Module], **options: Any) -> dict[str, Any]:
    return {"name": f"{kind.__module__}:{kind.__name__}", **options}


def _from_openai(w: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sizes by OpenAI's keys."""
    specs = {}
    if "ln_final.weight" in w:
        width = w["ln_final.weight"].shape[0]
        specs["text"] = _named(
            TextTower, features=w["text_projection"].shape[1], vocab=w["token_embedding.weight"].shape[0],
            context=w["positional_embedding"].shape[0], width=width, heads=max(width // 64, 1),
            layers=_count(w, r"transformer\.resblocks\.(\d+)"),
        )
    if "visual.class_embedding" in w:
        specs["image"] = _vit(
            w, "visual.conv1.weight", "visual.positional_embedding",
            r"visual\.transformer\.resblocks\.(\d+)",
            "visual.transformer.resblocks.0.mlp.c_fc.weight", w["visual.proj"].shape[1],
        )
    elif "visual.layer1.0.conv1.weight" in w:
        pixels = w["visual.attnpool.positional_embedding"].shape[0] - 1
        specs["image"] = _named(
            ResNet, features=w["visual.attnpool.c_proj.weight"].shape[0], size=32 * math.isqrt(pixels),
            width=w["visual.layer1.0.conv1.weight"].shape[0],
            layers=tuple(_count(w, rf"visual\.layer{i}\.(\d+)") for i in (1, 2, 3, 4)),
        )
    return specs


def _vit(w: Mapping[str, Any], patches: str, position: str, blocks: str, fc1: str, features: int | None) -> dict[str, Any]:
    width = w[patches].shape[0]
    patch = w[patches].shape[-1]
    return _named(
        ViT, features=features, size=patch * math.isqrt(w[position].shape[0] - 1), patch=patch, width=width,
        layers=_count(w, blocks), heads=WIDE.get(width, max(width // 64, 1)), hidden=w[fc1].shape[0],
    )


def _from_transformers(w: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sizes by transformers' keys."""
    specs = {}
    table = "text_model.embeddings.{}_embedding.weight"
    if table.format("token") in w:
        vocab, width = w[table.format("token")].shape
        proj = w.get("text_projection.weight")
        specs["text"] = _named(
            TextTower, features=None if proj is None else proj.shape[0], vocab=vocab, width=width, heads=max(width // 64, 1),
            context=w[table.format("position")].shape[0], layers=_count(w, r"text_model\.encoder\.layers\.(\d+)"),
            hidden=w["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        )
    if "vision_model.embeddings.class_embedding" in w:
        proj = w.get("visual_projection.weight")
        table = "vision_model.embeddings.{}_embedding.weight"
        specs["image"] = _vit(
            w, table.format("patch"), table.format("position"),
            r"vision_model\.encoder\.layers\.(\d+)",
            "vision_model.encoder.layers.0.mlp.fc1.weight", None if proj is None else proj.shape[0],
        )
    return specs


def _beyond_shapes(official: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of both towers that shapes do not tell."""
    o = official.get("model_cfg", official)
    if "vision_cfg" in o:                                                          # OpenCLIP
        act = "quick_gelu" if o.get("quick_gelu") else "gelu"
        vision = o["vision_cfg"]
        heads = vision.get("width", 768) // vision.get("head_width", 64)
        text_heads = o["text_cfg"].get("heads", 8)
        return {"image": dict(act=act, heads=heads), "text": dict(act=act, heads=text_heads)}
    if "transformer_heads" in o or not o:                                           # OpenAI
        return {"text": {"heads": o["transformer_heads"]} if o else {}}
    end = o.get("text_config", o).get("eos_token_id", 49407)
    options = {}
    for part, section, heads in (("image", "vision_config", 12), ("text", "text_config", 8)):     # transformers
        c = o.get(section, o)
        options[part] = dict(
            act=c.get("hidden_act", "quick_gelu"), heads=c.get("num_attention_heads", heads), eps=c.get("layer_norm_eps", 1e-5),
        )
    options["text"]["end"] = None if end == 2 else end    # 2 stands for "the largest token" there
    return options


def _part(module: nn.Module) -> str | None:
    """Which tower a module is; None for CLIP itself."""
    if isinstance(module, CLIP):
        return None
    return "text" if isinstance(module, TextTower) else "image"


def _of(part: str | None, key: str) -> bool:
    """Whether an official key is of a tower, or of CLIP."""
    image = key.startswith(("visual", "vision_model."))
    return part is None or (key != "logit_scale" and image == (part == "image"))


def shapes(module: nn.Module, channels: int = 3) -> Params:
    """Shapes and types of the parameters of a `CLIP`, a `TextTower` or an image tower; computes nothing."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    tower = module.image if isinstance(module, CLIP) else module
    x = tokens if isinstance(module, TextTower) else jnp.zeros((1, tower.size, tower.size, channels))
    inputs = (x, tokens) if isinstance(module, CLIP) else (x,)
    return shapes_of(module.init, jax.random.key(0), *inputs)["params"]


def convert(state_dict: rules.Weights, module: nn.Module) -> Params:
    """An official state dict, in any of the layouts, as the parameters of a `CLIP` or of one tower; others are left out.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    part = _part(module)
    used = {key: value for key, value in state_dict.items() if not re.fullmatch(UNUSED, key) and _of(part, key)}
    target = shapes(module)
    params = rules.convert(merge(used), table(state_dict), target if part is None else {part: target})
    return params if part is None else params[part]


def revert(params: Params, shapes: Mapping[str, rules.Shape], module: nn.Module) -> dict[str, Array]:
    """Parameters (or gradients) of a module as an official state dict of the given shapes; what changes nothing is zero."""
    part = _part(module)
    used = {key: tuple(shape) for key, shape in shapes.items() if not re.fullmatch(UNUSED, key) and _of(part, key)}
    merged = merge({key: np.broadcast_to(np.float32(0), shape) for key, shape in used.items()})
    tree = params if part is None else {part: params}
    weights = rules.revert(tree, table(used), {key: value.shape for key, value in merged.items()})
    unused = {key: np.zeros(shapes[key], np.int64) for key in shapes if re.fullmatch(UNUSED, key)}
    return split(weights, used) | unused


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`."""
    return revert(params["model"], shapes, build(page["model"]))


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published weights file of both towers as (config, params).

    Args:
      path: the file, see `reader.read`; of a training checkpoint of OpenCLIP's, its 'state_dict'.
      official: see `towers`; None reads the config beside the file, if it is not OpenAI's own, which needs none.

    Returns:
      The sections model, task and, where the vocabulary is CLIP's own, data of a page, and the parameters {'model': ...}.

    Raises:
      ConfigError: see `read`, `towers` and `convert`.
    """
    state_dict = {key.removeprefix("module."): value for key, value in read(path, "state_dict").items()}
    from_openai = PUBLISHED in state_dict
    options = official or (None if from_openai else beside(path))
    specs = towers(state_dict, options)
    if len(specs) < 2:
        raise ConfigError(f"{path} holds the {'/'.join(specs) or 'no'} tower only: give a whole CLIP")
    statistics = {} if from_openai else pixels(path, options or {})
    model = _named(CLIP, **specs, **statistics)
    size = specs["image"]["size"]
    task = dict(name="diffusion_jax.tasks.clip:Contrastive", shape=(size, size, 3))
    decode: dict[str, Any] = dict(name="diffusion_jax.data.image:Decode", size=size)
    if specs["text"]["vocab"] == VOCAB:
        context = specs["text"]["context"]
        decode["tokenizer"] = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=context)
    return dict(model=model, task=task, data=dict(decode=decode)), {"model": convert(state_dict, build(model))}


def beside(path: str | Path) -> dict[str, Any] | None:
    """The config of transformers or OpenCLIP that lies beside a weights file, if any.

    Raises:
      ConfigError: it does not read.
    """
    parent = Path(path).parent
    name = next((name for name in CONFIGS if (parent / name).is_file()), None)
    return None if name is None else folder.options(parent, name)


def pixels(path: str | Path, official: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The options mean and std of `CLIP`, where OpenCLIP's config or transformers' file beside the weights says them.

    Raises:
      ConfigError: that file does not read.
    """
    parent = Path(path).parent
    options = official.get("preprocess_cfg", {})
    if not options and (parent / PREPROCESSOR).is_file():
        file = folder.options(parent, PREPROCESSOR)
        options = {key.removeprefix("image_"): value for key, value in file.items()}
    return {name: tuple(options[name]) for name in ("mean", "std") if name in options}
