"""The patch discriminator of autoencoders (PatchGAN: Isola et al. 1611.07004; in the form of Esser et al. 2012.09841) and the
losses of generator and discriminator.

    h_0 = lrelu(conv(x)),   h_i = lrelu(norm(conv(h_{i-1}))),   logits = conv(h_n)                                   (1)

with kernels of 4 x 4 and slope 0.2; all but the last two convolutions halve the size. With D the logits of one patch,

    hinge     1/2 mean max(0, 1 - D(x)) + 1/2 mean max(0, 1 + D(x'))                                                 (2)
    vanilla   1/2 mean softplus(-D(x)) + 1/2 mean softplus(D(x'))                                                    (3)
    generator -mean D(x')                                                                                            (4)

norm is batch norm: y = gain (x - mean) / sqrt(var + 1e-5) + bias, over the batch and all pixels. With the statistics that were
seen on the way, `stats`, it is what the published code evaluates; without them, what it trains with.

Kernels start as N(0, 0.02^2), the gains of batch norms as N(1, 0.02^2), biases as PyTorch's (nn/init.py).
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.init import normal, torch_bias
from diffusion_jax.types import Array, Key

NORMS = ("batch", "act")
SLOPE, BATCH_EPS, MOMENTUM = 0.2, 1e-5, 0.1
STD = 0.02
_conv = partial(Conv, kernel_init=normal(STD).kernel, bias_init=torch_bias)
Stats = Mapping[str, Mapping[str, Array]]
"""Layer -> {'mean': [C], 'var': [C]}."""


class BatchNorm(nn.Module):
    """Normalisation over batch and pixels.

    Parameters: scale [C], bias [C], both float32.
    """

    @nn.compact
    def __call__(self, x: Array, stats: Mapping[str, Array] | None = None) -> tuple[Array, dict[str, Array]]:
        """x [B, H, W, C] -> (the same shape, mean and unbiased variance of x, each [C]); `stats` is used in their place."""
        scale = self.param("scale", _around_one, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.float32)
        mean, var = jnp.mean(wide, axis=(0, 1, 2)), jnp.var(wide, axis=(0, 1, 2))
        count = x.size // x.shape[-1]
        seen = jax.lax.stop_gradient({"mean": mean, "var": var * count / max(count - 1, 1)})
        if stats is not None:
            mean, var = stats["mean"], stats["var"]
        gain = scale * jax.lax.rsqrt(var + BATCH_EPS)
        return ((wide - mean[None, None, None]) * gain[None, None, None] + bias[None, None, None]).astype(x.dtype), seen


class ActNorm(nn.Module):
    """scale (x + loc), which the data may set once: see `statistics` (Kingma & Dhariwal 1807.03039).

    Parameters: scale [C], loc [C], both float32.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> the same shape."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        loc = self.param("loc", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return (scale[None, None, None] * (x.astype(jnp.float32) + loc[None, None, None])).astype(x.dtype)


class Discriminator(nn.Module):
    """The network (1).

    Attributes:
      width: channels of h_0; they double from layer to layer, up to 8 times.
      depth: n, how often the size is halved.
      norm: 'batch', or 'act' for layers that do not look at the batch, whose convolutions then have a bias.
      dtype: of the convolutions.
    """

    width: int = 64
    depth: int = 3
    norm: str = "batch"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, stats: Stats | None = None) -> tuple[Array, Stats]:
        """The logits of every patch, and what the batch norms saw.

        Args:
          x: [B, H, W, C].
          stats: what the batch norms use in place of the batch's own; None for that.

        Returns:
          (logits [B, h, w, 1] float32, {'norm_<i>': {'mean', 'var'}} without gradient, {} with norm 'act').

        Raises:
          ConfigError: an unknown norm.
        """
        if self.norm not in NORMS:
            raise ConfigError(f"unknown norm {self.norm!r}: {' or '.join(NORMS)}")
        seen: dict[str, dict[str, Array]] = {}
        h = nn.leaky_relu(_conv(self.width, 4, 2, dtype=self.dtype, name="conv_0")(x), SLOPE)
        for i in range(1, self.depth + 1):
            features, stride, name = self.width * min(2**i, 8), 2 if i < self.depth else 1, f"norm_{i}"
            h = _conv(features, 4, stride, dtype=self.dtype, use_bias=self.norm == "act", name=f"conv_{i}")(h)
            if self.norm == "act":
                h = ActNorm(name=name)(h)
            else:
                h, seen[name] = BatchNorm(name=name)(h, None if stats is None else stats[name])
            h = nn.leaky_relu(h, SLOPE)
        return _conv(1, 4, name="final_conv")(h.astype(jnp.float32)), seen


def _around_one(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """N(1, 0.02^2)."""
    return 1 + STD * jax.random.normal(key, shape, dtype)


def moved(stats: Stats, seen: Stats) -> Stats:
    """Running statistics after one more batch: 0.9 of the old and 0.1 of what was seen."""
    return jax.tree.map(lambda old, new: (1 - MOMENTUM) * old + MOMENTUM * new, stats, seen)


def fitted(x: Array) -> dict[str, Array]:
    """The parameters of an `ActNorm` under which x [B, H, W, C] has mean 0 and variance 1."""
    axes = (0, 1, 2)
    return {"loc": -jnp.mean(x, axis=axes), "scale": 1 / (jnp.std(x, axis=axes, ddof=1) + 1e-6)}


def started(weight: float, step: Array | int, start: int, ramp: int = 0) -> Array:
    """`weight` from step `start` on, 0 before; with `ramp` it grows in equal parts over so many steps."""
    done = jnp.asarray(step, jnp.float32) - start + 1
    return weight * jnp.clip(done / max(ramp, 1), 0, 1)


def hinge(real: Array, fake: Array, weight: Array | None = None) -> Array:
    """(2), a scalar, of the logits [B, h, w, 1] of both; `weight` [B] weights the images, 1 by default."""
    return _halves(jax.nn.relu(1 - real), jax.nn.relu(1 + fake), weight)


def vanilla(real: Array, fake: Array, weight: Array | None = None) -> Array:
    """(3), a scalar; see `hinge`."""
    return _halves(jax.nn.softplus(-real), jax.nn.softplus(fake), weight)


def generator(fake: Array) -> Array:
    """(4), a scalar."""
    return -jnp.mean(fake)


def _halves(real: Array, fake: Array, weight: Array | None) -> Array:
    """Half of the mean of both, the images weighted."""
    def mean(x: Array) -> Array:
        each = jnp.mean(x, axis=(1, 2, 3))
        return jnp.mean(each) if weight is None else jnp.sum(weight * each) / jnp.sum(weight)

    return 0.5 * (mean(real) + mean(fake))


LOSSES = {"hinge": hinge, "vanilla": vanilla}
