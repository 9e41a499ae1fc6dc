"""Published autoregressive transformers as our DALLE: ru-DALL-E (Malevich and its kin) and minDALL-E's.

ru-DALL-E keeps its attention masks in the state dict: they are compared with ours. minDALL-E has three linear layers for query,
key and value, which are joined here.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.nn.sparse_attention import Pattern, mask
from diffusion_jax.pretrained import names, rules
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, only
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import TRANSPOSE, Constant, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.train import checkpoint
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Array, Params

LAYER = r"transformer\.layers\.(\d+)\."
NORMS = {"input_layernorm": "norm1", "post_attention_layernorm": "norm2", "before_first_addition_layernorm": "norm3",
         "before_second_addition_layernorm": "norm4"}
LINEARS = {r"attention\.query_key_value": "qkv", r"attention\.dense": "proj", r"mlp\.dense_h_to_4h": "fc1",
           r"mlp\.dense_4h_to_h": "fc2"}
TABLES = {"text_embeddings": "text", "image_embeddings": "image", "text_pos_embeddings": "text_position",
          "image_row_embeddings": "row", "image_col_embeddings": "column"}


RUDALLE = [
    *(Rule(rf"{key}\.weight", f"{path}/embedding") for key, path in TABLES.items()),
    *(rule for key, path in NORMS.items() for rule in norm(LAYER + key, rf"blocks_\1/{path}")),
    *(rule for key, path in LINEARS.items() for rule in layer(LAYER + key, rf"blocks_\1/{path}")),
    *norm(r"transformer\.final_layernorm", "norm"),
    *norm(r"to_logits\.0", "head_norm"),
    *layer(r"to_logits\.1", "head"),
]
"""ru-DALL-E's keys, but for its masks, to our parameters."""

MINDALLE = [
    Rule(r"tok_emb_txt\.weight", "text/embedding"), Rule(r"tok_emb_img\.weight", "image/embedding"),
    Rule(r"pos_emb_txt\.weight", "text_position/embedding"), Rule(r"pos_emb_img\.weight", "image_position/embedding"),
    *norm(r"blocks\.(\d+)\.ln([12])", r"blocks_\1/norm\2"),
    *norm("ln_f", "norm"),
    *layer(r"blocks\.(\d+)\.attn\.(qkv|proj)", r"blocks_\1/\2"),
    *layer(r"blocks\.(\d+)\.mlp\.0", r"blocks_\1/fc1"),
    *layer(r"blocks\.(\d+)\.mlp\.2", r"blocks_\1/fc2"),
    Rule(r"head_img\.weight", "head_image/kernel", TRANSPOSE), Rule(r"head_txt\.weight", "head_text/kernel", TRANSPOSE),
]
"""minDALL-E's keys, once `joined`, to our parameters."""

PARTS = ("query", "key", "value")


def masks(model: DALLE) -> list[Constant]:
    """ru-DALL-E's buffers."""
    def constant(key: str, kind: str) -> Constant:
        pattern = Pattern(kind, model.text_length, model.grid, model.kernel, model.wrap)
        return Constant(rf"transformer\.{key}_mask", lambda shape: mask(pattern).astype(np.float32))

    return [constant("row", "row"), constant("col", "column"), constant("conv", "conv")]


def joined(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """minDALL-E's state dict with query, key and value of every layer in one, as q, k, v."""
    whole: dict[str, Any] = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)(query|key|value)(\.\w+)", key)
        if match is None:
            whole[key] = value
        elif match[2] == "query":
            parts = [state_dict.get(f"{match[1]}{part}{match[3]}") for part in PARTS]
            if any(part is None for part in parts):
                raise ConfigError(f"the weights do not fit the model: {key} has no key or no value beside it")
            whole[f"{match[1]}qkv{match[3]}"] = jnp.concatenate([jnp.asarray(part) for part in parts])
    return whole


def options(state_dict: Mapping[str, Any], official: Mapping[str, Any] = FrozenDict()) -> dict[str, Any]:
    """The keyword arguments of `DALLE`, read off names and shapes.

    Args:
      state_dict: of either system.
      official: what shapes do not tell: num_attention_heads (16) and hf_version ('v3') of ru-DALL-E; n_heads (16) and
        gelu_use_approx (False) of minDALL-E's hparams.

    Raises:
      ConfigError: this is neither.
    """
    shape = {key: value.shape for key, value in state_dict.items()}
    depth = len({match[1] for key in shape if (match := re.match(r"(?:transformer\.layers|blocks)\.(\d+)\.", key))})
    if "text_embeddings.weight" in shape:
        version = official.get("hf_version", "v3")
        if version not in ("v2", "v3"):
            raise ConfigError(f"hf_version {version!r} is not known: v2 or v3")
        text_codes, width = shape["text_embeddings.weight"]
        text_length = shape["text_pos_embeddings.weight"][0] - 1
        old = version == "v2"
        return dict(
            text_codes=text_codes, image_codes=shape["image_embeddings.weight"][0], text_length=text_length,
            grid=shape["image_row_embeddings.weight"][0], width=width, depth=depth, layout="rudalle",
            heads=official.get("num_attention_heads", 16), wrap=old, start=2 if old else None, mask_text=text_length,
            sandwich="transformer.layers.0.before_first_addition_layernorm.weight" in shape,
        )
    if "tok_emb_txt.weight" not in shape:
        raise ConfigError("this is no state dict of ru-DALL-E or minDALL-E: there is no text_embeddings or tok_emb_txt")
    text_codes, width = shape["tok_emb_txt.weight"]
    tokens = shape["pos_emb_img.weight"][0]
    return dict(
        text_codes=text_codes, image_codes=shape["tok_emb_img.weight"][0], text_length=shape["pos_emb_txt.weight"][0],
        grid=int(tokens**0.5), width=width, depth=depth, layout="dense", heads=official.get("n_heads", 16), pad=False,
        axial=False, joint=False, act="quick_gelu" if official.get("gelu_use_approx") else "gelu",
        attn_bias="blocks.0.attn.query.bias" in shape, mlp_bias="blocks.0.mlp.0.bias" in shape,
    )


def shapes(model: DALLE) -> Params:
    """Shapes and types of the network's parameters; computes nothing."""
    text = jnp.zeros((1, model.text_length), jnp.int32)
    image = jnp.zeros((1, model.grid**2), jnp.int32)
    return shapes_of(lambda: model.init(jax.random.key(0), text, image))["params"]


def convert(state_dict: rules.Weights, model: DALLE) -> Params:
    """A state dict of either system as the network's parameters.

    Raises:
      ConfigError: the weights do not fit; the line says where.

    Example:
      params = convert(state_dict, DALLE(**options(state_dict)))
    """
    if model.joint:
        return rules.convert(state_dict, [*RUDALLE, *masks(model)], shapes(model))
    return rules.convert(joined(state_dict), MINDALLE, shapes(model))


def revert(params: Params, model: DALLE, wanted: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters, or their gradients, as a state dict of ru-DALL-E or minDALL-E with the given shapes."""
    if model.joint:
        return rules.revert(params, [*RUDALLE, *masks(model)], wanted)
    whole: dict[str, rules.Shape] = {}
    for key, shape in wanted.items():
        if ".attn.query." in key:
            whole[key.replace(".query.", ".qkv.")] = (3 * shape[0], *shape[1:])
        elif not re.search(r"attn\.(key|value)\.", key):
            whole[key] = tuple(shape)
    official: dict[str, Array] = {}
    for key, value in rules.revert(params, MINDALLE, whole).items():
        if ".attn.qkv." not in key:
            official[key] = value
            continue
        for name, part in zip(PARTS, jnp.split(value, 3), strict=True):
            official[key.replace(".qkv.", f".{name}.")] = part
    return official


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`."""
    return revert(params["model"], build(page["model"]), shapes)


CODE = """import json
from safetensors.torch import load_file
from rudalle.dalle.model import DalleModel               # github.com/ai-forever/ru-dalle
options = json.load(open("FOLDER/config.json"))
model = DalleModel("cpu", **{key: value for key, value in options.items() if key != "hf_version"})
model.load_state_dict(load_file("FOLDER/model.safetensors"))"""
DENSE_CODE = """import json
from safetensors.torch import load_file
from dalle.models.stage2.transformer import Transformer1d                              # github.com/kakaobrain/minDALL-E
weights, options = load_file("FOLDER/model.safetensors"), json.load(open("FOLDER/config.json"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: its state dict, and what its shapes do not tell.

    Raises:
      ConfigError: neither official network has such an option; the line names it.
    """
    model = build(page["model"])
    if model.joint:
        return _write_rudalle(params["model"], model)
    title = "minDALL-E"
    only(title, model, layout="dense", pad=False, axial=False, start=None, mask_text=None, sandwich=False)
    if model.act not in ("gelu", "quick_gelu"):
        raise ConfigError(f"{title} has no act {model.act!r}, only 'gelu' and 'quick_gelu': this run cannot be written for it")
    whole = names.shapes(params["model"], MINDALLE)
    keys: dict[str, rules.Shape] = {}
    for key, shape in whole.items():
        parts = PARTS if ".attn.qkv." in key else ("qkv",)
        keys |= {key.replace(".qkv.", f".{part}."): (shape[0] // len(parts), *shape[1:]) for part in parts}
    options = dict(n_heads=model.heads, gelu_use_approx=model.act == "quick_gelu")
    return Package({WEIGHTS: revert(params["model"], model, keys), CONFIG: options}, title, DENSE_CODE)


def _write_rudalle(params: Params, model: DALLE) -> Package:
    """`write` for ru-DALL-E."""
    title = "ru-DALL-E"
    version = "v2" if model.wrap else "v3"
    only(title, model, layout="rudalle", pad=True, axial=True, act="gelu_tanh", attn_bias=True, mlp_bias=True, kernel=11,
         start=2 if model.wrap else None, mask_text=model.text_length)
    length = model.text_length + model.grid**2
    buffers = {f"transformer.{kind}_mask": (length, length) for kind in ("row", "col", "conv")}
    keys = names.shapes(params, RUDALLE, special=buffers)
    options = dict(
        num_layers=model.depth, vocab_size=model.text_codes, hidden_size=model.width, cogview_sandwich_layernorm=model.sandwich,
        num_attention_heads=model.heads, text_seq_length=model.text_length, image_tokens_per_dim=model.grid,
        image_vocab_size=model.image_codes, hf_version=version, embedding_dropout_prob=model.dropout,
        attention_dropout_prob=model.dropout, output_dropout_prob=model.dropout,
    )
    return Package({WEIGHTS: revert(params, model, keys), CONFIG: options}, title, CODE)


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published weights file as (config, params): the sections model and task of a page, and the parameters.

    Args:
      path: the file, see `reader.read`.
      official: see `options`; and what the file lacks: first_stage, the folder of a run whose codes the transformer was trained
        on (an imported discrete VAE or VQ), and tokenizer, what to build the reader of prompts from. With the first, images can
        be drawn and completed; with both, of prompts.

    Raises:
      ConfigError: see `read`, `options`, `convert` and `checkpoint.load`; a tokenizer without a first stage.
    """
    official = official or {}
    state_dict = read(path, key="state_dict")
    network = options(state_dict, official)
    as_text = "mask_text" in network and network["start"] is None
    task = dict(name="diffusion_jax.tasks.autoregressive:Autoregressive", first_as_text=as_text)
    model = DALLE(**network)
    page = dict(model=dict(name="diffusion_jax.models.dalle:DALLE", **network), task=task)
    params = {"model": convert(state_dict, model)}
    if "first_stage" in official:
        config, first, params["first_stage"] = checkpoint.load(official["first_stage"])
        config = plain(config)
        task["first_stage"] = config["task"] | ({"model": config["model"]} if "model" in config else {})
        task_of(page)                                                               # its codes are the transformer's
        if "tokenizer" in official:
            decode = dict(name="diffusion_jax.data.image:Decode", size=first.shape[0], channels=first.shape[-1])
            page["data"] = dict(decode={**decode, "tokenizer": official["tokenizer"]})
    elif "tokenizer" in official:
        raise ConfigError("a tokenizer without a first stage draws nothing: give first_stage too")
    return page, params
