"""The tiny autoencoders of madebyollin/taesd: the latents of a large autoencoder and its images, by a few convolutions.

    block     x' = relu(x + conv(relu(conv(relu(conv(x))))))                                                         (1)
    pool      x + Q relu(norm(P x)), norm over groups of channels and all pixels, before (1) on the smallest level   (2)
    encoder   conv, a block, on each further level half the size and `depth` blocks, conv                            (3)
    decoder   3 tanh(u / 3), conv, relu, on each level but the first, in reverse, `depth` blocks, twice the size
              and a conv, a block, conv                                                                              (4)

The network sees images in [0, 1]; here they are in [-1, 1] as everywhere. Its latents u are those that a diffusion model sees.
The large autoencoder, which it imitates, makes z:

    u = (z - shift) scale                                                                                            (5)

and z is what `encode` gives and `decode` takes, so that the one can stand in the other's place, with the same scale of the task.
A latent is a point: nothing is drawn. Without a pool a pixel depends on those around it alone, so that tiles show no seams.
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.models.vae import Posterior
from diffusion_jax.nn.conv import torch_conv
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.resample import double
from diffusion_jax.types import Array, Key

LARGEST = 3.0
"""What no latent exceeds inside the decoder, (4)."""
GROUPS, WIDER = 4, 4
"""Of the pool: groups of its norm, and how much wider than the block it is."""


class Block(nn.Module):
    """(1), and before it (2).

    Attributes:
      pool: whether it has (2).
    """

    pool: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, D] -> [B, H, W, D]."""
        width = x.shape[-1]
        if self.pool:
            h = torch_linear(WIDER * width, use_bias=False, name="pool_in")(x)
            h = nn.relu(GroupNorm(GROUPS, name="pool_norm")(h))
            x = x + torch_linear(width, use_bias=False, name="pool_out")(h)
        h = nn.relu(torch_conv(width, name="conv1")(x))
        h = nn.relu(torch_conv(width, name="conv2")(h))
        return nn.relu(x + torch_conv(width, name="conv3")(h))


class Encoder(nn.Module):
    """(3).

    Attributes:
      features: channels of the output.
      width, levels, depth, pool: see `TAE`.
    """

    features: int
    width: int
    levels: int
    depth: int
    pool: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] in [0, 1] -> u [B, H/f, W/f, features]."""
        h = Block(name="down_0_res_0")(torch_conv(self.width, name="stem")(x))
        for level in range(1, self.levels + 1):
            h = torch_conv(self.width, stride=2, use_bias=False, name=f"down_{level - 1}_resize")(h)
            for i in range(self.depth):
                h = Block(self.pool and level == self.levels, name=f"down_{level}_res_{i}")(h)
        return torch_conv(self.features, name="final_conv")(h)


class Decoder(nn.Module):
    """(4).

    Attributes:
      features: channels of the output.
      width, levels, depth, pool: see `TAE`.
    """

    features: int
    width: int
    levels: int
    depth: int
    pool: bool

    @nn.compact
    def __call__(self, u: Array) -> Array:
        """u [B, h, w, C] -> [B, f h, f w, features], about [0, 1]."""
        h = nn.relu(torch_conv(self.width, name="stem")(LARGEST * jnp.tanh(u / LARGEST)))
        for level in range(self.levels, 0, -1):
            for i in range(self.depth):
                h = Block(self.pool and level == self.levels, name=f"up_{level}_res_{i}")(h)
            h = torch_conv(self.width, use_bias=False, name=f"up_{level}_resize")(double(h))
        return torch_conv(self.features, name="final_conv")(Block(name="up_0_res_0")(h))


class TAE(nn.Module):
    """A tiny autoencoder, which comes trained (pretrained/tae.py). The defaults are TAESD's network.

    Attributes:
      channels: of the image.
      latent: channels of the latent.
      width: channels of all layers between.
      levels: how often the size is halved.
      depth: blocks on each level but the first, which has one.
      pool: whether the blocks of the smallest level have (2), as TAEF2's.
      scale, shift: of (5).

    Example:
      tae = TAE(latent=32, pool=True)                                           # TAEF2
      params = tae.init(key, x)['params']                                       # x [B, 256, 256, 3] in [-1, 1]
      z = tae.apply({'params': params}, x, method='encode').mean                # [B, 32, 32, 32]
      x = tae.apply({'params': params}, z, method='decode')                     # [B, 256, 256, 3]
    """

    channels: int = 3
    latent: int = 4
    width: int = 64
    levels: int = 3
    depth: int = 3
    pool: bool = False
    scale: float = 1.0
    shift: float = 0.0

    def setup(self) -> None:
        if not self.scale:
            raise ConfigError("scale of a TAE divides its latents: give another number than 0")
        shared = self.width, self.levels, self.depth, self.pool
        self.encoder, self.decoder = Encoder(self.latent, *shared), Decoder(self.channels, *shared)

    @property
    def factor(self) -> int:
        """How many times smaller a latent is than its image, f."""
        return 2**self.levels

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(h, w, C) of the latent of an image.

        Raises:
          ConfigError: the sides are no multiples of `factor`.
        """
        if height % self.factor or width % self.factor:
            raise ConfigError(f"an image of {height}x{width} is no multiple of this autoencoder's {self.factor}: resize it")
        return height // self.factor, width // self.factor, self.latent

    def __call__(self, x: Array) -> Array:
        """The reconstruction of x [B, H, W, C]."""
        return self.decode(self.encode(x).mean)

    def encode(self, x: Array) -> Posterior:
        """x [B, H, W, C] in [-1, 1] -> z of (5) [B, h, w, latent], as a point.

        Raises:
          ConfigError: H or W is no multiple of `factor`.
        """
        self.latent_shape(*x.shape[1:3])
        z = self.encoder((x + 1) / 2) / self.scale + self.shift
        return Posterior(z, jnp.full_like(z, -jnp.inf))

    def decode(self, z: Array) -> Array:
        """z of (5) [B, h, w, latent] -> [B, H, W, C], about [-1, 1]."""
        return 2 * self.decoder((z - self.shift) * self.scale) - 1

    def train(self, x: Array, key: Key) -> tuple[Array, Array, dict[str, Array]]:
        """What an autoencoder of models/vae.py is trained on.

        Raises:
          ConfigError: always. A TAE learns to imitate another autoencoder, for which there is no task.
        """
        raise ConfigError("a TAE comes trained and is not trained here: leave out losses of its task, or train a KL")
