"""The published weights of DINOv2 ViT-L/14 as our DINOv2, for FD-DINOv2.

The file is dinov2_vitl14_pretrain.pth, a flat state dict. Its positions lie on a grid of 37 x 37 patches; they are interpolated
to 16 x 16 here as torch.hub's model does it: bicubic, not antialiased, spaced as if for 16.1 patches.
"""
from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.resize import DINOV2, bicubic
from diffusion_jax.models.dinov2 import DINOv2
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import PATCH, ROW, UNBATCHED, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Params

FILE = "dinov2_vitl14_pretrain.pth"
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
    *layer(rf"{BLOCK}mlp\.(fc1|fc2)", r"block_\1/\2"),
    *norm("norm", "norm"),
]
UNUSED = "mask_token"
"""Stands for hidden patches while the network is trained."""


def convert(state_dict: rules.Weights, model: DINOv2 | None = None, size: int = DINOV2) -> Params:
    """An official state dict as the parameters of `DINOv2` for images of `size` x `size`.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    model = model or DINOv2()
    weights = {key: value for key, value in state_dict.items() if key != UNUSED}
    side = size // model.patch
    if "pos_embed" in weights:
        weights["pos_embed"] = positions(np.asarray(weights["pos_embed"], np.float32), side)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return rules.convert(weights, RULES, shapes_of(model.init, jax.random.key(0), x)["params"])


def positions(table: np.ndarray, side: int) -> np.ndarray:
    """The position table [1, 1 + n n, D] for side x side patches: [1, 1 + side side, D]."""
    old = round((table.shape[1] - 1) ** 0.5)
    if old == side:
        return table
    grid = bicubic(table[:, 1:].reshape(1, old, old, -1), side, side, slack=SLACK)
    return np.concatenate([table[:, :1], np.asarray(grid).reshape(1, side * side, -1)], axis=1)


def load(path: str | Path) -> Params:
    """The parameters of `DINOv2` from the published file, or from the folder that holds it.

    Raises:
      ConfigError: there is no such file, it does not read, or the weights do not fit.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"there are no DINOv2 weights {path}: get {URL}{FILE} and put it there")
    return convert(read(path))
