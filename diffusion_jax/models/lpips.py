"""LPIPS, a perceptual distance (Zhang et al. 1801.03924): VGG-16 features of two images, compared channel by channel.

With F_k the features of x after the last layer of stage k = 1 ... 5, each pixel's channels scaled to unit length,

    u_k(x) = F_k(x) / (|F_k(x)| + 1e-10)                                                                             (1)
    d(x, y) = sum_k mean over pixels of w_k . (u_k(x) - u_k(y))^2,      w_k >= 0                                     (2)

Stage k is a max pool over 2 x 2 pixels (but for the first) and 2, 2, 3, 3, 3 times relu(conv), of 64, 128, 256, 512 and 512
channels. Images in [-1, 1] are first brought to the mean and spread that VGG was trained with.

The weights of VGG and w_k are the user's (pretrained/perceptual.py). Without them the same network with drawn weights still
measures a distance that sees more than pixels do; the task that trains with it logs it as 'untrained_features', never as LPIPS.
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.conv import Conv
from diffusion_jax.types import Array

LAYERS = (2, 2, 3, 3, 3)
MULTS = (1, 2, 4, 8, 8)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10
SMALLEST = 16


class VGG(nn.Module):
    """The features of VGG-16.

    Attributes:
      width: channels of the first stage.
      dtype: of the convolutions.

    Parameters: stage_<k>_conv_<i>.
    """

    width: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """F_1 ... F_5 of x [B, H, W, C], each [B, h, w, C_k]."""
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        h = (x - jnp.asarray(SHIFT)[None, None, None]) / jnp.asarray(SCALE)[None, None, None]
        found = []
        for k, (layers, mult) in enumerate(zip(LAYERS, MULTS, strict=True), 1):
            h = nn.max_pool(h, (2, 2), (2, 2)) if k > 1 else h
            for i in range(layers):
                init = nn.initializers.he_normal()
                h = nn.relu(Conv(self.width * mult, kernel_init=init, dtype=self.dtype, name=f"stage_{k}_conv_{i}")(h))
            found.append(h)
        return found


class LPIPS(nn.Module):
    """The distance (2).

    Attributes:
      width: channels of the first stage; 64 in VGG-16.
      dtype: of the convolutions.

    Parameters: vgg, and w_<k> [C].

    Example:
      >>> model = LPIPS()
      >>> params = pretrained.perceptual.load('vgg.pth,vgg16-397923af.pth')[1]['model']
      >>> model.apply({'params': params}, x, y)                                     # [B]; x, y [B, H, W, 3] in [-1, 1]
    """

    width: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """d(x, y) [B] float32 for x, y [B, H, W, C] in [-1, 1]; one channel counts as grey.

        Raises:
          ConfigError: images that are too small for five stages, or with other than 1 or 3 channels.
        """
        if x.shape[-1] not in (1, 3) or min(x.shape[1:3]) < SMALLEST:
            raise ConfigError(f"LPIPS compares images of 1 or 3 channels and {SMALLEST} pixels or more, not {x.shape[1:]}")
        total = jnp.zeros(len(x))
        for k, f in enumerate(VGG(self.width, self.dtype, name="vgg")(jnp.concatenate([x, y])), 1):
            f = f.astype(jnp.float32)
            unit = f / (_length(f) + EPS)
            a, b = jnp.split(unit, 2)
            w = self.param(f"w_{k}", nn.initializers.constant(1 / f.shape[-1]), f.shape[-1:], jnp.float32)
            total = total + jnp.mean(jnp.square(a - b) @ w, axis=(1, 2))
        return total


def _length(f: Array) -> Array:
    """|f| over the channels, [B, h, w, 1]; its gradient at 0 is 0."""
    square = jnp.sum(jnp.square(f), axis=-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
