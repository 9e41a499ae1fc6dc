"""The UNet of DDPM and ADM (Ho et al. 2006.11239; Dhariwal & Nichol 2105.05233), which GLIDE (2112.10741) and latent diffusion
(2112.10752) use too.

With x the image, t the noise label and vec, cat, seq, guidance the condition:

    e     = MLP(sincos(t) + W guidance) + vec                                         (1)
    h     = conv([x, bilinear(cat)])                                                  (2)
    res   h + conv(dropout(silu(film(conv(silu(norm(h)))))))                          (3)
          film(y) = (1 + scale) norm(y) + shift,   scale, shift = W silu(e)           (4)   or  norm(y + W silu(e))
    attn  h + W attention(q, [k', k], [v', v]),   q, k, v = W norm(h),   k', v' = W seq     (5)
    out   = conv(silu(norm(h)))                                                       (6)

Down: on each level `depth` times res (and attn where the level attends), then half the size; every output is kept. Middle: res,
attn, res. Up: on each level, in reverse, depth + 1 times res of [h, what was kept last], attn as before, then twice the size.

Latent diffusion has spatial transformers (models/spatial.py) in place of (5). The blocks themselves are in unet_blocks.py.

The last layers of (3), (5) and (6) start at zero, so that every block starts as the identity and the network as zero. The others
start as PyTorch's do, as in ADM and what came of it, or by Xavier's rule with `ddpm` (nn/init.py).
"""
from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.spatial import SpatialTransformer
from diffusion_jax.models.unet_blocks import ATTENTION, DTYPES, RESIZE, Attention, ResBlock, TimeEmbedding
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import TORCH, XAVIER, Init
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.resample import bilinear, double
from diffusion_jax.types import Array, Cond

RESAMPLE = ("res", "conv", "pool")
CONDITIONS = ("vec", "cat", "seq", "seq_mask", "guidance")


def _products(primitive: Any, *_: Any, **params: Any) -> bool:
    """What remat='dots' keeps: the products with weights."""
    dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, **params)
    return dense or primitive is jax.lax.conv_general_dilated_p


REMAT = {"full": None, "dots": _products}


def of_level(value: int | tuple[int, ...], level: int) -> int:
    """What an option, one number or one for each level, says of a level."""
    return value if isinstance(value, int) else value[level]


class Backbone(nn.Module):
    """The first half of the UNet, (1) to (5) down and middle: all of a classifier's network but its pool.

    Attributes:
      width: channels of the first level, before its multiple.
      mults: channels of each level over width; may be fractions.
      depth: residual blocks on each level.
      attend: the levels that attend, each by the factor by which its images are smaller: 1, 2, 4 ...
      heads: attention heads, or those of each level; the middle has the last level's.
      head_channels: channels of a head, in place of a number of heads.
      attention: 'softmax', or 'linear' or 'linear_scaled' (nn/linear_attention.py).
      mid_attention: whether the middle attends.
      transformer: blocks of the spatial transformer that stands in place of each attention block, or those of each level, the
        last one's in the middle too; 0 for attention blocks.
      scale_shift: the two forms of (4).
      resample: how the size changes: 'res' by a residual block, 'conv' by a strided convolution, and one after doubling, 'pool'
        by means and copies.
      dropout: rate within the residual blocks; acts where a key is given: apply(..., rngs={'dropout': key}).
      groups: of every norm; divides all channels.
      ddpm: four conventions in which Ho et al. differ from ADM: sines before cosines in (1), norms with eps 1e-6, strided
        convolutions padded at the far edges only, and layers that start by Xavier's rule.
      dtype: what the blocks are computed in: 'float32' or 'bfloat16'. Parameters, norms, softmax, embeddings and output are
        float32.
      remat: what the backward pass computes again: None nothing, 'full' every block, 'dots' all but the products with weights.
    """

    width: int
    mults: tuple[float, ...] = (1, 2, 3, 4)
    depth: int = 2
    attend: tuple[int, ...] = (4, 8)
    heads: int | tuple[int, ...] = 1
    head_channels: int | None = None
    attention: str = "softmax"
    mid_attention: bool = True
    transformer: int | tuple[int, ...] = 0
    scale_shift: bool = True
    resample: str = "res"
    dropout: float = 0.0
    groups: int = 32
    ddpm: bool = False
    dtype: str = "float32"
    remat: str | None = None

    def channels_at(self, level: int) -> int:
        """The width of a level."""
        return int(self.width * self.mults[level])

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return 2**level in self.attend

    def heads_for(self, channels: int, heads: int) -> int:
        """The heads of an attention block of so many channels: `heads`, unless head_channels decides.

        Raises:
          ConfigError: they do not divide the channels.
        """
        size = self.head_channels or channels // heads
        if channels % size or (self.head_channels is None and channels % heads):
            raise ConfigError(f"{channels} channels do not divide into heads of {size}: change the width or the heads")
        return channels // size

    def _down(self, x: Array, emb: Array, cond: Cond) -> tuple[Array, list[Array]]:
        """The output of the middle, and all that was kept on the way down."""
        h = self._conv("stem", self.channels_at(0))(x)
        kept, last = [h], len(self.mults) - 1
        for level in range(last + 1):
            for i in range(self.depth):
                h = self._res(f"down_{level}_res_{i}", self.channels_at(level))(h, emb)
                if self.attends(level):
                    h = self._attn(f"down_{level}_attn_{i}", level, self.heads, h, cond)
                kept.append(h)
            if level < last:
                h = self._resize(f"down_{level}_resize", "down", h, emb)
                kept.append(h)
        h = self._res("mid_res_0", h.shape[-1])(h, emb)
        h = self._attn("mid_attn", last, self.heads, h, cond) if self.mid_attention else h
        return self._res("mid_res_1", h.shape[-1])(h, emb), kept

    def _res(self, name: str, features: int, resize: str | None = None) -> nn.Module:
        block = self._maybe_remat(ResBlock)
        options = self.scale_shift, self.dropout, self.groups, self._eps, self.dtype, self._init
        return block(features, resize, *options, name=name)

    def _attn(self, name: str, level: int, heads: int | tuple[int, ...], h: Array, cond: Cond) -> Array:
        heads = self.heads_for(h.shape[-1], of_level(heads, level))
        if self.transformer:
            depth = of_level(self.transformer, level)
            block = self._maybe_remat(SpatialTransformer)(heads, depth, self.groups, self.dtype, name=name)
        else:
            options = self.attention, self.groups, self._eps, self.dtype, self._init
            block = self._maybe_remat(Attention)(heads, *options, name=name)
        return block(h, cond.get("seq"), cond.get("seq_mask"))

    def _resize(self, name: str, resize: str, h: Array, emb: Array) -> Array:
        """Half or twice the size."""
        if self.resample == "res":
            return self._res(name, h.shape[-1], resize)(h, emb)
        if self.resample == "pool":
            return RESIZE[resize](h)
        if resize == "up":
            return self._conv(name, h.shape[-1])(double(h))
        return self._conv(name, h.shape[-1], 2, (0, 1) if self.ddpm else (1, 1))(h)

    def _conv(self, name: str, features: int, stride: int = 1, padding: tuple[int, int] = (1, 1)) -> Conv:
        kernel, bias = self._init
        return Conv(features, 3, stride, padding, kernel, self.dtype, bias_init=bias, name=name)

    def _time(self, noise: Array, guidance: Array | None = None) -> Array:
        """The embedding of the noise label and of the weight of guidance, [B, 4 * width]."""
        return TimeEmbedding(self.width, self.ddpm, self._init, name="time")(noise, guidance)

    def _maybe_remat(self, block: type[nn.Module]) -> type[nn.Module]:
        return block if self.remat is None else nn.remat(block, policy=REMAT[self.remat])

    @property
    def _init(self) -> Init:
        return XAVIER if self.ddpm else TORCH

    @property
    def _eps(self) -> float:
        return 1e-6 if self.ddpm else 1e-5

    def _check(self, x: Array, cond: Cond) -> None:
        for kind, got, known in (
            ("dtype", self.dtype, DTYPES), ("attention", self.attention, ATTENTION), ("resample", self.resample, RESAMPLE),
            ("remat", self.remat or "full", REMAT), *((f"condition of {type(self).__name__}", key, CONDITIONS) for key in cond),
        ):
            if got not in known:
                raise unknown(kind, got, known)
        for name, value in (("heads", self.heads), ("transformer", self.transformer)):
            if isinstance(value, (tuple, list)) and (len(value) != len(self.mults) or min(value) < 1):
                raise ConfigError(f"{name} of each level are {len(self.mults)} numbers of 1 or more, got {tuple(value)}")
        if self.transformer and self.attention != "softmax":
            raise ConfigError(f"spatial transformers have no attention {self.attention!r}: leave it at 'softmax'")
        width = cond["vec"].shape[-1] if "vec" in cond else 4 * self.width
        if width != 4 * self.width:
            raise ConfigError(f"this network adds a vec of {4 * self.width} channels, not {width}: set task.cond.width")
        levels = [2**level for level in range(len(self.mults))]
        if not set(self.attend) <= set(levels):
            raise ConfigError(f"attend={tuple(self.attend)} names levels that are not there, {len(levels)} mults make {levels}")
        if any(side % levels[-1] for side in x.shape[1:3]):
            raise ConfigError(f"an image of {x.shape[1]}x{x.shape[2]} does not halve {len(levels) - 1} times: change one")


class UNet(Backbone):
    """The UNet.

    Attributes:
      channels: channels C of the prediction, those of the image.
      learn_sigma: predict C more channels, the raw variances, after the first C.
      heads_up: attention heads on the way up, where they differ from `heads`.
      codes: predict logits of so many codes at every pixel, W norm(h), in place of (6); 0 for an image.
      out_channels: channels of the output where they are neither C nor 2C; None where they are.

    and those of `Backbone`.

    Example:
      model = UNet(**preset('adm-imagenet64'))
      params = model.init(key, x, noise, {})['params']               # x [B, 64, 64, 3], noise [B]
      model.apply({'params': params}, x, noise, {'vec': vec})       # [B, 64, 64, 6]; vec [B, 768]
    """

    channels: int = 3
    learn_sigma: bool = True
    heads_up: int | None = None
    codes: int = 0
    out_channels: int | None = None

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The raw output of the network.

        Args:
          x: [B, H, W, C], already scaled; H and W halve len(mults) - 1 times.
          noise: [B], the DDPM step 0 ... 999; may be fractional.
          cond: any of vec [B, 4 * width], added to the embedding of the noise; cat [B, h, w, c], a smaller image, enlarged and
            stacked behind x; seq [B, L, D], tokens that every attention block sees, those where seq_mask [B, L] is True;
            guidance [B, G], the embedded weight of guidance, added to the waves of the noise.

        Returns:
          [B, H, W, C], [B, H, W, 2C] with learn_sigma, [B, H, W, out_channels] or [B, H, W, codes] with these; float32.

        Raises:
          ConfigError: a size that does not divide, an unknown option or a condition that this network cannot take.
        """
        self._check(x, cond)
        emb = self._time(noise, cond.get("guidance"))
        if "vec" in cond:
            emb = emb + cond["vec"]
        if "cat" in cond:
            x = jnp.concatenate([x, bilinear(cond["cat"], x.shape[1], x.shape[2])], axis=-1)
        h, kept = self._down(x, emb, cond)
        for level in reversed(range(len(self.mults))):
            for i in range(self.depth + 1):
                h = jnp.concatenate([h, kept.pop()], axis=-1)
                h = self._res(f"up_{level}_res_{i}", self.channels_at(level))(h, emb)
                if self.attends(level):
                    h = self._attn(f"up_{level}_attn_{i}", level, self.heads_up or self.heads, h, cond)
            if level:
                h = self._resize(f"up_{level}_resize", "up", h, emb)
        h = GroupNorm(self.groups, self._eps, name="final_norm")(h.astype(jnp.float32))
        if self.codes:
            return Linear(self.codes, self._init.kernel, bias_init=self._init.bias, name="final_linear")(h)
        h = nn.silu(h)
        out = self.out_channels or self.channels * (1 + self.learn_sigma)
        return Conv(out, kernel_init=nn.initializers.zeros, name="final_conv")(h)


_ADM = {"depth": 2, "pixels": (32, 16, 8), "head_channels": 64}
_DDPM = {"depth": 2, "pixels": (16,), "scale_shift": False, "resample": "conv", "learn_sigma": False, "ddpm": True}
_64, _128, _256, _512 = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4)
PRESETS = {
    # Sides of the image and, as "pixels", of the levels that attend. FID-50K without, with classifier guidance, of an upsampler
    # together with the network of the smaller size (2105.05233, tables 4 and 5; 2006.11239).
    "adm-imagenet64":         _ADM | {"size": 64,  "width": 192, "mults": _64,  "depth": 3, "dropout": 0.1},         # 2.07
    "adm-imagenet128":        _ADM | {"size": 128, "width": 256, "mults": _128, "heads": 4, "head_channels": None},  # 5.91, 2.97
    "adm-imagenet256":        _ADM | {"size": 256, "width": 256, "mults": _256},                                     # 10.94, 4.59
    "adm-imagenet256-uncond": _ADM | {"size": 256, "width": 256, "mults": _256},                                     # 26.2, 12.0
    "adm-imagenet512":        _ADM | {"size": 512, "width": 256, "mults": _512},                                     # 23.24, 7.72
    "adm-upsample-64-256":    _ADM | {"size": 256, "width": 192, "mults": _256, "heads": 4, "head_channels": None},  # 7.49, 3.94
    "adm-upsample-128-512":   _ADM | {"size": 512, "width": 192, "mults": _256, "pixels": (32, 16)},                 # 9.96, 3.85
    "adm-lsun-bedroom":       _ADM | {"size": 256, "width": 256, "mults": _256, "dropout": 0.1},                     # 1.90
    "adm-lsun-cat":           _ADM | {"size": 256, "width": 256, "mults": _256, "dropout": 0.1},                     # 5.57
    "adm-lsun-horse":         _ADM | {"size": 256, "width": 256, "mults": _256, "dropout": 0.1},                     # 2.57
    "ddpm-cifar10":           _DDPM | {"size": 32,  "width": 128, "mults": (1, 2, 2, 2), "dropout": 0.1},            # 3.17
}


def preset(name: str) -> dict[str, Any]:
    """The options of a published network, 'adm-imagenet64' for example; the class-conditional ones take a vec of 4 * width.

    Raises:
      ConfigError: no such network; names the nearest.

    Example:
      dict(name='diffusion_jax.models.unet:UNet', **preset('adm-imagenet64'), dtype='bfloat16')
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    options = dict(PRESETS[name])
    size, pixels = options.pop("size"), options.pop("pixels")
    return options | {"attend": tuple(size // side for side in pixels)}
