"""The classifier of noised images that guides a diffusion model (Dhariwal & Nichol 2021, arXiv 2105.05233, section 4).

The first half of the UNet (models/unet.py, (1) to (5)) and one of four ways to read a label off its output h:

    adaptive     W mean_pixels(silu(norm(h)))                                         (1)
    attention    W attention(q, k, v)_0,   q, k, v = W' ([mean_pixels(y), y] + position),   y = silu(norm(h))       (2)
    spatial      MLP([mean_pixels(h') for every h' that the UNet would keep, and h]), with a ReLU                   (3)
    spatial_v2   the same with norm and SiLU                                                                        (4)

log p(y | x_t) is the log-softmax of what comes out; its gradient by x_t guides (diffusion/guidance.py).
"""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.unet import Backbone, of_level
from diffusion_jax.nn.attention import attention
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import TORCH, Init
from diffusion_jax.nn.linear import Linear
from diffusion_jax.types import Array

POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
HIDDEN = 2048


class AttentionPool(nn.Module):
    """What the mean of all pixels attends to, (2) after y; CLIP's ResNets pool so too.

    Attributes:
      head_channels: channels of a head.
      features: width of the output.
      start: how the layers start.

    Parameters: position [H * W + 1, C] for the size of the image that initialises it, qkv, proj.
    """

    head_channels: int
    features: int
    start: Init = TORCH

    @nn.compact
    def __call__(self, x: Array, penultimate: bool = False) -> Array:
        """x [B, H, W, C] -> [B, features], [B, C] before the last layer.

        Raises:
          ConfigError: the image has another size than the table.
        """
        b, height, width, c = x.shape
        tokens = x.reshape(b, height * width, c)
        tokens = jnp.concatenate([jnp.mean(tokens, axis=1, keepdims=True), tokens], axis=1)  # [B, T, C]
        if self.has_variable("params", "position"):
            pixels = nn.unbox(self.get_variable("params", "position")).shape[0] - 1
            if pixels != height * width:
                raise ConfigError(f"this classifier pools {pixels} pixels, not {height}x{width}: give it images of its own size")
        position = self.param("position", nn.initializers.normal(c**-0.5), tokens.shape[1:], jnp.float32)
        linear = partial(Linear, kernel_init=self.start.kernel, bias_init=self.start.bias)
        qkv = linear(3 * c, name="qkv")(tokens + position[None])
        qkv = qkv.reshape(b, -1, 3, c // self.head_channels, self.head_channels)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        h = attention(q[:, :, :1], k, v).reshape(b, c)
        return h if penultimate else linear(self.features, name="proj")(h)


class Classifier(Backbone):
    """The classifier.

    Attributes:
      num_classes: width of the output.
      pool: 'adaptive' (1), 'attention' (2), 'spatial' (3) or 'spatial_v2' (4).

    and those of `Backbone`.

    Example:
      model = Classifier(**preset('adm-imagenet64'))
      model.apply({'params': params}, x, noise)                     # x [B, 64, 64, 3], noise [B] -> [B, 1000]
    """

    num_classes: int = 1000
    pool: str = "attention"

    @nn.compact
    def __call__(self, x: Array, noise: Array, penultimate: bool = False) -> Array:
        """The logits.

        Args:
          x: [B, H, W, C], the noised image.
          noise: [B], the DDPM step 0 ... 999; may be fractional.
          penultimate: return what the last layer sees in place of the logits: features for measuring images.

        Returns:
          [B, num_classes] float32, [B, D] with `penultimate`.

        Raises:
          ConfigError: a size that does not divide or an unknown option.
        """
        self._check(x, {})
        if self.pool not in POOLS:
            raise unknown("pool", self.pool, POOLS)
        h, kept = self._down(x, self._time(noise), {})
        if self.pool in ("spatial", "spatial_v2"):
            return self._read([*kept, h], penultimate)
        y = nn.silu(GroupNorm(self.groups, self._eps, name="final_norm")(h.astype(jnp.float32)))
        if self.pool == "adaptive":
            h = jnp.mean(y, axis=(1, 2))
            return h if penultimate else Linear(self.num_classes, nn.initializers.zeros, name="final_linear")(h)
        size = y.shape[-1] // self.heads_for(y.shape[-1], of_level(self.heads, -1))
        return AttentionPool(size, self.num_classes, name="pool_attn")(y, penultimate)

    def _read(self, features: list[Array], penultimate: bool) -> Array:
        """(3) and (4)."""
        means = jnp.concatenate([jnp.mean(h.astype(jnp.float32), axis=(1, 2)) for h in features], axis=-1)
        linear = partial(Linear, kernel_init=self._init.kernel, bias_init=self._init.bias)
        h = linear(HIDDEN, name="hidden")(means)
        h = nn.relu(h) if self.pool == "spatial" else nn.silu(GroupNorm(self.groups, self._eps, name="final_norm")(h))
        return h if penultimate else linear(self.num_classes, name="final_linear")(h)


_256, _512 = (1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4)
PRESETS = {
    # Side of the image in pixels. FID-50K of the diffusion model of that size with this guide, arXiv 2105.05233, table 5.
    "adm-imagenet64":  {"size": 64,  "mults": (1, 2, 3, 4), "depth": 4},
    "adm-imagenet128": {"size": 128, "mults": (1, 1, 2, 3, 4), "depth": 2},  # 2.97
    "adm-imagenet256": {"size": 256, "mults": _256, "depth": 2},             # 4.59
    "adm-imagenet512": {"size": 512, "mults": _512, "depth": 2},             # 7.72
}


def preset(name: str) -> dict[str, Any]:
    """The options of a published classifier, 'adm-imagenet256' for example.

    Raises:
      ConfigError: no such network; names the nearest.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    options = dict(PRESETS[name])
    size = options.pop("size")
    return {"width": 128, "head_channels": 64, "attend": tuple(size // side for side in (32, 16, 8))} | options
