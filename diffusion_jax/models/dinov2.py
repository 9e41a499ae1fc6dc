"""DINOv2's vision transformer, whose class token FD-DINOv2 measures images by (Oquab et al. 2023, arXiv 2304.07193).

    h  = [cls, W patches] + pos                                                       (1)
    h  = h + g1 * attention(norm(h)),   h = h + g2 * mlp(norm(h))     depth times     (2)
    out = norm(h)[cls]                                                                (3)
    mlp(x) = W2 gelu(W1 x)    or    W3 (silu(a) b),  [a, b] = W12 x                   (4)

with learned vectors g1 and g2, LayerNorms of eps 1e-6 and an exact GELU. The second form of (4) is ViT-g's. Networks with
registers (2309.16588) have some learned tokens more between cls and the patches, without positions. ViT-L/14 at 224 x 224 sees
16 x 16 patches; it was trained with positions of a 37 x 37 grid, which pretrained/dinov2.py interpolates once, when the weights
are read.

All products are in full float32 on every backend, so that a distance does not depend on the machine.
"""
from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.types import Array, Params

EXACT = jax.lax.Precision.HIGHEST


class Dense(nn.Module):
    """A product with weights in full float32.

    Parameters: kernel [C, features], bias [features].
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., C] -> [..., features]."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return jnp.dot(x, kernel, precision=EXACT) + jnp.expand_dims(bias, range(x.ndim - 1))


class Block(nn.Module):
    """(2).

    Attributes:
      heads: a divisor of the width.
      gated: the width of a and b in (4); 0 for the first form.
    """

    heads: int
    gated: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        width = x.shape[-1]
        gains = [self.param(f"gain{i}", nn.initializers.ones, (width,), jnp.float32)[None, None] for i in (1, 2)]
        q, k, v = split_heads(Dense(3 * width, name="qkv")(layer_norm("norm1")(x)), 3, self.heads)      # [B, heads, T, d]
        scores = jnp.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k, precision=EXACT)
        seen = jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v, precision=EXACT)
        x = x + gains[0] * Dense(width, name="proj")(join_heads(seen))
        h = layer_norm("norm2")(x)
        if self.gated:
            a, b = jnp.split(Dense(2 * self.gated, name="w12")(h), 2, axis=-1)
            return x + gains[1] * Dense(width, name="w3")(jax.nn.silu(a) * b)
        h = jax.nn.gelu(Dense(4 * width, name="fc1")(h), approximate=False)
        return x + gains[1] * Dense(width, name="fc2")(h)


def layer_norm(name: str) -> nn.Module:
    """A LayerNorm with scale and bias."""
    return nn.LayerNorm(epsilon=1e-6, name=name)


class DINOv2(nn.Module):
    """The network.

    Attributes:
      width, depth, heads: 1024, 24 and 16 in ViT-L.
      patch: side of a patch.
      gated: the width of a and b in (4); 0 for the first form.
      registers: how many.

    Parameters: stem, cls [width], pos [1 + patches, width], registers [registers, width] where there are any, block_0 ..., norm.

    Example:
      params = diffusion_jax.pretrained.dinov2.load('dinov2_vitl14_pretrain.pth')
      DINOv2().apply({'params': params}, prepare_dinov2(images))                        # [B, 1024]
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch: int = 14
    gated: int = 0
    registers: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, 3], made by `data.resize.prepare_dinov2`, -> the class token [B, width].

        Raises:
          ConfigError: sides that patches do not divide.
        """
        b, height, width, _ = x.shape
        if height % self.patch or width % self.patch:
            raise ConfigError(f"DINOv2 sees patches of {self.patch}, which do not divide {height}x{width}: resize to 224x224")
        rows, columns = height // self.patch, width // self.patch
        h = x.astype(jnp.float32).reshape(b, rows, self.patch, columns, self.patch, -1).swapaxes(2, 3)
        h = Dense(self.width, name="stem")(h.reshape(b, rows * columns, -1))                       # [B, T, width]
        cls = self.param("cls", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        pos = self.param("pos", nn.initializers.normal(0.02), (1 + rows * columns, self.width), jnp.float32)
        h = jnp.concatenate([jnp.broadcast_to(cls[None, None], (b, 1, self.width)), h], axis=1) + pos[None]
        if self.registers:
            more = self.param("registers", nn.initializers.normal(1e-6), (self.registers, self.width), jnp.float32)
            more = jnp.broadcast_to(more[None], (b, *more.shape))
            h = jnp.concatenate([h[:, :1], more, h[:, 1:]], axis=1)
        for i in range(self.depth):
            h = Block(self.heads, self.gated, name=f"block_{i}")(h)
        return layer_norm("norm")(h[:, :1])[:, 0]


HEAD = 64
"""Channels of a head in all published sizes."""


def sized(params: Params) -> DINOv2:
    """The network of some parameters, of any size whose heads have 64 channels."""
    width, = params["cls"].shape
    blocks = [name for name in params if name.startswith("block_")]
    gated = params["block_0"]["w3"]["kernel"].shape[0] if "w3" in params["block_0"] else 0
    patch = round((params["stem"]["kernel"].shape[0] / 3) ** 0.5)
    registers = len(params["registers"]) if "registers" in params else 0
    return DINOv2(width, len(blocks), width // HEAD, patch, gated, registers)
