"""Low-rank adaptation of layers that are trained already (LoRA, Hu et al. 2106.09685).

With W [inputs, outputs] the kernel of a layer, A [inputs, rank] and B [rank, outputs],

    y  = x W + s (x A) B                                                              (1)
       = x W',    W' = W + s A B                                                      (2)
    s  = strength alpha / rank                                                        (3)
    A  ~ U(1 / sqrt(inputs)),    B = 0                                                (4)

so that an adapted layer starts as the layer itself. Of a convolution [h, w, C, F] A is one of the same window, [h, w, C, rank],
and B [rank, F] acts on single pixels; layers that are stacked [L, inputs, outputs] have factors of their own, stacked too. In
all of them (2) is one matrix product over the last two dimensions.

Factors lie in a tree like that of the parameters, where a kernel's leaf is {'down': A, 'up': B}.
"""
from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.init import TORCH
from diffusion_jax.types import Array, Key, Params

KERNEL = "kernel"
"""The name of W among the parameters of a layer."""
DOWN, UP = "down", "up"
STACKED = 3
"""Dimensions of kernels of layers that are scanned."""
ATTENTION = r"(^|/)(q|k|v|out|qkv|kv|proj)/kernel$"
"""The projections of attention, as the networks here name them."""


def chosen(params: Params, layers: str) -> dict[str, Any]:
    """The kernels whose paths match, by path.

    Args:
      params: nested dicts of arrays, or of their shapes.
      layers: a regular expression, found anywhere in a path: 'model/blocks/attn/qkv/kernel' for example.

    Raises:
      ConfigError: none does; names a few that are there.
    """
    kernels = {
        path: leaf for path, leaf in flatten_dict(params, sep="/").items()
        if path.rpartition("/")[2] == KERNEL and 2 <= len(leaf.shape) <= 4
    }
    matching = {path: leaf for path, leaf in kernels.items() if re.search(layers, path)}
    if not matching:
        few = ", ".join(list(kernels)[:3]) or "none that a LoRA can change"
        raise ConfigError(f"no kernel's path matches lora.layers {layers!r}; this network has {len(kernels)}: {few}")
    return matching


def init(key: Key, params: Params, layers: str, rank: int) -> Params:
    """The factors (4) of the kernels whose paths match.

    Args:
      key: of the draws; those of one kernel do not depend on which others match.
      params: nested dicts of arrays, or of their shapes.
      layers: see `chosen`.
      rank: of the factors.
    """
    factors = {}
    for path, kernel in chosen(params, layers).items():
        *window, inputs, outputs = kernel.shape
        stack = window if len(kernel.shape) == STACKED else []
        factors[f"{path}/{DOWN}"] = _down(jax.random.fold_in(key, zlib.crc32(path.encode())), (*window, inputs, rank))
        factors[f"{path}/{UP}"] = jnp.zeros((*stack, rank, outputs))
    return unflatten_dict(factors, sep="/")


def _down(key: Key, shape: tuple[int, ...]) -> Array:
    """A of (4)."""
    if len(shape) != STACKED:
        return TORCH.kernel(key, shape, jnp.float32)
    # Layer by layer: the depth is no part of the inputs of one.
    return jax.vmap(lambda key: TORCH.kernel(key, shape[1:], jnp.float32))(jax.random.split(key, shape[0]))


def product(down: Array, up: Array) -> Array:
    """A B of (2), in float32 whatever the platform multiplies with by default."""
    return jnp.matmul(down.astype(jnp.float32), up.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def merged(params: Params, factors: Params, scale: Array | float) -> Params:
    """Parameters with (2) in the place of the kernels that have factors; the sum is taken in float32.

    Args:
      params: nested dicts of arrays.
      factors: see the top of this file.
      scale: s.

    Raises:
      ConfigError: factors of a kernel that is not there, or that has another shape.
    """
    return _merged(params, factors, scale, "")


def _merged(params: Params, factors: Params, scale: Array | float, path: str) -> Params:
    if isinstance(params, Mapping):
        for name in factors:
            if name not in params:
                raise ConfigError(f"a LoRA of {path}{name} does not fit this model, which has none: open its own base")
        return {**params, **{name: _merged(params[name], part, scale, f"{path}{name}/") for name, part in factors.items()}}
    down, up = factors[DOWN], factors[UP]
    shape = (*down.shape[:-1], up.shape[-1])
    if shape != params.shape:
        raise ConfigError(f"a LoRA of {path[:-1]} {shape} does not fit this model's {params.shape}: open its own base")
    return _added(params, down, up, scale)


@jax.jit  # one program for all kernels of a shape, where it is called outside of one
def _added(kernel: Array, down: Array, up: Array, scale: Array | float) -> Array:
    """(2)."""
    return (kernel.astype(jnp.float32) + scale * product(down, up)).astype(kernel.dtype)
