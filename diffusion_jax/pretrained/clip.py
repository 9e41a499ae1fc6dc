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
from diffusion_jax.pretrained.rules import CONV, PATCH, SAME, TRANSPOSE, Constant, Layout, Rule
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


def _layer(key: str, path: str, weight: Layout = TRANSPOSE, name: str = "kernel") -> list[Rule]:
    return [Rule(rf"{key}\.weight", f"{path}/{name}", weight), Rule(rf"{key}\.bias", f"{path}/bias")]


def _norm(key: str, path: str) -> list[Rule]:
    return _layer(key, path, SAME, "scale")


def _unit(conv: str, norm: str, path: str) -> list[Rule]:
    """The rules of a convolution and its batch norm."""
    statistics = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    names = [Rule(rf"{norm}\.{official}", f"{path}/norm/{ours}") for official, ours in statistics.items()]
    return [Rule(rf"{conv}\.weight", f"{path}/conv/kernel", CONV), *names]


def _openai_blocks(key: str, path: str) -> list[Rule]:
    key, path = rf"{key}transformer\.resblocks\.(\d+)", rf"{path}/transformer/blocks_\1"
    return [
        Rule(rf"{key}\.attn\.in_proj_weight", f"{path}/qkv/kernel", TRANSPOSE),
        Rule(rf"{key}\.attn\.in_proj_bias", f"{path}/qkv/bias"),
        *_layer(rf"{key}\.attn\.out_proj", f"{path}/proj"),
        *_norm(rf"{key}\.ln_1", f"{path}/norm1"), *_norm(rf"{key}\.ln_2", f"{path}/norm2"),
        *_layer(rf"{key}\.mlp\.c_fc", f"{path}/fc1"), *_layer(rf"{key}\.mlp\.c_proj", f"{path}/fc2"),
    ]


def _hf_blocks(key: str, path: str) -> list[Rule]:
    key, path = rf"{key}\.encoder\.layers\.(\d+)", rf"{path}/transformer/blocks_\1"
    return [
        *_layer(rf"{key}\.self_attn\.qkv_proj", f"{path}/qkv"), *_layer(rf"{key}\.self_attn\.out_proj", f"{path}/proj"),
        *_norm(rf"{key}\.layer_norm1", f"{path}/norm1"), *_norm(rf"{key}\.layer_norm2", f"{path}/norm2"),
        *_layer(rf"{key}\.mlp\.fc1", f"{path}/fc1"), *_layer(rf"{key}\.mlp\.fc2", f"{path}/fc2"),
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
    *_layer(r"visual\.attnpool\.qkv_proj", "image/pool_attn/qkv"), *_layer(r"visual\.attnpool\.c_proj", "image/pool_attn/proj"),
]
VIT = [
    Rule(r"visual\.conv1\.weight", "image/patches/kernel", PATCH),
    Rule(r"visual\.class_embedding", "image/cls"), Rule(r"visual\.positional_embedding", "image/position"),
    Rule(r"visual\.proj", "image/proj"),
    *_norm(r"visual\.ln_pre", "image/norm_pre"), *_norm(r"visual\.ln_post", "image/norm_post"),
    *_openai_blocks(r"visual\.", "image"),
]
TEXT = [
    Rule(r"token_embedding\.weight", "text/token"), Rule("positional_embedding", "text/position"),
    Rule("text_projection", "text/proj"), *_norm("ln_final", "text/norm"), *_openai_blocks("", "text"),
]
TRANSFORMERS = [
    Rule("logit_scale", "logit_scale"),
    Rule(r"vision_model\.embeddings\.class_embedding", "image/cls"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image/patches/kernel", PATCH),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image/position"),
    Rule(r"visual_projection\.weight", "image/proj", TRANSPOSE),
    *_norm(r"vision_model\.pre_layrnorm", "image/norm_pre"), *_norm(r"vision_model\.post_layernorm", "image/norm_post"),
    *_hf_blocks("vision_model", "image"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/token"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "text/position"),
    Rule(r"text_projection\.weight", "text/proj", TRANSPOSE),
    *_norm(r"text_model\.final_layer_norm", "text/norm"), *_hf_blocks("text_model", "text"),
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
        found = _SPLIT.fullmatch(key)
        names = [f"{found[1]}{part}{found[3]}" for part in "qkv"] if found else []
        if not found or any(name not in state_dict for name in names):
            merged[key] = value
        elif found[2] == "q":
            parts = [state_dict[name] for name in names]
            join = np.concatenate if all(isinstance(part, np.ndarray) for part in parts) else jnp.concatenate
            merged[f"{found[1]}qkv{found[3]}"] = join(parts)
    return merged


def split(state_dict: Mapping[str, Array], shapes: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """The inverse of `merge` for the keys of `shapes`."""
    parts = {}
    for key in shapes:
        found = _SPLIT.fullmatch(key)
        whole = state_dict[f"{found[1]}qkv{found[3]}"] if found else state_dict[key]
        parts[key] = jnp.split(whole, 3)["qkv".index(found[2])] if found else whole
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
    found = _from_transformers(state_dict) if is_transformers(state_dict) else _from_openai(state_dict)
    for part, options in _told(official or {}).items():
        if part in found:
            found[part] |= {key: value for key, value in options.items() if "ResNet" not in found[part]["name"]}
    return found


def _count(state_dict: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers stand in the group of `pattern` among the keys."""
    return len({match[1] for key in state_dict if (match := re.match(pattern, key))})


def _named(kind: type[nn.Module], **options: Any) -> dict[str, Any]:
    return {"name": f"{kind.__module__}:{kind.__name__}", **options}


def _from_openai(w: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sizes by OpenAI's keys."""
    found = {}
    if "ln_final.weight" in w:
        width = w["ln_final.weight"].shape[0]
        found["text"] = _named(
            TextTower, features=w["text_projection"].shape[1], vocab=w["token_embedding.weight"].shape[0],
            context=w["positional_embedding"].shape[0], width=width, heads=max(width // 64, 1),
            layers=_count(w, r"transformer\.resblocks\.(\d+)"),
        )
    if "visual.class_embedding" in w:
        found["image"] = _vit(w, "visual.conv1.weight", "visual.positional_embedding", r"visual\.transformer\.resblocks\.(\d+)",
                              "visual.transformer.resblocks.0.mlp.c_fc.weight", w["visual.proj"].shape[1])
    elif "visual.layer1.0.conv1.weight" in w:
        pixels = w["visual.attnpool.positional_embedding"].shape[0] - 1
        found["image"] = _named(
            ResNet, features=w["visual.attnpool.c_proj.weight"].shape[0], size=32 * math.isqrt(pixels),
            width=w["visual.layer1.0.conv1.weight"].shape[0],
            layers=tuple(_count(w, rf"visual\.layer{i}\.(\d+)") for i in (1, 2, 3, 4)),
        )
    return found


def _vit(w: Mapping[str, Any], patches: str, position: str, blocks: str, fc1: str, features: int | None) -> dict[str, Any]:
    width, patch = w[patches].shape[0], w[patches].shape[-1]
    return _named(
        ViT, features=features, size=patch * math.isqrt(w[position].shape[0] - 1), patch=patch, width=width,
        layers=_count(w, blocks), heads=WIDE.get(width, max(width // 64, 1)), hidden=w[fc1].shape[0],
    )


def _from_transformers(w: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sizes by transformers' keys."""
    found, place = {}, "text_model.embeddings.{}_embedding.weight"
    if place.format("token") in w:
        vocab, width = w[place.format("token")].shape
        proj = w.get("text_projection.weight")
        found["text"] = _named(
            TextTower, features=None if proj is None else proj.shape[0], vocab=vocab, width=width, heads=max(width // 64, 1),
            context=w[place.format("position")].shape[0], layers=_count(w, r"text_model\.encoder\.layers\.(\d+)"),
            hidden=w["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        )
    if "vision_model.embeddings.class_embedding" in w:
        proj, place = w.get("visual_projection.weight"), "vision_model.embeddings.{}_embedding.weight"
        found["image"] = _vit(w, place.format("patch"), place.format("position"), r"vision_model\.encoder\.layers\.(\d+)",
                              "vision_model.encoder.layers.0.mlp.fc1.weight", None if proj is None else proj.shape[0])
    return found


def _told(official: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of both towers that shapes do not tell."""
    o = official.get("model_cfg", official)
    if "vision_cfg" in o:                                                          # OpenCLIP
        act, vision, text = "quick_gelu" if o.get("quick_gelu") else "gelu", o["vision_cfg"], o["text_cfg"]
        heads = vision.get("width", 768) // vision.get("head_width", 64)
        return {"image": dict(act=act, heads=heads), "text": dict(act=act, heads=text.get("heads", 8))}
    if "transformer_heads" in o or not o:                                           # OpenAI
        return {"text": {"heads": o["transformer_heads"]} if o else {}}
    end = o.get("text_config", o).get("eos_token_id", 49407)
    found = {}
    for part, section, heads in (("image", "vision_config", 12), ("text", "text_config", 8)):     # transformers
        c = o.get(section, o)
        found[part] = dict(
            act=c.get("hidden_act", "quick_gelu"), heads=c.get("num_attention_heads", heads), eps=c.get("layer_norm_eps", 1e-5),
        )
    found["text"]["end"] = None if end == 2 else end                               # 2 stands for "the largest token" there
    return found


def _part(module: nn.Module) -> str | None:
    """Which tower a module is; None for CLIP itself."""
    return None if isinstance(module, CLIP) else "text" if isinstance(module, TextTower) else "image"


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
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


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
    found = rules.revert(tree, table(used), {key: value.shape for key, value in merged.items()})
    unused = {key: np.zeros(shapes[key], np.int64) for key in shapes if re.fullmatch(UNUSED, key)}
    return split(found, used) | unused


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
    own = PUBLISHED in state_dict
    told = official or (None if own else beside(path))
    found = towers(state_dict, told)
    if len(found) < 2:
        raise ConfigError(f"{path} holds the {'/'.join(found) or 'no'} tower only: this mode takes a whole CLIP")
    model = _named(CLIP, **found, **({} if own else pixels(path, told or {})))
    size = found["image"]["size"]
    task = dict(name="diffusion_jax.tasks.clip:Contrastive", shape=(size, size, 3))
    decode: dict[str, Any] = dict(name="diffusion_jax.data.image:Decode", size=size)
    if found["text"]["vocab"] == VOCAB:
        decode["tokenizer"] = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=found["text"]["context"])
    return dict(model=model, task=task, data=dict(decode=decode)), {"model": convert(state_dict, build(model))}


def beside(path: str | Path) -> dict[str, Any] | None:
    """The config of transformers or OpenCLIP that lies beside a weights file, if any.

    Raises:
      ConfigError: it does not read.
    """
    place = Path(path).parent
    found = next((name for name in CONFIGS if (place / name).is_file()), None)
    return None if found is None else folder.options(place, found)


def pixels(path: str | Path, told: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The options mean and std of `CLIP`, where OpenCLIP's config or transformers' file beside the weights says them.

    Raises:
      ConfigError: that file does not read.
    """
    place, said = Path(path).parent, told.get("preprocess_cfg", {})
    if not said and (place / PREPROCESSOR).is_file():
        said = {key.removeprefix("image_"): value for key, value in folder.options(place, PREPROCESSOR).items()}
    return {name: tuple(said[name]) for name in ("mean", "std") if name in said}
