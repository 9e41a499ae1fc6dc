"""Files of LoRAs (2106.09685): the public layouts of Stable Diffusion 1 and 2, and one for networks without public names.

    peft       unet.<module>.lora_A.weight, lora_B.weight; text_encoder.<module> ...           peft, diffusers
    processor  unet.<...attn1>.processor.to_q_lora.down.weight; text_encoder.<...self_attn>.to_q_lora ...     diffusers, at first
    kohya      lora_unet_<module>, lora_te_<module> with underscores for dots: .lora_down.weight, .lora_up.weight, .alpha
    numbered   unet:<n>:down, unet:<n>:up; text_encoder:<n>:..., modules in the order of the network              cloneofsimo/lora
    plain      <path of our kernel>.down, .up, .alpha, in our own orientation (nn/lora.py)

With down [r, in, (h, w)] and up [out, r, (1, 1)] of a module,

    W += strength (alpha / r) up @ down,    alpha = r where the file has none             (1)

module by module, each with its own rank and alpha. Underscores say too little to be read (to_out_0, time_emb_proj): the names of
a file are looked up among those that the modules of this network have in each layout (pretrained/lora_names.py).
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.files import whole
from diffusion_jax.nn.lora import DOWN, KERNEL, UP, product
from diffusion_jax.pretrained.lora_names import KOHYA, Module, aliases, kohya, modules
from diffusion_jax.pretrained.reader import read as read_arrays
from diffusion_jax.types import Array, Params

LAYOUTS = ("peft", "kohya", "plain")
"""Those that are written."""
ALPHA = "alpha"
_ROLE = re.compile(
    r"(.+?)(?:\.lora_([AB])(?:\.default)?\.weight|\.lora_(down|up)\.weight|[._]lora\.(down|up)\.weight|\.(down|up|alpha))"
)
_ROLES = {"A": DOWN, "B": UP}
_PROCESSOR = (
    (r"^base_model\.model\.", ""), (r"\.processor\.", "."), (r"(attn\d)\.to_out$", r"\1.to_out.0"),
    (r"(self_attn)\.to_([qkv])$", r"\1.\2_proj"), (r"(self_attn)\.to_out$", r"\1.out_proj"),
)
"""From the names of attention processors to those of modules."""


class Change(NamedTuple):
    """The change of one kernel, or of a part of its columns.

    Attributes:
      module: where it belongs; None in our own layout, whose factors are oriented as nn/lora.py has them.
      path: of the kernel.
      down, up: the factors.
      factor: alpha / r.
    """

    module: Module | None
    path: str
    down: np.ndarray
    up: np.ndarray
    factor: float

    @property
    def delta(self) -> np.ndarray:
        """What (1) adds at strength 1 to the part of the kernel, in our layout, float32."""
        down, up = (np.asarray(x, np.float32) for x in (self.down, self.up))
        if self.module is None:
            return self.factor * np.asarray(product(jnp.asarray(down), jnp.asarray(up)))
        rank = len(down)
        official = (up.reshape(-1, rank) @ down.reshape(rank, -1)).reshape(len(up), *down.shape[1:])
        return self.factor * self.module.layout.ours(official)

    def added(self, kernel: Array, strength: float) -> Array:
        """The kernel with the change in its columns."""
        delta = strength * self.delta
        if self.module is not None and self.module.parts > 1:
            width = kernel.shape[-1] // self.module.parts
            before = self.module.part * width
            delta = np.pad(delta, ((0, 0), (before, kernel.shape[-1] - before - width)))
        return (kernel.astype(jnp.float32) + jnp.asarray(delta)).astype(kernel.dtype)


def merge(params: Params, changes: Sequence[Change], strength: float) -> Params:
    """Parameters with the changes of a LoRA added to their kernels, (1); the sums are taken in float32."""
    flat = flatten_dict(params, sep="/", keep_empty_nodes=True)
    for change in changes:
        flat[change.path] = change.added(flat[change.path], strength)
    return unflatten_dict(flat, sep="/")


# Reading ------------------------------------------------------------------------------------------------------------------------


def read(path: str | Path, task: Any, params: Params) -> list[Change]:
    """What a file changes.

    Args:
      path: a .safetensors file, or another that `reader.read` reads.
      task, params: what it is to change; of the parameters shapes are enough.

    Raises:
      ConfigError: keys of no layout, or of another network (the line names them), factors without their partner or of a shape
        that does not fit.
    """
    table = modules(task, params)
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten_dict(params, sep="/").items()}
    metadata = _metadata(Path(path))
    arrays = _words_left_out(path, read_arrays(path), metadata)
    if any(re.fullmatch(r"\w+:\d+:(up|down)", key) for key in arrays):
        arrays = _unnumbered(path, arrays, metadata, table)
    names = aliases(table)
    factors: dict[str, dict[str, np.ndarray]] = {}
    unmatched = []
    for key, array in arrays.items():
        match = _ROLE.fullmatch(key)
        name = _name(match[1], names, shapes) if match else None
        if match is None or name is None:
            unmatched.append(key)
            continue
        role = next(group for group in match.groups()[1:] if group)
        factors.setdefault(name, {})[_ROLES.get(role, role)] = array
    if unmatched:
        few = f"{', '.join(unmatched[:3])}{f' and {len(unmatched) - 3} more' if len(unmatched) > 3 else ''}"
        raise ConfigError(f"{path} is no LoRA of this model: it has no place for {few}")
    alphas = _alphas(path, metadata)
    return [_change(path, name, parts, table.get(name), shapes, alphas) for name, parts in factors.items()]


def _name(text: str, names: Mapping[str, str], shapes: Mapping[str, Any]) -> str | None:
    """The official name of a module, or the path of our kernel, by what a file calls it; None where there is none."""
    if text in shapes and text.endswith(f"/{KERNEL}"):
        return text
    for pattern, name in _PROCESSOR:
        text = re.sub(pattern, name, text)
    return names.get(text)


def _change(
    path: str | Path, name: str, parts: Mapping[str, np.ndarray], module: Module | None, shapes: Mapping[str, tuple[int, ...]],
    alphas: Sequence[tuple[str, float]],
) -> Change:
    """The change of one module, checked against its kernel."""
    if not {DOWN, UP} <= parts.keys():
        raise ConfigError(f"{path}: {name} has only {', '.join(parts)} of its two factors: get the file again")
    down, up = parts[DOWN], parts[UP]
    rank, other = (down.shape[-1], up.shape[-2]) if module is None else (down.shape[0], up.shape[1] if up.ndim > 1 else 0)
    alpha = next((alpha for pattern, alpha in alphas if re.match(rf"(.*\.)?({pattern})$", name)), float(rank))
    if ALPHA in parts:
        alpha = float(parts[ALPHA].reshape(-1)[0])
    kernel = name if module is None else module.path
    change = Change(module, kernel, down, up, alpha / max(rank, 1))
    wanted = shapes[kernel] if module is None else (*shapes[kernel][:-1], shapes[kernel][-1] // module.parts)
    if rank != other or _shape(change) != wanted:
        raise ConfigError(f"{path}: {name} has factors {down.shape} and {up.shape}, which do not fit {kernel} {shapes[kernel]}: "
                          "it is of another network")
    return change


def _shape(change: Change) -> tuple[int, ...] | None:
    """The shape of a change in our layout; None for factors that make no weight."""
    if change.module is None:
        stack = change.up.shape[:-2] if change.down.ndim == change.up.ndim else ()
        return (*change.down.shape[:-1], change.up.shape[-1]) if stack in ((), change.down.shape[:-2]) else None
    official = np.broadcast_to(np.float32(0), (change.up.shape[0], *change.down.shape[1:]))
    try:
        return change.module.layout.ours(official).shape
    except (TypeError, ValueError):
        return None


def _metadata(path: Path) -> dict[str, str]:
    """The texts beside the arrays of a .safetensors file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except SafetensorError:  # who reads the arrays says what is wrong
        return {}


def _alphas(path: str | Path, metadata: Mapping[str, str]) -> list[tuple[str, float]]:
    """(regex of modules, alpha) as diffusers writes them beside the arrays, the special ones first."""
    try:
        options = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        alphas = []
        for part in KOHYA:
            if options.get(f"{part}.use_rslora"):
                raise ConfigError(f"{path} is rank-stabilised (use_rslora), which is not read here: save it without")
            special = options.get(f"{part}.alpha_pattern") or {}
            alphas += [(rf"{part}\.(.*\.)?({pattern})", float(alpha)) for pattern, alpha in special.items()]
            if f"{part}.lora_alpha" in options:
                alphas.append((rf"{part}\..*", float(options[f"{part}.lora_alpha"])))
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: lora_adapter_metadata does not read ({error}): get the file again") from None
    return alphas


def _words_left_out(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays without the embeddings of new words, which no tokenizer here knows; says which there are."""
    words = [key for key in arrays if metadata.get(key) == "<embed>"]
    if words:
        logging.warning("%s also has embeddings of the words %s, which are left out: prompts do not know them",
                        path, ", ".join(words))
    return {key: array for key, array in arrays.items() if key not in words}


_ATTENTION = r".*\.attn\d\.to_\w+(\.0)?"
_NUMBERED = {
    "unet": {"CrossAttention": _ATTENTION, "Attention": _ATTENTION, "GEGLU": r".*\.ff\.net\.0\.proj"},
    "text_encoder": {"CLIPAttention": r".*\.self_attn\.\w+", "CLIPMLP": r".*\.mlp\.\w+"},
}
"""Part -> class of modules that were changed -> their names."""


def _unnumbered(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], table: Mapping[str, Module]
) -> dict[str, np.ndarray]:
    """The arrays of the numbered layout under names: its metadata say which classes of modules were changed, in their order."""
    renamed = {}
    for part, patterns in _NUMBERED.items():
        numbers = {int(key.split(":")[1]) for key in arrays if key.startswith(f"{part}:")}
        if not numbers:
            continue
        classes = re.findall(r"\w+", metadata.get(part, ""))
        for name in classes:
            if name not in patterns:
                raise unknown(f"class of modules in {path}", name, patterns)
        wanted = re.compile("|".join(patterns[name] for name in classes or patterns))
        names = [name for name in table if name.startswith(f"{part}.") and wanted.fullmatch(name)]
        if numbers != set(range(len(names))):
            raise ConfigError(f"{path} changes {len(numbers)} modules of the {part}, of which this model has {len(names)}: "
                              "it is of another network")
        for key, array in arrays.items():
            if key.startswith(f"{part}:"):
                _, number, role = key.split(":")
                renamed[f"{names[int(number)]}.{role}"] = array
    return renamed | {key: array for key, array in arrays.items() if key.partition(":")[0] not in _NUMBERED}


# Writing ------------------------------------------------------------------------------------------------------------------------


def save(path: str | Path, task: Any, factors: Params, alpha: float | None = None, layout: str = "") -> str:
    """Writes factors that were trained here as a .safetensors file.

    Args:
      path: of the file.
      task: whose kernels they change.
      factors: see nn/lora.py.
      alpha: as they were trained; None for the rank.
      layout: one of `LAYOUTS`; '' is peft where all kernels have public names, else plain.

    Returns:
      The layout.

    Raises:
      ConfigError: another layout, or a kernel that has no name in it.
    """
    from safetensors.numpy import save as as_bytes

    if layout and layout not in LAYOUTS:
        raise unknown("layout of a LoRA", layout, LAYOUTS)
    flat = flatten_dict(factors, sep="/")
    kernels = {key.rpartition("/")[0]: np.empty(0) for key in flat}
    table = modules(task, unflatten_dict(kernels, sep="/"))
    strangers = sorted(kernels.keys() - {module.path for module in table.values()})
    if layout in ("peft", "kohya") and strangers:
        raise ConfigError(f"{strangers[0]} has no name in the layout {layout}: write layout='plain'")
    layout = layout or ("plain" if strangers else "peft")
    pairs = {kernel: (np.asarray(flat[f"{kernel}/{DOWN}"]), np.asarray(flat[f"{kernel}/{UP}"])) for kernel in kernels}
    arrays = _plain(pairs, alpha) if layout == "plain" else _public(pairs, alpha, table, layout)
    # Bytes are written by us: the library's own files are closed to other users.
    content = as_bytes({key: np.ascontiguousarray(array) for key, array in arrays.items()}, {"format": "pt"})
    with whole(path) as unfinished:
        unfinished.write_bytes(content)
    return layout


def _plain(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], alpha: float | None) -> dict[str, np.ndarray]:
    """Factors in our own layout."""
    arrays = {}
    for kernel, (down, up) in pairs.items():
        of_rank = down.shape[-1] if alpha is None else alpha
        arrays |= {f"{kernel}.{DOWN}": down, f"{kernel}.{UP}": up, f"{kernel}.{ALPHA}": np.asarray(of_rank, np.float32)}
    return arrays


def _public(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], alpha: float | None, table: Mapping[str, Module], layout: str
) -> dict[str, np.ndarray]:
    """Factors under public names; the parts of a fused kernel share its down."""
    arrays = {}
    for name, module in table.items():
        down, up = pairs[module.path]
        rank = down.shape[-1]
        width = up.shape[-1] // module.parts
        down = down.transpose(3, 2, 0, 1) if down.ndim == 4 else down.T                            # [r, in, (h, w)]
        up = up[:, module.part * width : (module.part + 1) * width].T                              # [out, r]
        if module.pixels:
            down = down[:, :, None, None]
        up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
        if layout == "peft":                                       # it has no alpha: readers take the rank
            factor = 1.0 if alpha is None else alpha / rank
            arrays |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": np.float32(factor) * up}
            continue
        key = kohya(name)
        arrays |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        arrays[f"{key}.{ALPHA}"] = np.asarray(rank if alpha is None else alpha, np.float32)
    return arrays
