"""The published weights of DINOv2 as our DINOv2: ViT-L/14 for FD-DINOv2, and the sizes S, B and g, with and without registers.

A file is a flat state dict, dinov2_vitl14_pretrain.pth for example, which tells its size. Its positions lie on a grid of 37 x 37
patches; they are interpolated to 16 x 16 here as torch.hub's models do it: bicubic, not antialiased and spaced as if for 16.1
patches, but antialiased and evenly spaced where there are registers.

A file may also have the names of transformers' Dinov2Model, by itself or under one prefix beside a head, which is left out, and
be an .onnx export of that. A network that was fine-tuned under its head is read like any other, but is no reference for
FD-DINOv2. Today's transformers spaces positions evenly: slack=0 in `convert` makes its numbers.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.resize import DINOV2, antialiased, bicubic
from diffusion_jax.models.dinov2 import HEAD, DINOv2
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.reader import onnx_users, read
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
LAYER = r"encoder\.layer\.(\d+)\."
TRANSFORMERS = {
    r"embeddings\.(cls_token|mask_token|register_tokens)": r"\1",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(weight|bias)": r"patch_embed.proj.\1",
    rf"{LAYER}(norm[12]\.(?:weight|bias))": r"blocks.\1.\2",
    rf"{LAYER}layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    rf"{LAYER}attention\.attention\.(query|key|value)\.(weight|bias)": r"blocks.\1.attn.\2.\3",
    rf"{LAYER}attention\.output\.dense\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    rf"{LAYER}mlp\.(fc[12]\.(?:weight|bias))": r"blocks.\1.mlp.\2",
    rf"{LAYER}mlp\.weights_in\.(weight|bias)": r"blocks.\1.mlp.w12.\2",
    rf"{LAYER}mlp\.weights_out\.(weight|bias)": r"blocks.\1.mlp.w3.\2",
    r"layernorm\.(weight|bias)": r"norm.\1",
}
"""A key of transformers -> the official one, of which qkv is still in three parts."""
PARTS = ("query", "key", "value")
SIGN = "embeddings.cls_token"
"""By this key, with whatever stands before it, transformers' names are known."""
ONNX_POSITIONS = ("embeddings.Concat", "embeddings.Reshape")
"""Where an export takes the positions of the class token [1, 1, D] and of the patches [1, n n, D], which lost their names."""


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


def official(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of transformers under the official keys; one that has these is taken as it is.

    Args:
      state_dict: key -> array; what lies beside the network's prefix is left out.

    Raises:
      ConfigError: a key of no rule, or a layer without one of query, key and value, or with one of another shape.
    """
    sign = next((key for key in state_dict if key == SIGN or key.endswith(f".{SIGN}")), None)
    if sign is None:
        return dict(state_dict)
    prefix = sign.removesuffix(SIGN)
    renamed = {_renamed(key.removeprefix(prefix)): array for key, array in state_dict.items() if key.startswith(prefix)}
    for key in [key for key in renamed if f".{PARTS[0]}." in key]:
        parts = [key.replace(PARTS[0], part) for part in PARTS]
        missing = [part for part in parts if part not in renamed]
        if missing:
            raise ConfigError(f"these weights of DINOv2 lack {missing[0]}: get the file again")
        renamed[key.replace(PARTS[0], "qkv")] = _joined([renamed.pop(part) for part in parts], 0, key)
    return renamed


def _joined(arrays: Sequence[np.ndarray], axis: int, key: str) -> np.ndarray:
    """The parts of one array, the first of them under a key.

    Raises:
      ConfigError: they have other shapes than parts do.
    """
    try:
        return np.concatenate(arrays, axis)
    except ValueError:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ConfigError(f"these are no weights of DINOv2: {key} and its other parts are of {shapes}") from None


def _place(name: str, user: str) -> tuple[str, bool]:
    """The key of an initialiser by its node, '/encoder/layer.0/mlp/fc1/MatMul' for example, and whether it is turned around."""
    match = re.fullmatch(r"/(.+)/([A-Za-z]+)(?:_\d+)?", user)
    if "::" not in name or match is None:
        return name, False
    module, operation = match[1].replace("/", "."), match[2]
    return (f"{module}.weight", True) if operation == "MatMul" else (f"{module}.{operation}", False)


def _renamed(key: str) -> str:
    """The official key of one of transformers, of which one rule is.

    Raises:
      ConfigError: none is.
    """
    for pattern, name in TRANSFORMERS.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    raise ConfigError(f"these are no weights of transformers' Dinov2Model: it has no {key}")


def named(initialisers: Mapping[str, np.ndarray], users: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The initialisers of an .onnx export under the keys of the state dict that was exported.

    An export keeps the names of vectors, but turns matrices around for its products and joins or cuts positions, after which a
    number stands for the name. The node that takes such an array is named by its module.

    Args:
      initialisers: name -> array.
      users: name -> the node that takes it, see `reader.onnx_users`.

    Raises:
      ConfigError: two arrays belong to one key, or positions do not fit each other.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, array in initialisers.items():
        key, is_turned = _place(name, users.get(name, ""))
        if key in arrays:
            raise ConfigError(f"this .onnx file has two arrays for {key}: export it again from the network itself")
        arrays[key] = array.T if is_turned else array
    for prefix in [key.removesuffix(SIGN) for key in arrays if key.endswith(SIGN)]:
        halves = [arrays.pop(prefix + key) for key in ONNX_POSITIONS if prefix + key in arrays]
        if len(halves) == 2:
            key = f"{prefix}embeddings.position_embeddings"
            arrays[key] = _joined(halves, 1, key)
    return arrays


def convert(
    state_dict: rules.Weights, model: DINOv2 | None = None, size: int = DINOV2, slack: float = SLACK
) -> Params:
    """An official state dict as the parameters of `DINOv2` for images of `size` x `size`.

    Args:
      state_dict: official key -> array.
      model: the network; None for that of `model_of`.
      size: of the images.
      slack: of positions without registers, see `positions`.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    model = model or model_of(state_dict)
    weights = {key: value for key, value in state_dict.items() if key != UNUSED}
    side = size // model.patch
    if "pos_embed" in weights:
        weights["pos_embed"] = positions(np.asarray(weights["pos_embed"], np.float32), side, bool(model.registers), slack)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return rules.convert(weights, RULES, shapes_of(model.init, jax.random.key(0), x)["params"])


def positions(table: np.ndarray, side: int, registers: bool = False, slack: float = SLACK) -> np.ndarray:
    """The position table [1, 1 + n n, D] for side x side patches: [1, 1 + side side, D].

    Args:
      table: as it was trained.
      side: in patches.
      registers: whether the network has them: then it is antialiased and evenly spaced.
      slack: else, patches by which it is spaced as if the side were longer.

    Raises:
      ConfigError: a table of no square.
    """
    old = round((table.shape[1] - 1) ** 0.5)
    if old**2 != table.shape[1] - 1:
        raise ConfigError(f"DINOv2's positions are those of a square, not of {table.shape[1] - 1} patches")
    if old == side:
        return table
    patches = jnp.asarray(table[:, 1:].reshape(1, old, old, -1))
    grid = antialiased(patches, side, side) if registers else bicubic(patches, side, side, slack=slack)
    return np.concatenate([table[:, :1], np.asarray(grid).reshape(1, side * side, -1)], axis=1)


def load(path: str | Path) -> Params:
    """The parameters of `DINOv2` from a published file, or from the folder that holds one; see the top for names and formats.

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
    arrays = read(path)
    if path.suffix == ".onnx":
        arrays = named(arrays, onnx_users(path))
    return convert(official(arrays))
