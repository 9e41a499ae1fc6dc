"""The Inception-v3 network that FID, sFID, IS and KID measure images by (Szegedy et al. 2015, arXiv 1512.00567).

It is the graph of 2015-12-05 that came with FID (Heusel et al. 2017, arXiv 1706.08500), trained on ImageNet with 1008 outputs.
Every layer is

    y = relu(conv(x, K g) + b - m g),     g = s / sqrt(v + 0.001)                     (1)

with the scale s, bias b, running mean m and running variance v of its batch norm, all of which are parameters: nothing is trained
here. Layers stand in branches, branches in blocks that put them one after another along the channels:

    stem    5 layers, 2 pools       299 x 299 x 3 -> 35 x 35 x 192
    5b-5d   1x1, 5x5, 3x3 twice     35 x 35 x 288
    6a-6e   1x7 and 7x1             17 x 17 x 768
    7a-7c   1x3 beside 3x1          8 x 8 x 2048

The usual Inception-v3 differs in two places: here an average over 3x3 pixels at the border counts the pixels of the image only,
and the last block pools by maximum where its twin 7b averages. FID with any other network is another metric.

All products are in full float32 on every backend, so that a distance does not depend on the machine.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.conv import of_windows
from diffusion_jax.types import Array

SIZE = 299
"""Side of the images that the published statistics were made with."""
CLASSES = 1008
SMALLEST = 75
SPATIAL = 7
"""Channels of the spatial features of sFID (Nash et al. 2021, arXiv 2103.03841)."""
EPS = 1e-3
EXACT = jax.lax.Precision.HIGHEST


class Step(NamedTuple):
    """One layer (1): channels of its output, height and width of its kernel, stride, and XLA's name of its padding."""

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


Fork = tuple[Step, Step]
"""Two layers that see the same input; their outputs stand one after the other along the channels."""
Branch = tuple[Step | Fork | str, ...]
"""Layers in a row; a word is a pool over 3x3 pixels: 'mean', 'max', or 'shrink', the maximum at every second pixel."""


def _c(features: int, height: int = 1, width: int = 0) -> Step:
    """A layer that keeps the size; square by default."""
    return Step(features, (height, width or height))


def _half(features: int) -> Step:
    """A layer that halves the size."""
    return Step(features, (3, 3), 2, "VALID")


def _block5(pooled: int) -> Mapping[str, Branch]:
    return {
        "branch1x1": (_c(64),),
        "branch5x5": (_c(48), _c(64, 5)),
        "branch3x3dbl": (_c(64), _c(96, 3), _c(96, 3)),
        "branch_pool": ("mean", _c(pooled)),
    }


def _block6(inner: int) -> Mapping[str, Branch]:
    wide, high = _c(inner, 1, 7), _c(inner, 7, 1)
    return {
        "branch1x1": (_c(192),),
        "branch7x7": (_c(inner), wide, _c(192, 7, 1)),
        "branch7x7dbl": (_c(inner), high, wide, high, _c(192, 1, 7)),
        "branch_pool": ("mean", _c(192)),
    }


def _block7(pool: str) -> Mapping[str, Branch]:
    fork = (_c(384, 1, 3), _c(384, 3, 1))
    return {
        "branch1x1": (_c(320),),
        "branch3x3": (_c(384), fork),
        "branch3x3dbl": (_c(448), _c(384, 3), fork),
        "branch_pool": (pool, _c(192)),
    }


STEM: Mapping[str, Step | str] = {
    "Conv2d_1a_3x3": _half(32),
    "Conv2d_2a_3x3": Step(32, (3, 3), padding="VALID"),
    "Conv2d_2b_3x3": _c(64, 3),
    "pool1": "shrink",
    "Conv2d_3b_1x1": _c(80),
    "Conv2d_4a_3x3": Step(192, (3, 3), padding="VALID"),
    "pool2": "shrink",
}
BLOCKS: Mapping[str, Mapping[str, Branch]] = {
    "Mixed_5b": _block5(32),
    "Mixed_5c": _block5(64),
    "Mixed_5d": _block5(64),
    "Mixed_6a": {
        "branch3x3": (_half(384),),
        "branch3x3dbl": (_c(64), _c(96, 3), _half(96)),
        "branch_pool": ("shrink",),
    },
    "Mixed_6b": _block6(128),
    "Mixed_6c": _block6(160),
    "Mixed_6d": _block6(160),
    "Mixed_6e": _block6(192),
    "Mixed_7a": {
        "branch3x3": (_c(192), _half(320)),
        "branch7x7x3": (_c(192), _c(192, 1, 7), _c(192, 7, 1), _half(192)),
        "branch_pool": ("shrink",),
    },
    "Mixed_7b": _block7("mean"),
    "Mixed_7c": _block7("max"),
}


class Unit(nn.Module):
    """The layer (1).

    Attributes:
      step: its shape.

    Parameters: kernel [h, w, C, features]; scale, bias, mean and var [features] of the batch norm.
    """

    step: Step

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        features, size, stride, padding = self.step
        kernel = self.param("kernel", nn.initializers.he_normal(), (*size, x.shape[-1], features), jnp.float32)
        scale, var = (self.param(name, nn.initializers.ones, (features,), jnp.float32) for name in ("scale", "var"))
        bias, mean = (self.param(name, nn.initializers.zeros, (features,), jnp.float32) for name in ("bias", "mean"))
        gain = scale * jax.lax.rsqrt(var + EPS)
        y = convolve(x, kernel * gain[None, None, None], stride, padding)
        return nn.relu(y + (bias - mean * gain)[None, None, None])


def convolve(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """x [B, H, W, C], kernel [h, w, C, D] -> [B, H', W', D].

    Over single pixels it is a matrix product, which CPUs do faster; and so is one without padding, of an image at a time, for
    which XLA's CPU backend takes two to three times as long.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=EXACT).reshape(*x.shape[:-1], -1)
    whole = partial(_at_once, stride, padding)
    if padding == "SAME":
        return whole(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=partial(_by_image, stride), default=whole)


def _at_once(stride: int, padding: str, x: Array, kernel: Array) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers, precision=EXACT)


def _by_image(stride: int, x: Array, kernel: Array) -> Array:
    return jax.lax.map(lambda image: of_windows(stride, (0, 0), image[None], kernel)[0], x)


def pool(kind: str, x: Array) -> Array:
    """'mean', 'max' or 'shrink' over 3x3 pixels: [B, H, W, C] -> [B, H', W', C]."""
    if kind == "mean":
        return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
    if kind == "max":
        return nn.max_pool(x, (3, 3), (1, 1), "SAME")
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class Block(nn.Module):
    """Branches side by side. A layer is named after its branch, its place in it and its side of a fork, as officially.

    Attributes:
      branches: name -> branch, in the order of the channels.
    """

    branches: Mapping[str, Branch]

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """x [B, H, W, C] -> the output [B, H', W', D] of each branch."""
        return tuple(self._branch(name, branch, x) for name, branch in self.branches.items())

    def _branch(self, name: str, branch: Branch, x: Array) -> Array:
        single = sum(not isinstance(step, str) for step in branch) == 1
        for place, step in enumerate(branch, start=1):
            own = name if single else f"{name}_{place}"
            if isinstance(step, str):
                x = pool(step, x)
            elif isinstance(step, Step):
                x = Unit(step, name=own)(x)
            else:
                x = jnp.concatenate([Unit(side, name=own + letter)(x) for side, letter in zip(step, "ab", strict=True)], axis=-1)
        return x


class Maps(NamedTuple):
    """Feature maps, for images of 299 x 299.

    Attributes:
      pool1: [B, 73, 73, 64], after the first pool.
      pool2: [B, 35, 35, 192], after the second.
      mixed6: [B, 17, 17, 768], after 6e.
      mixed7: [B, 8, 8, 2048], after 7c.
      spatial: [B, 17, 17, 7], the first channels of 6d.
    """

    pool1: Array
    pool2: Array
    mixed6: Array
    mixed7: Array
    spatial: Array


class Trunk(nn.Module):
    """Stem and blocks."""

    @nn.compact
    def __call__(self, x: Array) -> Maps:
        """x [B, H, W, 3] -> the maps."""
        maps = {}
        for name, step in STEM.items():
            maps[name] = x = pool(step, x) if isinstance(step, str) else Unit(step, name=name)(x)
        for name, branches in BLOCKS.items():
            parts = Block(branches, name=name)(x)
            maps[name] = x = jnp.concatenate(parts, axis=-1)
            if name == "Mixed_6d":
                maps["spatial"] = parts[0][..., :SPATIAL]
        return Maps(maps["pool1"], maps["pool2"], maps["Mixed_6e"], maps["Mixed_7c"], maps["spatial"])


class Features(NamedTuple):
    """What metrics read off an image; torch-fidelity's names in quotes.

    Attributes:
      f64, f192, f768: [B, 64], [B, 192], [B, 768], means of the early maps over the pixels: FID of few images.
      pool3: [B, 2048], '2048', the mean of the last map: FID, KID, precision and recall.
      spatial: [B, 2023] for 299 x 299, 17 x 17 x 7 in this order: sFID.
      logits: [B, 1008], 'logits'.
      unbiased: [B, 1008], 'logits_unbiased', the logits without the bias of the last layer: IS of ADM and of torch-fidelity.
    """

    f64: Array
    f192: Array
    f768: Array
    pool3: Array
    spatial: Array
    logits: Array
    unbiased: Array


class Inception(nn.Module):
    """The network. Inside `jax.jit`, what you do not take from its output is not computed.

    Parameters: trunk, and fc_kernel [2048, 1008] and fc_bias [1008] of the last layer.

    Example:
      params = diffusion_jax.pretrained.inception.load('pt_inception-2015-12-05-6726825d.pth')
      pool3 = jax.jit(lambda params, x: Inception().apply({'params': params}, x).pool3)(params, x)       # [B, 2048]
    """

    @nn.compact
    def __call__(self, x: Array) -> Features:
        """The features.

        Args:
          x: [B, H, W, 3], about in [-1, 1], made by `data.resize.prepare`: 299 x 299 for figures that others can compare.

        Raises:
          ConfigError: not three channels, or a side below 75 pixels.
        """
        if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < SMALLEST:
            raise ConfigError(f"Inception sees images [B, H, W, 3] of at least {SMALLEST}x{SMALLEST}, got {x.shape}; resize them")
        maps = Trunk(name="trunk")(x.astype(jnp.float32))
        f64, f192, f768, pool3 = (jnp.mean(h, axis=(1, 2)) for h in maps[:4])
        kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (pool3.shape[-1], CLASSES), jnp.float32)
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,), jnp.float32)
        unbiased = jnp.dot(pool3, kernel, precision=EXACT)
        return Features(f64, f192, f768, pool3, maps.spatial.reshape(len(x), -1), unbiased + bias[None], unbiased)
