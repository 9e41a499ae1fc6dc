"""Group normalisation (Wu & He 2018, arXiv 1803.08494) with an optional modulation, in float32 whatever the input.

With the channels cut into groups, mean and var taken over the pixels and channels of a group,

    y = (gamma (x - mean) / sqrt(var + eps) + beta) (1 + scale) + shift               (1)

computed as one multiplication and one addition for each element: everything else is folded into factors of shape [B, C].
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Array


class GroupNorm(nn.Module):
    """Normalisation (1) of images or tokens.

    Attributes:
      groups: a divisor of the channels.
      eps: added to the variance; 1e-5 in ADM, 1e-6 in DDPM.
      scale_init: initialiser of gamma.

    Parameters: scale [C] (gamma), bias [C] (beta), both float32.
    """

    groups: int = 32
    eps: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        """The normalised, modulated input.

        Args:
          x: [B, ..., C], any float type.
          scale, shift: [B, C] each, both or none: the modulation.

        Returns:
          Shape and type of x.

        Raises:
          ConfigError: the groups do not divide the channels.
        """
        channels = x.shape[-1]
        if channels % self.groups:
            raise ConfigError(f"{channels} channels do not divide into {self.groups} groups: change the width or the groups")
        gamma = self.param("scale", self.scale_init, (channels,), jnp.float32)[None]
        beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)[None]
        wide = x.astype(jnp.float32)
        mean = group_mean(wide, self.groups)  # [B, C]
        centred = wide - _spread(mean, x)
        var = group_mean(jnp.square(centred), self.groups)  # [B, C]
        factor, offset = gamma * jax.lax.rsqrt(var + self.eps), jnp.broadcast_to(beta, mean.shape)
        if scale is not None:
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
        return (centred * _spread(factor, x) + _spread(offset, x)).astype(x.dtype)


def group_mean(x: Array, groups: int) -> Array:
    """The mean over pixels and the channels of a group, repeated for each of its channels: [B, ..., C] -> [B, C]."""
    b, c = x.shape[0], x.shape[-1]
    mean = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))  # [B, C]: over pixels first, along contiguous channels
    mean = jnp.mean(mean.reshape(b, groups, c // groups), axis=-1)  # [B, G]
    return jnp.repeat(mean, c // groups, axis=-1)


def _spread(factor: Array, x: Array) -> Array:
    """[B, C] -> [B, 1, ..., C] of the rank of x."""
    return factor.reshape(factor.shape[0], *(1,) * (x.ndim - 2), factor.shape[-1])
