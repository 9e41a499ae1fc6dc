"""Magnitude-preserving layers: what goes in with unit variance comes out with unit variance (EDM2, Karras et al. 2312.02696).

With rms over some axes and eps = 1e-4,

    normalize(x)    = x / (rms(x) + eps)                                              (1)
    layer(x)        = gain normalize(W) x / sqrt(n),    rms over the n inputs of each output          (2)
    mp_silu(x)      = silu(x) / 0.596                                                 (3)
    mp_sum(a, b)    = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                       (4)
    mp_cat(a, b)    = sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(Na), t b / sqrt(Nb)]      (5)
    mp_fourier(c)   = sqrt(2) cos(c f + p)                                            (6)

Na and Nb are numbers of channels; f and p are drawn once, f of standard deviation 2 pi and p uniform on the circle.

The scale of W in (2) changes nothing, but its gradient shrinks as it grows. Forced normalisation, W <- normalize(W) after each
update, keeps the effective learning rate what the optimiser's schedule says (sec. 2.3).
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.nn.conv import convolve
from diffusion_jax.types import Array, Params

EPS = 1e-4
WEIGHT = "weight"  # the name of W, by which `normalize_weights` knows it


def normalize(x: Array, axis: int | tuple[int, ...] = -1) -> Array:
    """(1), the root mean square taken over `axis` in float32; in the type of x."""
    wide = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(wide), axis=axis, keepdims=True)
    rms = jnp.sqrt(jnp.maximum(square, 1e-30))  # at 0 the root has no derivative
    return (wide / (rms + EPS)).astype(x.dtype)


def normalize_weights(params: Params) -> Params:
    """Forced normalisation of every W of (2) in a tree of parameters; the others are left as they are."""

    def force(path: tuple, leaf: Array) -> Array:
        return normalize(leaf, tuple(range(leaf.ndim - 1))) if path[-1].key == WEIGHT else leaf

    return jax.tree_util.tree_map_with_path(force, params)


def mp_silu(x: Array) -> Array:
    """(3)."""
    return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: float = 0.5) -> Array:
    """(4): t is the share of b."""
    return (a + t * (b - a)) / ((1 - t) ** 2 + t**2) ** 0.5


def mp_cat(a: Array, b: Array, t: float = 0.5) -> Array:
    """(5) over the last axis: t is the share of b, whatever its number of channels."""
    channels = a.shape[-1], b.shape[-1]
    scale = (sum(channels) / ((1 - t) ** 2 + t**2)) ** 0.5
    return jnp.concatenate([a * (scale * (1 - t) / channels[0] ** 0.5), b * (scale * t / channels[1] ** 0.5)], axis=-1)


class MPLayer(nn.Module):
    """The linear layer or convolution (2), without bias.

    Attributes:
      features: channels of the output.
      size: side of the kernel; 1 is a linear layer over the last axis of any input.
      dtype: of the product and the output; the weights are normalised in float32.

    Parameters: weight [(size, size,) C, features] float32, drawn from N(0, 1).
    """

    features: int
    size: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        """x [..., C], [B, H, W, C] for size > 1 -> [..., features]; `gain` is a scalar."""
        kernel = (self.size, self.size) if self.size > 1 else ()
        weight = self.param(WEIGHT, nn.initializers.normal(1.0), (*kernel, x.shape[-1], self.features), jnp.float32)
        inputs = weight.size // self.features
        weight = (normalize(weight, tuple(range(weight.ndim - 1))) * (gain / inputs**0.5)).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.size > 1:
            return convolve((self.size // 2, self.size // 2), x, weight)
        return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], self.features)


class Fourier(nn.Module):
    """Random Fourier features (6) of a noise label.

    Attributes:
      features: how many.
      scale: the factor of the cosine: sqrt(2) preserves magnitude.

    Parameters: freqs, phases [features], which no gradient reaches.
    """

    features: int
    scale: float = 2**0.5

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        """noise [B] -> [B, features] float32."""
        freqs = self.param("freqs", nn.initializers.normal(2 * jnp.pi), (self.features,), jnp.float32)
        phases = self.param("phases", nn.initializers.uniform(2 * jnp.pi), (self.features,), jnp.float32)
        freqs, phases = jax.lax.stop_gradient((freqs, phases))
        return self.scale * jnp.cos(noise.astype(jnp.float32)[:, None] * freqs[None] + phases[None])
