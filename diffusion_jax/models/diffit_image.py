"""DiffiT in image space (Hatamizadeh et al. 2023, arXiv 2312.02139, section 3.2): a U of convolutions and windowed TMSA.

With x the image, t the noise label, vec and cat the condition, and `block` the transformer block of models/diffit.py, applied to
the pixels of each window on its own:

    e     = MLP(sincos(t)) + vec                                                      (1)
    h     = conv([x, bilinear(cat)])                                                  (2)
    res   h + block(conv(silu(norm(h))), e)                                           (3)   the paper's (9) and (10)
    out   = conv(norm(h))                                                             (4)

Down: on each level `depth` times res; the last output is kept; then half the size, at the width of the next level. The lowest
level is the middle. Up: twice the size, at the width of this level; [h, what was kept] back to that width; `depth` times res.

The paper fixes (3) and that convolutions make images smaller and larger between levels joined by skips. The rest is our choice:

    skips       one for each level, joined by a linear map of each pixel: the residual (3) cannot change the width
    resizing    convolutions of stride 2, and copied pixels followed by a convolution, as in the UNet of models/unet.py
    windows     8x8 without shift, next to each other: the convolutions carry information across their borders, and every
                level down doubles what a window spans
    norm        32 groups, eps 1e-5, and heads of 32 channels: ADM's and Swin's
    time        ADM's embedding, four times as wide as the network, so that a page may put either network in place of the other
    start       the last layer at zero, so that the network starts as zero
"""
from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.diffit import Block
from diffusion_jax.models.unet import DTYPES, REMAT, TimeEmbedding
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.embed import patchify, unpatchify
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import XAVIER
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.resample import bilinear, double
from diffusion_jax.types import Array, Cond

CONDITIONS = ("vec", "cat")


class ResBlock(nn.Module):
    """The residual block (3).

    Attributes:
      heads: attention heads, a divisor of the channels.
      window: side of a window, a divisor of the image's sides.
      mlp_ratio: hidden channels of the block's MLP over those of the image.
      groups, eps: of the norm.
      dtype: of the convolution, the block and the output.
    """

    heads: int
    window: int
    mlp_ratio: float = 4.0
    groups: int = 32
    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """x [B, H, W, C], emb [B, E] -> [B, H, W, C]."""
        _, height, width, c = x.shape
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm")(x))
        h = patchify(Conv(c, dtype=self.dtype, name="conv")(h), self.window)  # [B, N, w^2 C]
        tokens = h.reshape(-1, self.window**2, c)  # [B * N, w^2, C]
        tokens = Block(self.heads, self.window, self.mlp_ratio, self.dtype, name="block")(tokens, emb)
        return x + unpatchify(tokens.reshape(h.shape), height, width, self.window)


class ImageDiffiT(nn.Module):
    """DiffiT in image space.

    Attributes:
      width: channels of the first level, before its multiple.
      mults: channels of each level over width.
      depth: residual blocks on each level, on the way down and on the way up.
      windows: side of the windows of each level.
      head_channels: channels of an attention head; divides all channels.
      mlp_ratio: hidden channels of the MLPs over those of the image.
      channels: channels C of the prediction, those of the image.
      learn_sigma: predict C more channels, the raw variances, after the first C.
      groups: of every norm; divides all channels.
      dtype: what the blocks are computed in: 'float32' or 'bfloat16'. Parameters, norms, softmax, embeddings and output are
        float32.
      remat: what the backward pass computes again: None nothing, 'full' every block, 'dots' all but the products with weights.

    Example:
      model = ImageDiffiT(width=128)
      params = model.init(key, x, noise, {})['params']               # x [B, 32, 32, 3], noise [B]
      model.apply({'params': params}, x, noise, {'vec': vec})       # [B, 32, 32, 6]; vec [B, 512]
    """

    width: int
    mults: tuple[int, ...] = (1, 2, 2)
    depth: int = 4
    windows: tuple[int, ...] = (8, 8, 8)
    head_channels: int = 32
    mlp_ratio: float = 4.0
    channels: int = 3
    learn_sigma: bool = True
    groups: int = 32
    dtype: str = "float32"
    remat: str | None = None

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The raw output of the network.

        Args:
          x: [B, H, W, C], already scaled; H and W halve len(mults) - 1 times, and divide into the windows of each level.
          noise: [B], the DDPM step 0 ... 999; may be fractional.
          cond: any of vec [B, 4 * width], added to the embedding of the noise; cat [B, h, w, c], a smaller image, enlarged and
            stacked behind x.

        Returns:
          [B, H, W, C], or [B, H, W, 2C] with learn_sigma, float32.

        Raises:
          ConfigError: a size that does not divide, an unknown option or a condition that this network cannot take.
        """
        self._check(x, cond)
        emb = TimeEmbedding(self.width, start=XAVIER, name="time")(noise)  # [B, 4 * width]
        if "vec" in cond:
            emb = emb + cond["vec"]
        if "cat" in cond:
            x = jnp.concatenate([x, bilinear(cond["cat"], x.shape[1], x.shape[2])], axis=-1)
        widths, last = [self.width * mult for mult in self.mults], len(self.mults) - 1
        h, kept = Conv(widths[0], dtype=self.dtype, name="stem")(x), []
        for level in range(last + 1):
            h = self._level(f"down_{level}", level, h, emb)
            if level < last:
                kept.append(h)
                h = Conv(widths[level + 1], stride=2, dtype=self.dtype, name=f"down_{level}_resize")(h)
        for level in reversed(range(last)):
            h = Conv(widths[level], dtype=self.dtype, name=f"up_{level}_resize")(double(h))
            h = jnp.concatenate([h, kept.pop()], axis=-1)
            h = Linear(widths[level], dtype=self.dtype, name=f"up_{level}_join")(h)
            h = self._level(f"up_{level}", level, h, emb)
        h = GroupNorm(self.groups, name="final_norm")(h.astype(jnp.float32))
        return Conv(self.channels * (1 + self.learn_sigma), kernel_init=nn.initializers.zeros, name="final_conv")(h)

    def _level(self, name: str, level: int, h: Array, emb: Array) -> Array:
        """`depth` residual blocks."""
        block = ResBlock if self.remat is None else nn.remat(ResBlock, policy=REMAT[self.remat])
        heads = h.shape[-1] // self.head_channels
        for i in range(self.depth):
            res = block(heads, self.windows[level], self.mlp_ratio, self.groups, dtype=self.dtype, name=f"{name}_res_{i}")
            h = res(h, emb)
        return h

    def _check(self, x: Array, cond: Cond) -> None:
        for kind, got, known in (
            ("dtype", self.dtype, DTYPES), ("remat", self.remat or "full", REMAT),
            *(("condition of ImageDiffiT", key, CONDITIONS) for key in cond),
        ):
            if got not in known:
                raise unknown(kind, got, known)
        width = cond["vec"].shape[-1] if "vec" in cond else 4 * self.width
        if width != 4 * self.width:
            raise ConfigError(f"this network adds a vec of {4 * self.width} channels, not {width}: set task.cond.width")
        if len(self.windows) != len(self.mults):
            raise ConfigError(f"windows={tuple(self.windows)} are not one for each of the {len(self.mults)} mults: change one")
        for level, (mult, window) in enumerate(zip(self.mults, self.windows, strict=True)):
            if any(side % (window * 2**level) for side in x.shape[1:3]):
                size = f"an image of {x.shape[1]}x{x.shape[2]}, {2**level} times smaller,"
                raise ConfigError(f"{size} does not divide into windows of {window}x{window}: change the windows or the mults")
            if self.width * mult % self.head_channels:
                channels = self.width * mult
                raise ConfigError(f"{channels} channels do not divide into heads of {self.head_channels}: change one")
