"""The modified ResNet of CLIP (Radford et al. 2021, arXiv 2103.00020, section 2.4; He et al. 2016).

A stem of three convolutions, and bottlenecks that halve the size by means in place of strides,

    relu(h + norm(conv3(means(relu(norm(conv2(relu(norm(conv1(h)))))))))              (1)

with h through norm(conv(means(h))) where its shape changes; at the end, what the mean of all pixels attends to
(models/classifier.py:AttentionPool). The norms of the published networks are batch norms with the statistics of their training:

    y = (x - mean) g + bias,   g = scale / sqrt(var + 1e-5)                           (2)

A network that is trained from the start has group norms, which need no statistics. Its last norms start at zero, so that a
bottleneck starts as the identity, the pool as a normal distribution, the other layers as PyTorch's (nn/init.py).
"""
from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from diffusion_jax.build import unknown
from diffusion_jax.models.classifier import AttentionPool
from diffusion_jax.models.clip import ImageState, check_size
from diffusion_jax.nn.conv import torch_conv
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import normal, torch_bias
from diffusion_jax.nn.resample import shrink
from diffusion_jax.types import Array

HEAD = 64
"""Channels of a head in all published networks."""


class ResNet(nn.Module):
    """The tower.

    Attributes:
      features: width of the joint space.
      size: side of the image, a multiple of 32.
      width: channels of the stem; the last stage has 32 times as many.
      layers: bottlenecks of each of the four stages.
      norm: 'batch', with fixed statistics, for the published weights, or 'group'.
      dtype: of the products and the output.

    Parameters: stem_0 ... stem_2, stage_<i>_<j>, pool_attn.
    """

    features: int
    size: int = 224
    width: int = 64
    layers: tuple[int, ...] = (3, 4, 6, 3)
    norm: str = "batch"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> ImageState:
        """x [B, size, size, C], normalised -> `ImageState`, whose tokens are pixels and whose pooled are the features."""
        check_size(x, self.size)
        unit = partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        for i, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))):
            x = nn.relu(unit(features, 3, stride, name=f"stem_{i}")(x))
        x = shrink(x, 2)
        for i, count in enumerate(self.layers):
            for j in range(count):
                stride = 2 if i and not j else 1
                x = Bottleneck(self.width * 2**i, stride, self.norm, self.dtype, name=f"stage_{i}_{j}")(x)
        init = normal(x.shape[-1] ** -0.5, torch_bias)
        pooled = AttentionPool(HEAD, self.features, init, name="pool_attn")(x.astype(jnp.float32))
        return ImageState(x.reshape(len(x), -1, x.shape[-1]), pooled, pooled)


class ConvNorm(nn.Module):
    """A convolution without bias and its norm; `norm` as of `ResNet`, `scale_init` of its gain.

    Parameters: conv, norm.
    """

    features: int
    size: int = 1
    stride: int = 1
    norm: str = "batch"
    dtype: str = "float32"
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', features]."""
        padding = (self.size // 2,) * 2
        h = torch_conv(self.features, self.size, self.stride, padding, dtype=self.dtype, use_bias=False, name="conv")(x)
        if self.norm == "batch":
            return FixedBatchNorm(self.scale_init, name="norm")(h)
        if self.norm != "group":
            raise unknown("norm of a ResNet", self.norm, ("batch", "group"))
        return GroupNorm(int(np.gcd(32, self.features)), 1e-5, self.scale_init, name="norm")(h)


class FixedBatchNorm(nn.Module):
    """The batch norm (2), whose statistics no gradient reaches.

    Parameters: scale, bias, mean, var [C]; a decaying optimiser should leave mean and var alone.
    """

    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> the same shape and type."""
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale, bias, mean, var = (
            self.param(name, init, x.shape[-1:], jnp.float32)
            for name, init in (("scale", self.scale_init), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        mean, var = jax.lax.stop_gradient((mean, var))
        gain = scale * jax.lax.rsqrt(var + 1e-5)
        mean, gain, bias = (value[None, None, None] for value in (mean, gain, bias))
        return ((x.astype(jnp.float32) - mean) * gain + bias).astype(x.dtype)


class Bottleneck(nn.Module):
    """The bottleneck (1), with four times `width` channels at its end."""

    width: int
    stride: int = 1
    norm: str = "batch"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H / stride, W / stride, 4 * width]."""
        unit = partial(ConvNorm, norm=self.norm, dtype=self.dtype)
        h = nn.relu(unit(self.width, name="conv1")(x))
        h = nn.relu(unit(self.width, 3, name="conv2")(h))
        h = unit(4 * self.width, scale_init=nn.initializers.zeros, name="conv3")(shrink(h, self.stride))
        if self.stride > 1 or x.shape[-1] != 4 * self.width:
            x = unit(4 * self.width, name="skip")(shrink(x, self.stride))
        return nn.relu(h + x)
