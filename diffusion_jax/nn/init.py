"""How layers start. It is a part of each system's recipe: the same learning rate trains another network from other weights.

With fan_in the inputs of an output (the window's pixels times the channels), fan_out those of an input, U(b) uniform in [-b, b],

    XAVIER    W ~ U(sqrt(6 / (fan_in + fan_out))),    bias = 0                        (1)
    TORCH     W ~ U(1 / sqrt(fan_in)),    bias ~ U(1 / sqrt(fan_in))                  (2)
    ZERO      W = 0,    bias = 0                                                      (3)
    normal(s)     W ~ N(0, s^2),    bias = 0                                          (4)

(1) is DDPM's and DiT's (Glorot & Bengio 2010). (2) is what PyTorch's convolutions and linear layers do by themselves, Kaiming's
uniform with a = sqrt(5), and so what systems have that say nothing: ADM, GLIDE, unCLIP, latent diffusion and its autoencoders.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from diffusion_jax.types import Array, Key

BiasInit = Callable[[int], Initializer]
"""fan_in -> the initialiser of a bias."""


class Init(NamedTuple):
    """How a layer starts.

    Attributes:
      kernel: of the kernel [..., C, features], whose other dimensions are the window.
      bias: of the bias [features].
    """

    kernel: Initializer
    bias: BiasInit


def zero_bias(fan_in: int) -> Initializer:
    """0."""
    del fan_in
    return nn.initializers.zeros


def torch_bias(fan_in: int) -> Initializer:
    """The bias of (2)."""
    bound = fan_in**-0.5

    def draw(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


XAVIER = Init(nn.initializers.xavier_uniform(), zero_bias)
TORCH = Init(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), torch_bias)
ZERO = Init(nn.initializers.zeros, zero_bias)


def normal(std: float, bias: BiasInit = zero_bias) -> Init:
    """(4), or the same kernel with another bias."""
    return Init(nn.initializers.normal(std), bias)


def side_by_side(init: Init, parts: int) -> Init:
    """The start of `parts` layers of equal size that are computed as one, [C, parts * D]: each has the fan_out of its own."""
    def draw(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        own = (*shape[:-1], shape[-1] // parts)
        return jnp.concatenate([init.kernel(k, own, dtype) for k in jax.random.split(key, parts)], axis=-1)

    return Init(draw, init.bias)
