"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv 2102.12092, appendix A): images to a grid of tokens and back.

With x in [0, 1], z a one-hot (or its relaxation) over the codes at every place of the grid, and sigma the logistic function:

    x'        = 0.8 x + 0.1                                                           (1)
    logits    = encoder(x'),   decoder(z) = (mu, ln b)                                (2)
    ln p(x'|z) = -ln(2 b x' (1 - x')) - |logit(x') - mu| / b        logit-Laplace     (3)
    x_hat     = clip((sigma(mu) - 0.1) / 0.8, 0, 1)                                   (4)

Encoder: conv 7x7, then groups of residual blocks of width m * w for m in mults, each but the last followed by max pooling to half
the size, then ReLU and a 1x1 convolution to the codes. Decoder: a 1x1 convolution, the groups in reverse, each but the last
followed by doubling, then ReLU and a 1x1 convolution. A block is

    y = skip(x) + g conv(relu(conv(relu(conv(relu(conv(relu(x))))))))                 (5)      g = 1 / blocks^2

with inner width a quarter of the outer one and kernels 3, 3, 3, 1 in the encoder, 1, 3, 3, 3 in the decoder.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.resample import double
from diffusion_jax.types import Array

EDGE = 0.1                                             # of (1): logit(x') stays finite
FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


def map_pixels(x: Array) -> Array:
    """(1): [0, 1] to [0.1, 0.9]."""
    return (1 - 2 * EDGE) * x + EDGE


def unmap_pixels(x: Array) -> Array:
    """The inverse of (1), clipped to [0, 1]."""
    return jnp.clip((x - EDGE) / (1 - 2 * EDGE), 0, 1)


def logit_laplace(x: Array, mu: Array, log_b: Array) -> Array:
    """-ln p of (3), element by element: x in (0, 1), mu, ln b, all of one shape."""
    log_x, log_rest = jnp.log(x), jnp.log1p(-x)
    return math.log(2) + log_b + log_x + log_rest + jnp.abs(log_x - log_rest - mu) * jnp.exp(-log_b)


class ResBlock(nn.Module):
    """The block (5).

    Attributes:
      features: channels of the output.
      kernels: sizes of the four kernels.
      gain: g.
      dtype: of the convolutions.
    """

    features: int
    kernels: tuple[int, ...]
    gain: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H, W, features]."""
        h, widths = x, (self.features // 4,) * 3 + (self.features,)
        for i, (size, width) in enumerate(zip(self.kernels, widths, strict=True), 1):
            h = _conv(width, size, self.dtype, f"conv_{i}")(nn.relu(h))
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, self.dtype, "skip")(x)
        return x + self.gain * h


def _conv(features: int, size: int, dtype: str, name: str) -> nn.Module:
    """A convolution that keeps the size; one over single pixels is a linear layer."""
    if size == 1:
        return Linear(features, FAN_IN, dtype, name=name)
    return Conv(features, size, padding=(size // 2, size // 2), kernel_init=FAN_IN, dtype=dtype, name=name)


class Coder(nn.Module):
    """Encoder or decoder: a first convolution, groups of blocks with a change of size between them, a last convolution.

    Attributes:
      first: channels and kernel size of the first convolution.
      widths: channels of each group.
      depth: blocks in a group.
      kernels: of the blocks.
      resize: what lies between two groups.
      out: channels of the output.
      dtype: of the convolutions but for the last.
    """

    first: tuple[int, int]
    widths: Sequence[int]
    depth: int
    kernels: tuple[int, ...]
    resize: str
    out: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H', W', out] float32."""
        resize = double if self.resize == "up" else partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
        x = _conv(*self.first, self.dtype, "input")(x.astype(self.dtype))
        gain = 1 / (len(self.widths) * self.depth) ** 2
        for i, width in enumerate(self.widths, 1):
            for j in range(1, self.depth + 1):
                x = ResBlock(width, self.kernels, gain, self.dtype, name=f"group_{i}_block_{j}")(x)
            x = resize(x) if i < len(self.widths) else x
        return _conv(self.out, 1, "float32", "output")(nn.relu(x).astype(jnp.float32))


class DVAE(nn.Module):
    """The discrete VAE.

    Attributes:
      codes: the size of the codebook.
      width, mults: channels w and multipliers of the groups; images shrink 2^(len(mults) - 1) times.
      depth: blocks in a group.
      init_width: channels of the decoder's first convolution.
      channels: of the image.
      decoder_width, decoder_depth: w and blocks in a group of the decoder, where they differ from the encoder's.
      dtype: of all convolutions but the last.

    Parameters: encoder, decoder.
    """

    codes: int = 8192
    width: int = 256
    mults: Sequence[int] = (1, 2, 4, 8)
    depth: int = 2
    init_width: int = 128
    channels: int = 3
    dtype: str = "float32"
    decoder_width: int | None = None
    decoder_depth: int | None = None

    mapped = True                                      # its losses are those of x' and (mu, ln b)

    @property
    def factor(self) -> int:
        """How many times fewer tokens than pixels there are along a side."""
        return 2 ** (len(self.mults) - 1)

    def setup(self):
        """The two halves."""
        width, depth = self.decoder_width or self.width, self.decoder_depth or self.depth
        for value in (self.width, width):
            if value % 4:
                raise ConfigError(f"a width of {value} is no multiple of 4")
        down, up = (tuple(value * mult for mult in self.mults) for value in (self.width, width))
        self.encoder = Coder((self.width, 7), down, self.depth, (3, 3, 3, 1), "down", self.codes, self.dtype)
        self.decoder = Coder((self.init_width, 1), up[::-1], depth, (1, 3, 3, 3), "up", 2 * self.channels, self.dtype)

    def __call__(self, x: Array) -> Array:
        """Both halves in a row, for initialisation: x [B, H, W, C] -> [B, H, W, 2 C]."""
        return self.decode(nn.softmax(self.encode(x)))

    def encode(self, x: Array) -> Array:
        """Images [B, H, W, C] in [-1, 1] -> logits of the codes [B, h, w, codes]."""
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ConfigError(f"images of {x.shape[1:3]} do not divide into tokens of {self.factor}x{self.factor} pixels")
        return self.encoder(map_pixels((x + 1) / 2))

    def decode(self, z: Array) -> Array:
        """A distribution over codes [B, h, w, codes] -> (mu, ln b) [B, H, W, 2 C]."""
        return self.decoder(z)

    def pixels(self, stats: Array) -> Array:
        """(4) of what `decode` gives: images [B, H, W, C] in [-1, 1]."""
        mu, _ = jnp.split(stats, 2, axis=-1)
        return 2 * unmap_pixels(jax.nn.sigmoid(mu)) - 1

    def nll(self, x: Array, stats: Array) -> Array:
        """-ln p(x'|z) by (3) of images [B, H, W, C] in [-1, 1], per element."""
        return logit_laplace(map_pixels((x + 1) / 2), *jnp.split(stats, 2, axis=-1))
