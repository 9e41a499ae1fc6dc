"""The transformers of Stable Diffusion 3 and 3.5 as our MMDiT.

Two layouts hold the same weights, the original one and that of diffusers, which has other names and two other orders:

    joint_blocks.3.x_block.attn.qkv.weight        transformer_blocks.3.attn.to_q.weight, to_k, to_v: its rows in three
    final_layer.adaLN_modulation.1, and that of the last context_block: shift before scale      norm_out, norm1_context: after it

The second is turned into the first (`original`), then one table serves both. Our blocks stand in runs of equal ones, which a
table cannot count: `grouped` names them dual.0 ..., joint.0 ... and last before.

Files hold the table of positions too, hundreds of megabytes of sines. It is read for where it begins and how far its rows are
apart, compared, and made again on the way back.
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, short
from diffusion_jax.models.dit import unstack_layers
from diffusion_jax.models.mmdit import MMDiT, waves
from diffusion_jax.pretrained import folder, names, rules, stacking
from diffusion_jax.pretrained.package import Spec
from diffusion_jax.pretrained.rules import PATCH, Rule, Shape, layer
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.pretrained.t5 import joined
from diffusion_jax.types import Array, Params

POSITIONS, HF_POSITIONS = "pos_embed", "pos_embed.pos_embed"
HEAD = 64
"""Channels of a head, where nothing tells them: of every published size."""
BASE = 64
"""Patches of 1024 pixels, over which published tables spread the positions of as many patches."""
ATOL = 2e-3
"""Of the table of positions, which may have been through float16 or bfloat16; a step of bfloat16 below 1 is twice that."""
BF16_ATOL = 8e-3

_PLAIN = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_BLOCK: dict[str, tuple[str, ...]] = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
"""Layer of a block in the original -> in diffusers; three share the rows of one."""
_PLAIN_BACK = {theirs: ours for ours, theirs in _PLAIN.items()}
_BLOCK_BACK = {name: (ours, place) for ours, theirs in _BLOCK.items() for place, name in enumerate(theirs)}
_ENDS = {"context_block.adaLN_modulation.1", "norm1_context.linear"}
_FINAL = {"final_layer.adaLN_modulation.1", "norm_out.linear"}


def _table() -> list[Rule]:
    table: list[Rule] = []
    for key, path in ((r"(dual|joint)\.(\d+)", r"\1/blocks_\2"), ("last", "last")):
        for side, ours in (("x_block", "x"), ("context_block", "c")):
            table += layer(rf"{key}\.{side}\.adaLN_modulation\.1", f"{path}/{ours}_modulation/linear")
            for theirs, number in (("attn", ""), ("attn2", "2")):
                table += layer(rf"{key}\.{side}\.{theirs}\.qkv", f"{path}/{ours}_attn{number}/qkv")
                table += layer(rf"{key}\.{side}\.{theirs}\.proj", f"{path}/{ours}_proj{number}")
                for norm in "qk":
                    ours_norm = f"{path}/{ours}_attn{number}/norm_{norm}/scale"
                    table.append(Rule(rf"{key}\.{side}\.{theirs}\.ln_{norm}\.weight", ours_norm))
            for number in (1, 2):
                table += layer(rf"{key}\.{side}\.mlp\.fc{number}", f"{path}/{ours}_mlp/fc{number}")
    return [
        *table,
        *layer(r"x_embedder\.proj", "patch", PATCH),
        *layer(r"t_embedder\.mlp\.0", "time/fc1"), *layer(r"t_embedder\.mlp\.2", "time/fc2"),
        *layer(r"y_embedder\.mlp\.0", "pooled/fc1"), *layer(r"y_embedder\.mlp\.2", "pooled/fc2"),
        *layer("context_embedder", "context"),
        *layer(r"final_layer\.adaLN_modulation\.1", "final/modulation/linear"),
        *layer(r"final_layer\.linear", "final/linear"),
    ]


RULES = _table()
"""`grouped` keys to our parameters with unrolled blocks."""


# Names ----------------------------------------------------------------------------------------------------------------------


def is_diffusers(keys: Mapping[str, Any]) -> bool:
    """Whether keys are those of diffusers."""
    return any(key.startswith("transformer_blocks.") for key in keys)


def original(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of diffusers in the original layout; a key that nobody knows stays as it is."""
    found: dict[str, Any] = {}
    for key, value in state_dict.items():
        stem, _, end = key.rpartition(".")
        block = re.fullmatch(r"(transformer_blocks\.(\d+))\.(.+)", stem)
        if key == HF_POSITIONS:
            found[POSITIONS] = value
        elif stem in _PLAIN_BACK:
            found[f"{_PLAIN_BACK[stem]}.{end}"] = swapped(value) if stem in _FINAL else value
        elif block is None or block[3] not in _BLOCK_BACK:
            found[key] = value
        else:
            name, place = _BLOCK_BACK[block[3]]
            parts = _BLOCK[name]
            if place == 0:                                             # the others come with it
                value = value if len(parts) == 1 else joined([state_dict[f"{block[1]}.{part}.{end}"] for part in parts])
                ends = name in _ENDS and f"{block[1]}.attn.to_add_out.weight" not in state_dict
                found[f"joint_blocks.{block[2]}.{name}.{end}"] = swapped(value) if ends else value
    return found


def diffusers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `original`."""
    found: dict[str, Any] = {}
    for key, value in state_dict.items():
        stem, _, end = key.rpartition(".")
        block = re.fullmatch(r"(joint_blocks\.(\d+))\.(.+)", stem)
        if key == POSITIONS:
            found[HF_POSITIONS] = value
        elif block is None:
            found[f"{_PLAIN[stem]}.{end}"] = swapped(value) if stem in _FINAL else value
        else:
            parts = _BLOCK[block[3]]
            rows = value.shape[0] // len(parts)
            ends = block[3] in _ENDS and f"{block[1]}.context_block.attn.proj.weight" not in state_dict
            whole = swapped(value) if ends else value
            for place, part in enumerate(parts):
                found[f"transformer_blocks.{block[2]}.{part}.{end}"] = whole[place * rows : (place + 1) * rows]
    return found


def swapped(value: Any) -> Any:
    """The second half of the rows before the first."""
    half = value.shape[0] // 2
    return joined([value[half:], value[:half]])


def grouped(keys: Mapping[str, Any]) -> dict[str, str]:
    """Key of `RULES` -> original key: blocks counted within their runs.

    Raises:
      ConfigError: dual blocks stand behind others.
    """
    kinds: dict[int, str] = {}
    for key in keys:
        if match := re.match(r"joint_blocks\.(\d+)\.", key):
            block = f"joint_blocks.{match[1]}"
            dual = f"{block}.x_block.attn2.proj.weight" in keys
            whole = f"{block}.context_block.attn.proj.weight" in keys
            kinds[int(match[1])] = ("dual" if dual else "joint") if whole else "last"
    order = [kinds[i] for i in sorted(kinds)]
    if order != sorted(order):                                         # dual, joint, last
        raise ConfigError("no MMDiT here has blocks in this order: first those with a second attention, last one without text")
    before = {"dual": 0, "joint": order.count("dual"), "last": 0}

    def name(key: str) -> str:
        match = re.match(r"joint_blocks\.(\d+)\.", key)
        if match is None:
            return key
        kind = kinds[int(match[1])]
        place = "last" if kind == "last" else f"{kind}.{int(match[1]) - before[kind]}"
        return f"{place}.{key[match.end():]}"

    return {name(key): key for key in keys}


# Options --------------------------------------------------------------------------------------------------------------------


PLAIN: dict[str, Any] = {}
READ = (
    "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
    "caption_projection_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size", "dual_attention_layers", "qk_norm",
)


def diffusers_config(options: Mapping[str, Any]) -> Spec:
    """What to `build` the network of a transformer/config.json of diffusers from.

    Raises:
      ConfigError: an option that has no counterpart here.
    """
    folder.checked(options, PLAIN, READ, "the transformer's config.json")
    o = {"dual_attention_layers": (), "qk_norm": None, "out_channels": None, **options}
    width = o["num_attention_heads"] * o["attention_head_dim"]
    dual = list(o["dual_attention_layers"] or ())
    norms = {None: "", "rms_norm": "rms"}
    problems = {
        f"other out_channels than in_channels, {o['out_channels']}": o["out_channels"] not in (None, o["in_channels"]),
        f"a caption_projection_dim other than its width {width}": o.get("caption_projection_dim", width) != width,
        f"a second attention in the blocks {short(dual)}, only in the first ones": dual != list(range(len(dual))),
        f"the qk_norm {short(o['qk_norm'])}, only null or 'rms_norm'": o["qk_norm"] not in norms,
        "no pos_embed_max_size": not o.get("pos_embed_max_size"),
    }
    for clause, holds in problems.items():
        if holds:
            raise ConfigError(f"no MMDiT here has {clause}: the transformer's config.json is of another network")
    return dict(
        name="diffusion_jax.models.mmdit:MMDiT", patch=o["patch_size"], width=width, depth=o["num_layers"],
        heads=o["num_attention_heads"], channels=o["in_channels"], qk_norm=norms[o["qk_norm"]], dual=len(dual),
        grid=o["pos_embed_max_size"], step=(o["sample_size"] // o["patch_size"]) / o["pos_embed_max_size"],
    )


def published(state_dict: Mapping[str, Any]) -> Spec:
    """What to `build` the network of a state dict (of arrays or shapes) in the original layout from.

    Raises:
      ConfigError: it is none.
    """
    try:
        width, channels, patch, _ = state_dict["x_embedder.proj.weight"].shape
        hidden = state_dict["joint_blocks.0.x_block.mlp.fc1.weight"].shape[0]
        grid = math.isqrt(state_dict[POSITIONS].shape[1])
    except KeyError as error:
        raise ConfigError(f"this is no state dict of Stable Diffusion 3's transformer: there is no {error.args[0]}") from None
    norm = state_dict.get("joint_blocks.0.x_block.attn.ln_q.weight")
    keys = grouped(state_dict)
    runs = {name: len({match[1] for key in keys if (match := re.match(rf"{name}\.(\d+)\.", key))}) for name in ("dual", "joint")}
    return dict(
        name="diffusion_jax.models.mmdit:MMDiT", patch=patch, width=width, depth=sum(runs.values()) + 1,
        heads=width // (HEAD if norm is None else norm.shape[0]), mlp_ratio=hidden / width, channels=channels,
        qk_norm="" if norm is None else "rms", dual=runs["dual"], grid=grid, step=BASE / grid,
    )


def official_config(model: MMDiT, params: Params, side: int) -> Spec:
    """The options of diffusers' SD3Transformer2DModel, for a network, its parameters and the side of its latents."""
    return dict(
        _class_name="SD3Transformer2DModel", sample_size=side, patch_size=model.patch, in_channels=model.channels,
        num_layers=model.depth, attention_head_dim=model.width // model.heads, num_attention_heads=model.heads,
        joint_attention_dim=params["context"]["kernel"].shape[0], caption_projection_dim=model.width,
        pooled_projection_dim=params["pooled"]["fc1"]["kernel"].shape[0], out_channels=model.channels,
        pos_embed_max_size=model.grid, dual_attention_layers=list(range(model.dual)),
        qk_norm="rms_norm" if model.qk_norm else None,
    )


# Positions ------------------------------------------------------------------------------------------------------------------


def placed(table: Array | np.ndarray, step: float) -> tuple[float, float]:
    """Where a stored table [1, grid^2, D] begins, and how far its rows are apart: (origin, step) of models/mmdit.py, (10).

    Args:
      table: in any floating point type.
      step: what it is said to be.

    Raises:
      ConfigError: no positions give this table.
    """
    grid = math.isqrt(table.shape[1])
    square = np.asarray(table).reshape(grid, grid, -1)
    edge = np.asarray(square[0], np.float64)[:, : square.shape[-1] // 2]             # of one row, the columns: [grid, D / 2]
    atol = BF16_ATOL if str(table.dtype) == "bfloat16" else ATOL
    for first, apart in ((0.0, step), _fitted(edge)):
        if np.abs(edge - waves(first + apart * np.arange(grid), edge.shape[1])).max() < atol and _is_square(square, edge, atol):
            return first, apart
    raise ConfigError(f"{POSITIONS} is no table of sines and cosines of equal steps: this network is not Stable Diffusion 3's")


def _is_square(square: np.ndarray, edge: np.ndarray, atol: float) -> bool:
    """Whether a table [grid, grid, D] holds in each row and each column what its first row does, a row at a time."""
    half = edge.shape[1]
    return all(
        np.abs(np.asarray(row[:, :half], np.float64) - edge).max() < atol
        and np.abs(np.asarray(row[:, half:], np.float64) - edge[i]).max() < atol
        for i, row in enumerate(square)
    )


def _fitted(edge: np.ndarray) -> tuple[float, float]:
    """(first, step) of positions by their waves [grid, D / 2], rough ones by slow waves first, exact ones by the fastest."""
    quarter = edge.shape[1] // 2
    angles = np.unwrap(np.arctan2(edge[:, 0], edge[:, quarter]))                     # frequency 1
    step = float(angles[-1] - angles[0]) / max(len(angles) - 1, 1)
    first = 0.0
    for i in reversed(range(quarter)):
        frequency = 1e4 ** (-i / quarter)
        angle = math.atan2(edge[0, i], edge[0, quarter + i])
        turns = round((first * frequency - angle) / (2 * math.pi))
        first = (angle + 2 * math.pi * turns) / frequency
    return first, step


def position_table(model: MMDiT) -> np.ndarray:
    """The stored table of a network, [1, grid^2, D] float32."""
    one = waves(model.origin + model.step * np.arange(model.grid), model.width // 2).astype(np.float32)
    table = np.empty((model.grid, model.grid, model.width), np.float32)
    table[..., : model.width // 2] = one[None]
    table[..., model.width // 2 :] = one[:, None]
    return table.reshape(1, -1, model.width)


# Weights --------------------------------------------------------------------------------------------------------------------


def shapes(model: MMDiT, text: int, pooled: int) -> Params:
    """Shapes and types of the parameters with unrolled blocks, for texts of these widths; computes nothing."""
    scanned = model.clone(scan=True)                                   # a single block is then traced
    side = model.patch
    cond = {"seq": jnp.zeros((1, 1, text)), "vec": jnp.zeros((1, pooled))}
    made = shapes_of(scanned.init, jax.random.key(0), jnp.zeros((1, side, side, model.channels)), jnp.zeros(1), cond)["params"]
    return stacking.unstacked_shapes(made)


def convert(state_dict: rules.Weights, model: MMDiT) -> Params:
    """An official state dict, of either layout, as the parameters of the network, stacked where it scans its blocks.

    The table of positions is compared with those of `model`, or passed over where it has a shape alone.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    weights = original(state_dict) if is_diffusers(state_dict) else dict(state_dict)
    table = weights.pop(POSITIONS)
    if table.shape != (1, model.grid**2, model.width):
        raise ConfigError(f"{POSITIONS} {tuple(table.shape)} is not of {model.grid}x{model.grid} patches and width {model.width}")
    if not isinstance(table, jax.core.Tracer):
        where = placed(table, model.step)
        if not np.allclose(where, (model.origin, model.step)):
            raise ConfigError(f"{POSITIONS} lies at {where}, not at {(model.origin, model.step)}: set origin and step to these")
    target = shapes(model, weights["context_embedder.weight"].shape[1], weights["y_embedder.mlp.0.weight"].shape[1])

    places = grouped(weights)
    strange = [key for name, key in places.items() if rules.find(name, RULES)[0] is None]
    if strange:                                                        # under its own name, not under that of its place
        raise ConfigError(f"the weights do not fit the model: left over: {strange[0]}")
    make = stacking.convert if model.scan else rules.convert
    return make({name: weights[key] for name, key in places.items()}, RULES, target)


def revert(params: Params, shapes: Mapping[str, Shape], model: MMDiT) -> dict[str, Array]:
    """Parameters (or gradients), with scanned or unrolled blocks, as an official state dict of the given shapes."""
    if is_diffusers(shapes):
        sizes = original({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
        return diffusers(revert(params, {key: value.shape for key, value in sizes.items()}, model))
    wanted = {key: shape for key, shape in shapes.items() if key != POSITIONS}
    found = rules.revert_renamed(unstack_layers(params), RULES, wanted, grouped(wanted))
    return found | ({POSITIONS: position_table(model)} if POSITIONS in shapes else {})


def official_weights(params: Params, model: MMDiT) -> dict[str, Array]:
    """A network's parameters in the original layout, with its table of positions."""
    patches = {"x_embedder.proj.weight": (model.width, model.channels, model.patch, model.patch)}
    sizes = names.shapes(unstack_layers(params), RULES, special=patches)
    plain = {_ungrouped(key, model): shape for key, shape in sizes.items()}
    return revert(params, plain | {POSITIONS: (1, model.grid**2, model.width)}, model)


def _ungrouped(key: str, model: MMDiT) -> str:
    """The original key of a key of `RULES`."""
    match = re.match(r"(?:(dual|joint)\.(\d+)|last)\.", key)
    if match is None:
        return key
    number = model.depth - 1 if match[1] is None else int(match[2]) + (model.dual if match[1] == "joint" else 0)
    return f"joint_blocks.{number}.{key[match.end():]}"
