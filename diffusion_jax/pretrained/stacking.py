"""Published weights into the parameters of a network that scans its blocks, for networks of gigabytes.

Unrolled, stacked afterwards, they would be there twice. So `rules.convert` makes one weight at a time, which goes to its place in
the array of all blocks before the next is made.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.pretrained import memory, rules
from diffusion_jax.types import Params

_BLOCK = re.compile(r"((?:.*/)?)blocks_(\d+)/(.+)")


def convert(state_dict: Mapping[str, Any], table: rules.Rules, target: Params) -> Params:
    """What `rules.convert` gives with unrolled blocks, stacked as models/dit.py:stack_layers does it.

    Args:
      state_dict, table: see `rules.convert`.
      target: the shapes and types of the parameters with unrolled blocks.

    Raises:
      ConfigError: what `rules.convert` refuses.
    """
    wanted: dict[str, Any] = flatten_dict(target, sep="/")
    keys: dict[str, list[str]] = {}
    for key in state_dict:
        _, path = rules.find(key, table)
        keys.setdefault(path if path in wanted else "", []).append(key)

    def one(path: str) -> jax.Array:
        part = {key: state_dict[key] for key in keys.get(path, ())}
        return flatten_dict(rules.convert(part, table, unflatten_dict({path: wanted[path]}, sep="/")), sep="/")[path]

    rules.convert({key: state_dict[key] for key in keys.get("", ())}, table, {})       # refuses what is of nothing here
    places: dict[str, list[str]] = {}
    for path in wanted:
        places.setdefault(_BLOCK.sub(r"\1blocks/\3", path), []).append(path)
    return unflatten_dict({place: _joined(one, paths) for place, paths in places.items()}, sep="/")


def _joined(one: Callable[[str], jax.Array], paths: list[str]) -> jax.Array:
    """The arrays of these paths, of all blocks in their order, each made and copied before the next; or the only one there is."""
    if not _BLOCK.fullmatch(paths[0]):
        return one(paths[0])
    order = sorted(paths, key=lambda path: int(_BLOCK.fullmatch(path)[2]))
    first = np.asarray(one(order[0]))
    out = memory.empty((len(order), *first.shape), first.dtype)
    for i, path in enumerate(order):
        out[i] = np.asarray(one(path)) if i else first
    return memory.to_device(out)


def unstacked_shapes(shapes: Params) -> Params:
    """The shapes of what models/dit.py:unstack_layers makes of parameters of such shapes; nothing is traced."""
    flat: dict[str, jax.ShapeDtypeStruct] = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        before, found, rest = path.rpartition("blocks/")
        if not found:
            flat[path] = leaf
        for i in range(leaf.shape[0] if found else 0):
            flat[f"{before}blocks_{i}/{rest}"] = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return unflatten_dict(flat, sep="/")
