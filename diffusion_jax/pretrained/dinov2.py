"""The published weights of DINOv2 as our DINOv2: ViT-L/14 for FD-DINOv2, and the sizes S, B and g, with and without registers.

A file is a flat state dict, dinov2_vitl14_pretrain.pth for example, which tells its size. Its positions lie on a grid of 37 x 37
patches; they are interpolated to 16 x 16 here as torch.hub's models do it: bicubic, not antialiased and spaced as if for 16.1
patches, but antialiased and evenly spaced where there are registers.
"""
from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.resize import DINOV2, antialiased, bicubic
from diffusion_jax.models.dinov2 import HEAD, DINOv2
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import PATCH, ROW, UNBATCHED, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Params

FILE = "dinov2_vitl14_pretrain.pth"
PUBLISHED = "dinov2_vit*_pretrain.pth"
URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/"
SLACK = 0.1
BLOCK = r"blocks\.(?:\d+\.)?(\d+)\."                      # a file of the training code counts chunks of blocks too
RULES = [
    Rule(r"cls_token", "cls", ROW),
    Rule(r"pos_embed", "pos", UNBATCHED),
    *layer(r"patch_embed\.proj", "stem", PATCH),
    *norm(rf"{BLOCK}norm([12])", r"block_\1/norm\2"),
    Rule(rf"{BLOCK}ls([12])\.gamma", r"block_\1/gain\2"),
    *layer(rf"{BLOCK}attn\.(qkv|proj)", r"block_\1/\2"),
    *layer(rf"{BLOCK}mlp\.(fc1|fc2|w12|w3)", r"block_\1/\2"),
    Rule(r"register_tokens", "registers", UNBATCHED),
    *norm("norm", "norm"),
]
UNUSED = "mask_token"
"""Stands for hidden patches while the network is trained."""


def model_of(state_dict: rules.Weights) -> DINOv2:
    """The network of an official state dict (of arrays or shapes), by its shapes.

    Raises:
      ConfigError: it is none of DINOv2, or of a width that is not published.
    """
    depths = [int(match[1]) for key in state_dict if (match := re.match(BLOCK, key))]
    if "cls_token" not in state_dict or "patch_embed.proj.weight" not in state_dict or not depths:
        raise ConfigError("these are no weights of DINOv2: there is no cls_token, patch_embed or block")
    width, _, patch, _ = state_dict["patch_embed.proj.weight"].shape
    if width % HEAD:
        raise ConfigError(f"a DINOv2 of width {width} is not published: its heads are not known")
    gates = [value.shape[1] for key, value in state_dict.items() if re.fullmatch(rf"{BLOCK}mlp\.w3\.weight", key)]
    registers = state_dict["register_tokens"].shape[1] if "register_tokens" in state_dict else 0
    return DINOv2(width, max(depths) + 1, width // HEAD, patch, gates[0] if gates else 0, registers)


def convert(state_dict: rules.Weights, model: DINOv2 | None = None, size: int = DINOV2) -> Params:
    """An official state dict as the parameters of `DINOv2` for images of `size` x `size`.

    Args:
      state_dict: official key -> array.
      model: the network; None for that of `model_of`.
      size: of the images.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    model = model or model_of(state_dict)
    weights = {key: value for key, value in state_dict.items() if key != UNUSED}
    side = size // model.patch
    if "pos_embed" in weights:
        weights["pos_embed"] = positions(np.asarray(weights["pos_embed"], np.float32), side, bool(model.registers))
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return rules.convert(weights, RULES, shapes_of(model.init, jax.random.key(0), x)["params"])


def positions(table: np.ndarray, side: int, registers: bool = False) -> np.ndarray:
    """The position table [1, 1 + n n, D] for side x side patches: [1, 1 + side side, D].

    Raises:
      ConfigError: a table of no square.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old**2 != table.shape[1] - 1:
        raise ConfigError(f"DINOv2's positions are those of a square, not of {table.shape[1] - 1} patches")
    if old == side:
        return table
    patches = jnp.asarray(table[:, 1:].reshape(1, old, old, -1))
    grid = antialiased(patches, side, side) if registers else bicubic(patches, side, side, slack=SLACK)
    return np.concatenate([table[:, :1], np.asarray(grid).reshape(1, side * side, -1)], axis=1)


def load(path: str | Path) -> Params:
    """The parameters of `DINOv2` from a published file, or from the folder that holds one.

    Raises:
      ConfigError: there is no such file, or more than one, it does not read, or the weights do not fit.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob(PUBLISHED))
        if len(files) > 1 and path / FILE not in files:
            raise ConfigError(f"{path} holds {', '.join(file.name for file in files)}: give one of them")
        path = files[0] if len(files) == 1 else path / FILE
    if not path.is_file():
        raise ConfigError(f"there are no DINOv2 weights {path}: get {URL}{FILE} and put it there")
    return convert(read(path))
