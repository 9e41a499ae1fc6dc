"""The autoencoders of latent diffusion (Rombach et al. 2112.10752; Esser et al. 2012.09841): the first stage that turns an image
into a small one, and back.

    encoder   conv, on each level `depth` residual blocks then half the size, middle, norm, silu, conv               (1)
    decoder   conv, middle, on each level, in reverse, depth + 1 residual blocks then twice the size, norm, silu, conv     (2)

with attention in the middle and on the levels that attend. Between them lies, with linear maps W and V over the channels,

    KL    mean, logvar = W encoder(x),   z = mean + exp(logvar / 2) eps,   x' = decoder(V z)                         (3)
          kl = 1/2 sum(mean^2 + exp(logvar) - 1 - logvar)                                                            (4)
    VQ    h = W encoder(x),   z = e_k,  k = argmin_i |h - e_i|^2,   x' = decoder(V z)                                (5)
          loss = mean |sg(h) - z|^2 + beta mean |h - sg(z)|^2,   dz/dh = 1                                           (6)

sg stops the gradient. The published code of (6) has beta on the other term (`legacy`). The latent that a diffusion model sees is
z of (3), and h of (5), so that quantising is the decoder's first act.

Layers start as PyTorch's do, the last ones of blocks too (nn/init.py).
"""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.unet_blocks import DTYPES, RESIZE, ResBlock
from diffusion_jax.nn.attention import attention
from diffusion_jax.nn.conv import torch_conv
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import TORCH
from diffusion_jax.nn.linear import torch_linear
from diffusion_jax.nn.resample import double
from diffusion_jax.types import Array, Key

EPS = 1e-6
LOGVAR = (-30.0, 20.0)
RESAMPLE = ("conv", "pool")


@flax.struct.dataclass
class Posterior:
    """A diagonal normal distribution over latents.

    Attributes:
      mean, logvar: [B, h, w, C] float32; a logvar of -inf is a point.
    """

    mean: Array
    logvar: Array

    @property
    def std(self) -> Array:
        """[B, h, w, C]."""
        return jnp.exp(0.5 * self.logvar)

    def sample(self, eps: Array) -> Array:
        """z of (3) for standard normal eps, [B, h, w, C]."""
        return self.mean + self.std * eps

    def kl(self) -> Array:
        """(4), the divergence from N(0, 1) in nats, [B]."""
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))

    def nll(self, z: Array) -> Array:
        """-log p(z) in nats for z [B, h, w, C], [B]."""
        terms = jnp.log(2 * jnp.pi) + self.logvar + jnp.square(z - self.mean) * jnp.exp(-self.logvar)
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


@flax.struct.dataclass
class Quantized:
    """What (5) and (6) make of h.

    Attributes:
      z: [B, h, w, C]; its gradient passes straight on to h.
      index: [B, h, w] int32, k of (5).
      loss: (6), a scalar.
    """

    z: Array
    index: Array
    loss: Array


class Attention(nn.Module):
    """Attention of one head over all pixels: x + P attention(q, k, v), q, k, v each a map of norm(x).

    Attributes:
      groups: of the norm.
      dtype: of the products and the output.
    """

    groups: int = 32
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H, W, C]."""
        b, height, width, c = x.shape
        h = GroupNorm(self.groups, EPS, name="norm")(x).reshape(b, 1, height * width, c)
        q, k, v = (torch_linear(c, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))          # [B, 1, T, C]
        return x + torch_linear(c, dtype=self.dtype, name="proj")(attention(q, k, v)).reshape(x.shape)


class Stage(nn.Module):
    """What encoder and decoder share.

    Attributes:
      features: channels of the output.
      width: channels of the first level, before its multiple.
      mults: channels of each level over width; may be fractions.
      depth: residual blocks on each level.
      attend: the levels that attend, each by the factor by which its images are smaller: 1, 2, 4 ...
      mid_attention: whether the middle attends.
      resample: how the size changes: 'conv', by a strided convolution or one after doubling, or 'pool', by means and copies.
      dropout: rate within the residual blocks; acts where a key named 'dropout' is given.
      groups: of every norm; divides all channels.
      dtype: of the blocks: 'float32' or 'bfloat16'. Parameters, norms and the last layer are float32.
    """

    features: int
    width: int
    mults: tuple[float, ...]
    depth: int
    attend: tuple[int, ...]
    mid_attention: bool
    resample: str
    dropout: float
    groups: int
    dtype: str

    def _res(self, name: str, level: int, x: Array) -> Array:
        options = None, False, self.dropout, self.groups, EPS, self.dtype, TORCH, TORCH
        return ResBlock(round(self.width * self.mults[level]), *options, name=name)(x)

    def _attn(self, name: str, x: Array) -> Array:
        return Attention(self.groups, self.dtype, name=name)(x)

    def _middle(self, x: Array) -> Array:
        x = self._res("mid_res_0", -1, x)
        x = self._attn("mid_attn", x) if self.mid_attention else x
        return self._res("mid_res_1", -1, x)

    def _last(self, x: Array) -> Array:
        """The features that the last convolution sees."""
        return nn.silu(GroupNorm(self.groups, EPS, name="final_norm")(x.astype(jnp.float32)))


class Encoder(Stage):
    """(1)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, H, W, C] -> [B, H/f, W/f, features] float32."""
        h, last = torch_conv(self.width, dtype=self.dtype, name="stem")(x), len(self.mults) - 1
        for level in range(last + 1):
            for i in range(self.depth):
                h = self._res(f"down_{level}_res_{i}", level, h)
                h = self._attn(f"down_{level}_attn_{i}", h) if 2**level in self.attend else h
            if level < last:
                shrink = partial(torch_conv, h.shape[-1], 3, 2, (0, 1), dtype=self.dtype, name=f"down_{level}_resize")
                h = shrink()(h) if self.resample == "conv" else RESIZE["down"](h)
        return torch_conv(self.features, name="final_conv")(self._last(self._middle(h)))


class Decoder(Stage):
    """(2), in two parts: everything but the last convolution, and that."""

    @nn.compact
    def __call__(self, z: Array) -> tuple[Array, Array]:
        """z [B, h, w, C] -> (image [B, H, W, features], what the last convolution saw of it [B, H, W, D]), float32."""
        h = torch_conv(round(self.width * self.mults[-1]), dtype=self.dtype, name="stem")(z)
        h = self._middle(h)
        for level in reversed(range(len(self.mults))):
            for i in range(self.depth + 1):
                h = self._res(f"up_{level}_res_{i}", level, h)
                h = self._attn(f"up_{level}_attn_{i}", h) if 2**level in self.attend else h
            if level:
                h = double(h)
                h = torch_conv(h.shape[-1], dtype=self.dtype, name=f"up_{level}_resize")(h) if self.resample == "conv" else h
        seen = self._last(h)
        return torch_conv(self.features, name="final_conv")(seen), seen


class Autoencoder(nn.Module):
    """What both autoencoders share.

    Attributes:
      channels: of the image.
      latent: channels of the latent that a diffusion model sees.
      inner: channels between encoder and decoder and the maps W and V; None for `latent`.

    and those of `Stage`.
    """

    channels: int = 3
    latent: int = 4
    inner: int | None = None
    width: int = 128
    mults: tuple[float, ...] = (1, 2, 4, 4)
    depth: int = 2
    attend: tuple[int, ...] = ()
    mid_attention: bool = True
    resample: str = "conv"
    dropout: float = 0.0
    groups: int = 32
    dtype: str = "float32"

    @property
    def factor(self) -> int:
        """How many times smaller a latent is than its image, f."""
        return 2 ** (len(self.mults) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(h, w, C) of the latent of an image.

        Raises:
          ConfigError: the sides are no multiples of `factor`.
        """
        if height % self.factor or width % self.factor:
            raise ConfigError(f"an image of {height}x{width} is no multiple of this autoencoder's {self.factor}: resize it")
        return height // self.factor, width // self.factor, self.latent

    def _stages(self, encoded: int) -> tuple[nn.Module, nn.Module]:
        """The encoder, of `encoded` channels, and the decoder."""
        for kind, got, known in (("dtype", self.dtype, DTYPES), ("resample", self.resample, RESAMPLE)):
            if got not in known:
                raise unknown(kind, got, known)
        shared = (self.width, tuple(self.mults), self.depth, tuple(self.attend), self.mid_attention, self.resample, self.dropout,
                  self.groups, self.dtype)
        return Encoder(encoded, *shared), Decoder(self.channels, *shared)


class KL(Autoencoder):
    """The autoencoder (3) of Stable Diffusion.

    Attributes: those of `Autoencoder`.

    Example:
      vae = KL(**preset('sd'))
      params = vae.init(key, x)['params']                                       # x [B, 256, 256, 3] in [-1, 1]
      z = vae.apply({'params': params}, x, method='encode').sample(eps)         # [B, 32, 32, 4]
      x = vae.apply({'params': params}, z, method='decode')                     # [B, 256, 256, 3]
    """

    def setup(self) -> None:
        inner = self.inner or self.latent
        self.encoder, self.decoder = self._stages(2 * inner)
        self.quant, self.post_quant = torch_linear(2 * self.latent), torch_linear(inner)

    def __call__(self, x: Array) -> Array:
        """The reconstruction of x [B, H, W, C] through the mean latent."""
        return self.decode(self.encode(x).mean)

    def encode(self, x: Array) -> Posterior:
        """x [B, H, W, C] in [-1, 1] -> the distribution of its latent [B, h, w, latent].

        Raises:
          ConfigError: H or W is no multiple of `factor`.
        """
        self.latent_shape(*x.shape[1:3])
        mean, logvar = jnp.split(self.quant(self.encoder(x)), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *LOGVAR))

    def decode(self, z: Array) -> Array:
        """z [B, h, w, latent] -> [B, H, W, C], about [-1, 1]."""
        return self.draw(z)[0]

    def draw(self, z: Array) -> tuple[Array, Array]:
        """What `decode` gives, and what the decoder's last convolution saw of it, [B, H, W, D]."""
        return self.decoder(self.post_quant(z))

    def train(self, x: Array, key: Key) -> tuple[Array, Array, dict[str, Array]]:
        """The reconstruction from a drawn latent, what the last convolution saw, and {'kl': [B]} of (4)."""
        posterior = self.encode(x)
        z = posterior.sample(jax.random.normal(key, posterior.mean.shape))
        return *self.draw(z), {"kl": posterior.kl()}


class VQ(Autoencoder):
    """The autoencoder (5), whose latents are rows of a codebook.

    Attributes:
      codes: rows of the codebook.
      beta: weight of the commitment in (6).
      legacy: beta on the other term of (6), as in the published code.

    and those of `Autoencoder`.
    """

    latent: int = 3
    mults: tuple[float, ...] = (1, 2, 4)
    codes: int = 8192
    beta: float = 0.25
    legacy: bool = False

    def setup(self) -> None:
        inner = self.inner or self.latent
        self.encoder, self.decoder = self._stages(inner)
        self.quant, self.post_quant = torch_linear(self.latent), torch_linear(inner)
        self.codebook = self.param("codebook", _spread, (self.codes, self.latent), jnp.float32)

    def __call__(self, x: Array) -> Array:
        """The reconstruction of x [B, H, W, C]."""
        return self.decode(self.encode(x).mean)

    def encode(self, x: Array) -> Posterior:
        """x [B, H, W, C] in [-1, 1] -> h of (5) [B, h, w, latent], not yet quantised, as a point.

        Raises:
          ConfigError: H or W is no multiple of `factor`.
        """
        self.latent_shape(*x.shape[1:3])
        h = self.quant(self.encoder(x))
        return Posterior(h, jnp.full_like(h, -jnp.inf))

    def distances(self, h: Array) -> Array:
        """|h - e_i|^2, [B, h, w, codes]."""
        square = jnp.sum(jnp.square(self.codebook), axis=1)
        return jnp.sum(jnp.square(h), axis=-1, keepdims=True) + square[None, None, None] - 2 * h @ self.codebook.T

    def quantize(self, h: Array) -> Quantized:
        """(5) and (6) for h [B, h, w, latent]."""
        index = jnp.argmin(self.distances(h), axis=-1).astype(jnp.int32)
        z, stop = self.lookup(index), jax.lax.stop_gradient
        moved, kept = jnp.mean(jnp.square(stop(h) - z)), jnp.mean(jnp.square(h - stop(z)))
        loss = kept + self.beta * moved if self.legacy else moved + self.beta * kept
        return Quantized(h + stop(z - h), index, loss)

    def lookup(self, index: Array) -> Array:
        """e_k for k [B, h, w] -> [B, h, w, latent]; NaN for a code that is not there."""
        return jnp.take(self.codebook, index, axis=0, mode="fill", fill_value=jnp.nan)

    def decode(self, h: Array) -> Array:
        """h [B, h, w, latent], quantised first -> [B, H, W, C], about [-1, 1]."""
        return self.draw(self.quantize(h).z)[0]

    def draw(self, z: Array) -> tuple[Array, Array]:
        """What the decoder makes of z as it is, and what its last convolution saw of it, [B, H, W, D]."""
        return self.decoder(self.post_quant(z))

    def train(self, x: Array, key: Key) -> tuple[Array, Array, dict[str, Array]]:
        """The reconstruction, what the last convolution saw, and {'codebook': (6), 'index': k [B, h, w]}."""
        quantized = self.quantize(self.encode(x).mean)
        return *self.draw(quantized.z), {"codebook": quantized.loss, "index": quantized.index}


def _spread(key: Key, shape: tuple[int, int], dtype: Any) -> Array:
    """Codes uniform in a cube of side 2 / codes."""
    return jax.random.uniform(key, shape, dtype, -1 / shape[0], 1 / shape[0])


_F4, _F8, _F16, _F32 = (1, 2, 4), (1, 2, 2, 4), (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4)
PRESETS = {
    # Channels of the latent, levels, levels that attend; at the end rFID of 256 x 256 images as published with the weights.
    "sd":           {"latent": 4, "mults": (1, 2, 4, 4)},                                                  # Stable Diffusion 1, 2
    "kl-f4":        {"latent": 3, "mults": _F4},                                                           # 0.27
    "kl-f8":        {"latent": 4, "mults": (1, 2, 4, 4)},                                                  # 0.90
    "kl-f16":       {"latent": 16, "mults": _F16, "attend": (16,)},                                        # 0.87
    "kl-f32":       {"latent": 64, "mults": _F32, "attend": (16, 32)},                                     # 2.04
    "vq-f4":        {"latent": 3, "mults": _F4, "codes": 8192},                                            # 0.58
    "vq-f4-noattn": {"latent": 3, "mults": _F4, "codes": 8192, "mid_attention": False},                    # 1.06
    "vq-f8":        {"latent": 4, "mults": _F8, "codes": 16384, "attend": (8,)},                           # 1.14
    "vq-f8-n256":   {"latent": 4, "mults": _F8, "codes": 256, "attend": (8,)},                             # 1.49
    "vq-f16":       {"latent": 8, "mults": _F16, "codes": 16384, "attend": (16,)},                         # 5.15
}


def preset(name: str) -> dict[str, Any]:
    """The options of a published autoencoder: of a `VQ` where there are codes, else of a `KL`.

    'sd' is that of Stable Diffusion 1 and 2, of sd-vae-ft-ema and sd-vae-ft-mse and of DiT, which differ in their weights only.

    Raises:
      ConfigError: no such autoencoder; names the nearest.

    Example:
      dict(name='diffusion_jax.models.vae:KL', **preset('sd'), dtype='bfloat16')
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
