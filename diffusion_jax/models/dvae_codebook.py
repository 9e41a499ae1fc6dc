"""The discrete VAE of DALLE-pytorch: strided convolutions around a table of code vectors.

    logits = W conv...(x),   x_hat = W' deconv...(sum_k z_k e_k)                      (1)

Encoder: `layers` convolutions 4x4 with stride 2 and ReLU, then residual blocks conv3-relu-conv3-relu-conv1, then a 1x1 one to the
codes. Decoder: the mirror image, with transposed convolutions; what it puts out is the image in [-1, 1] itself.
Layers start as PyTorch's do (nn/init.py), the table as N(0, 1).
"""
from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.conv import torch_conv
from diffusion_jax.nn.init import torch_bias
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.types import Array, Key


class Deconv(nn.Module):
    """The transpose of a 4x4 convolution with stride 2 and one zero around.

    Parameters: kernel [4, 4, C, features] as a convolution over the input with zeros in between would have it, bias [features].
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, 2H, 2W, features]."""
        kernel = self.param("kernel", _transposed, (4, 4, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", torch_bias(16 * self.features), (self.features,), jnp.float32)
        padding = ((2, 2), (2, 2))
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, (2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return out + bias[None, None, None]


def _transposed(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """A kernel [4, 4, C, features] as PyTorch starts that of a transposed convolution: by its outputs, not its inputs."""
    return torch_bias(16 * shape[-1])(key, shape, dtype)


class ResBlock(nn.Module):
    """x + conv1(relu(conv3(relu(conv3(x))))), all of one width."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> the same shape."""
        width = x.shape[-1]
        h = nn.relu(torch_conv(width, name="conv_1")(x))
        h = nn.relu(torch_conv(width, name="conv_2")(h))
        return x + torch_linear(width, name="conv_3")(h)


class Encoder(nn.Module):
    """The first half of (1)."""

    codes: int
    width: int
    layers: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, h, w, codes]."""
        for i in range(self.layers):
            x = nn.relu(torch_conv(self.width, 4, 2, name=f"down_{i}")(x))
        for i in range(self.blocks):
            x = ResBlock(name=f"block_{i}")(x)
        return torch_linear(self.codes, name="output")(x)


class Decoder(nn.Module):
    """The second half of (1)."""

    channels: int
    width: int
    layers: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, h, w, D] -> [B, H, W, C]."""
        if self.blocks:
            x = torch_linear(self.width, name="input")(x)
        for i in range(self.blocks):
            x = ResBlock(name=f"block_{i}")(x)
        for i in range(self.layers):
            x = nn.relu(Deconv(self.width, name=f"up_{i}")(x))
        return torch_linear(self.channels, name="output")(x)


class CodebookVAE(nn.Module):
    """The network (1), with the methods of `models.dvae:DVAE`.

    Attributes:
      codes, code_width: shape of the table e.
      width: channels of the convolutions.
      layers: halvings of the image.
      blocks: residual blocks.
      channels: of the image.

    Parameters: codebook, encoder, decoder.
    """

    codes: int = 512
    code_width: int = 512
    width: int = 64
    layers: int = 3
    blocks: int = 0
    channels: int = 3

    mapped = False                                     # its losses compare images with images

    @property
    def factor(self) -> int:
        """How many times fewer tokens than pixels there are along a side."""
        return 2**self.layers

    def setup(self):
        """The table and the two halves."""
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), (self.codes, self.code_width), jnp.float32)
        self.encoder = Encoder(self.codes, self.width, self.layers, self.blocks)
        self.decoder = Decoder(self.channels, self.width, self.layers, self.blocks)

    def __call__(self, x: Array) -> Array:
        """Both halves in a row, for initialisation: x [B, H, W, C] -> [B, H, W, C]."""
        return self.decode(nn.softmax(self.encode(x)))

    def encode(self, x: Array) -> Array:
        """Images [B, H, W, C] in [-1, 1] -> logits of the codes [B, h, w, codes]."""
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ConfigError(f"images of {x.shape[1:3]} do not divide into tokens of {self.factor}x{self.factor} pixels")
        return self.encoder(x)

    def decode(self, z: Array) -> Array:
        """A distribution over codes [B, h, w, codes] -> images [B, H, W, C], about [-1, 1]."""
        return self.decoder(z @ self.codebook)

    def pixels(self, out: Array) -> Array:
        """What `decode` gives, which is the image already."""
        return out
