"""The UNet of EDM2 and the ladder that leads to it from ADM's (Karras et al. 2312.02696, table 1).

With c = ln(sigma) / 4 the noise label, vec the embedded class, and sum, cat, silu, normalize those of nn/mp.py:

    e     = silu(sum(W fourier(c), vec))                                              (1)
    h     = W [x, 1]                                                                  (2)
    enc   h = normalize(W h)                                                          (3)
    res   h = sum(h, W' silu((1 + g V e) W silu(h)))                                  (4)
    dec   as (4), with W on the straight path instead of (3), of cat(h, what was kept last)                      (5)
    attn  h = sum(h, W attention(normalize(q), normalize(k), normalize(v))),   q, k, v = W h             (6)
    out   = g' W h                                                                    (7)

The gains g and g' start at zero. Every layer but the gains preserves magnitude, so nothing is normalised on the way but (3), and
no weight needs an initialisation of its own. The ladder, each step with all before it:

    A   ADM's UNet: biases, group norms with gain and bias, sines and cosines of c through two layers, shift and scale by e,
        softmax attention after a norm, last layers of branches and network at zero, the others as PyTorch's
    B   hyperparameters only (the network attends to fewer levels: `attend`)
    C   no biases, the ones of (2), Fourier features, one embedding layer, scale without shift, group norms without mean and
        gain, cosine attention
    D   weights normalised where they are used; gains at zero in place of weights at zero
    E   forced weight normalisation (the task's `forced`)
    F   no group norms; the pixel norm (3)
    G   sum, cat, silu and Fourier features that preserve magnitude

The paper describes A to F in words and figures. Our readings: resampling stands between activation and convolution up to E and
before (3) from F on, as in the published code of ADM and of G; values are normalised in (6) from G on.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.nn.attention import attention, join_heads, split_heads
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import TORCH, ZERO
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.mp import Fourier, MPLayer, mp_cat, mp_silu, mp_sum, normalize
from diffusion_jax.nn.resample import bilinear, downsample, upsample
from diffusion_jax.types import Array, Cond

LADDER = ("A", "B", "C", "D", "E", "F", "G")
DTYPES = ("float32", "bfloat16", "float16")
CONDITIONS = ("vec", "cat")
REMAT = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
RESIZE = {None: lambda x, filter: x, "down": downsample, "up": upsample}


class Step(NamedTuple):
    """What the steps of the ladder change in the network.

    Attributes:
      streamlined: from C on.
      normalised: weights are normalised where they are used, from D on.
      pixel_norm: in place of group norms, from F on.
      preserving: sum, cat, silu and Fourier features preserve magnitude: G.
    """

    streamlined: bool
    normalised: bool
    pixel_norm: bool
    preserving: bool

    @classmethod
    def of(cls, letter: str) -> Step:
        """The step called 'A' ... 'G'.

        Raises:
          ConfigError: there is no such step.
        """
        if letter not in LADDER:
            raise unknown("step of the ladder", letter, LADDER)
        return cls(*(letter >= first for first in "CDFG"))

    def silu(self, x: Array) -> Array:
        """silu, or (nn/mp.py, 3)."""
        return mp_silu(x) if self.preserving else nn.silu(x)

    def sum(self, a: Array, b: Array, t: float) -> Array:
        """a + b, or (nn/mp.py, 4)."""
        return mp_sum(a, b, t) if self.preserving else a + b

    def cat(self, a: Array, b: Array, t: float) -> Array:
        """[a, b], or (nn/mp.py, 5)."""
        return mp_cat(a, b, t) if self.preserving else jnp.concatenate([a, b], axis=-1)

    def layer(self, features: int, size: int = 1, zero: bool = False, *, dtype: str, name: str) -> Callable[..., Array]:
        """A linear layer or convolution; `zero`: the branch that it ends starts at zero, before weights are normalised."""
        if self.normalised:
            return MPLayer(features, size, dtype, name=name)
        init, bias = ZERO if zero else TORCH, not self.streamlined
        if size == 1:
            return Linear(features, init.kernel, dtype, bias, init.bias, name=name)
        return Conv(features, size, 1, (size // 2,) * 2, init.kernel, dtype, bias, init.bias, name=name)

    def norm(self, x: Array, name: str) -> Array:
        """The group norm of A to E, x [B, H, W, C]."""
        return group_rms_norm(x) if self.streamlined else GroupNorm(groups_of(x.shape[-1]), name=name)(x)


def groups_of(channels: int) -> int:
    """How many groups are normalised together: 32, fewer where there are few channels."""
    return next(groups for groups in range(min(32, max(channels // 4, 1)), 0, -1) if channels % groups == 0)


def group_rms_norm(x: Array) -> Array:
    """x [B, H, W, C] over the root mean square of each group of channels: the group norm of C to E."""
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups_of(c), -1)
    return normalize(grouped, (1, 3)).reshape(x.shape)


class Block(nn.Module):
    """(3), (4), (6), or (5), (6).

    Attributes:
      features: channels of the output.
      step: of the ladder.
      encoder: whether the straight path is (3).
      resize: None, 'down' or 'up'.
      heads: of attention; 0 for none.
      balance: shares of the branch in (4) and in (6).
      filter: see nn/resample.py.
      dropout: rate; acts where a key named 'dropout' is given.
      clip: activations are clipped to [-clip, clip].
      dtype: of the layers and the output.
    """

    features: int
    step: Step
    encoder: bool
    resize: str | None = None
    heads: int = 0
    balance: tuple[float, float] = (0.3, 0.3)
    filter: tuple[float, ...] = (1, 1)
    dropout: float = 0.0
    clip: float = 256.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, emb: Array) -> Array:
        """x [B, H, W, C], emb [B, E] -> [B, H', W', features]."""
        step, layer = self.step, partial(self.step.layer, dtype=self.dtype)
        resize = partial(RESIZE[self.resize], filter=self.filter)
        skip = layer(self.features, name="skip") if x.shape[-1] != self.features else lambda x: x
        if step.pixel_norm:
            x = resize(x)
            x = normalize(skip(x)) if self.encoder else x
            h = step.silu(x)
        else:
            h = resize(step.silu(step.norm(x, "norm1")))
            x = resize(x)
        h = layer(self.features, 3, name="conv1")(h)
        h = step.silu(self._modulated(h, emb))
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        h = layer(self.features, 3, zero=True, name="conv2")(h)
        x = x if step.pixel_norm and self.encoder else skip(x)
        x = step.sum(x, h, self.balance[0])
        if self.heads:
            x = step.sum(x, self._attention(x), self.balance[1])
        return jnp.clip(x, -self.clip, self.clip)

    def _modulated(self, h: Array, emb: Array) -> Array:
        """h scaled, before C also shifted, by the embedding."""
        step = self.step
        layer = step.layer(self.features * (1 if step.streamlined else 2), dtype=self.dtype, name="emb")
        e = layer(emb, self.param("emb_gain", nn.initializers.zeros, (), jnp.float32)) if step.normalised else layer(emb)
        scale, shift = (e, jnp.zeros_like(e)) if step.streamlined else jnp.split(e, 2, axis=-1)
        h = h if step.pixel_norm else step.norm(h, "norm2")
        return h * (1 + scale)[:, None, None] + shift[:, None, None]

    def _attention(self, x: Array) -> Array:
        """The branch of (6)."""
        step, (b, height, width, c) = self.step, x.shape
        h = (x if step.pixel_norm else step.norm(x, "norm3")).reshape(b, height * width, c)
        q, k, v = split_heads(step.layer(3 * c, dtype=self.dtype, name="qkv")(h), 3, self.heads)  # each [B, heads, T, d]
        if step.streamlined:
            q, k = normalize(q), normalize(k)
        if step.preserving:
            v = normalize(v)
        out = step.layer(c, zero=True, dtype=self.dtype, name="proj")(join_heads(attention(q, k, v)))
        return out.reshape(x.shape)


class EDM2(nn.Module):
    """The network F of (7); the scales of `diffusion/scales.py:EDM` make a denoiser of it.

    Attributes:
      width: channels of the first level, before its multiple.
      mults: channels of each level over width.
      depth: blocks on each level of the encoder; the decoder has one more.
      attend: the levels that attend, each by the factor by which its images are smaller: 1, 2, 4 ...
      head_channels: channels of an attention head, a divisor of those of the levels that attend and of the last.
      channels: channels C of the prediction, those of the image.
      ladder: 'A' ... 'G', see the top of this file.
      mult_noise: Fourier features over width; None: those of the first level.
      mult_emb: channels of the embedding, and of vec, over width; None: those of the widest level.
      label_balance, concat_balance, res_balance, attn_balance: shares of vec in (1), of what was kept in (5), of the branches in
        (4) and (6).
      clip: activations are clipped to [-clip, clip].
      filter: low-pass filter of the changes of size.
      dropout: rate within the blocks; acts where a key is given: apply(..., rngs={'dropout': key}).
      dtype: what the blocks are computed in: 'float32', 'bfloat16' or 'float16'. Parameters, norms, softmax, embeddings and
        output are float32.
      remat: what the backward pass computes again: None nothing, 'full' every block, 'dots' all but the linear layers.

    Example:
      model = EDM2(**preset('edm2-img512-s'))
      params = model.init(key, x, noise, {})['params']               # x [B, 64, 64, 4], noise [B]
      model.apply({'params': params}, x, noise, {'vec': vec})       # [B, 64, 64, 4]; vec [B, model.emb_channels]
    """

    width: int
    mults: tuple[int, ...] = (1, 2, 3, 4)
    depth: int = 3
    attend: tuple[int, ...] = (4, 8)
    head_channels: int = 64
    channels: int = 4
    ladder: str = "G"
    mult_noise: int | None = None
    mult_emb: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip: float = 256.0
    filter: tuple[float, ...] = (1, 1)
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str | None = None

    @property
    def emb_channels(self) -> int:
        """Channels of the embedding (1)."""
        return self.width * (max(self.mults) if self.mult_emb is None else self.mult_emb)

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The raw output of the network.

        Args:
          x: [B, H, W, C], scaled to unit variance; H and W halve len(mults) - 1 times.
          noise: [B], ln(sigma) / 4.
          cond: any of vec [B, emb_channels], of unit variance; cat [B, h, w, c], a smaller image, enlarged and stacked behind x.

        Returns:
          [B, H, W, C], float32.

        Raises:
          ConfigError: a size that does not divide, an unknown option or a condition that this network cannot take.
        """
        step = Step.of(self.ladder)
        self._check(x, cond)
        emb = self._embedding(step, noise, cond).astype(self.dtype)  # [B, emb_channels]
        if "cat" in cond:
            x = jnp.concatenate([x, bilinear(cond["cat"], x.shape[1], x.shape[2])], axis=-1)
        if step.streamlined:
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        x = step.layer(self.width * self.mults[0], 3, dtype=self.dtype, name="enc_0_conv")(x)
        kept, last = [x], len(self.mults) - 1
        for level, mult in enumerate(self.mults):
            if level:
                x = self._block(f"enc_{level}_down", x.shape[-1], step, True, resize="down")(x, emb)
                kept.append(x)
            for i in range(self.depth):
                x = self._block(f"enc_{level}_block{i}", self.width * mult, step, True, level)(x, emb)
                kept.append(x)
        for level in range(last, -1, -1):
            features = self.width * self.mults[level]
            if level == last:
                x = self._block(f"dec_{level}_in0", features, step, False, attends=True)(x, emb)
                x = self._block(f"dec_{level}_in1", features, step, False)(x, emb)
            else:
                x = self._block(f"dec_{level}_up", x.shape[-1], step, False, resize="up")(x, emb)
            for i in range(self.depth + 1):
                x = step.cat(x, kept.pop(), self.concat_balance)
                x = self._block(f"dec_{level}_block{i}", features, step, False, level)(x, emb)
        if not step.pixel_norm:
            x = nn.silu(step.norm(x, "norm"))
        out = step.layer(self.channels, 3, zero=True, dtype=self.dtype, name="out_conv")
        if not step.normalised:
            return out(x).astype(jnp.float32)
        return out(x, self.param("out_gain", nn.initializers.zeros, (), jnp.float32)).astype(jnp.float32)

    def _embedding(self, step: Step, noise: Array, cond: Cond) -> Array:
        """(1)."""
        features = self.width * (self.mults[0] if self.mult_noise is None else self.mult_noise)
        layer = partial(step.layer, self.emb_channels, dtype="float32")
        if step.streamlined:
            waves = Fourier(features, 2**0.5 if step.preserving else 1.0, name="emb_fourier")(noise)
            e = layer(name="emb_noise")(waves)
        else:
            e = layer(name="emb_noise2")(nn.silu(layer(name="emb_noise")(timestep_embedding(noise, features))))
        if "vec" in cond:
            e = step.sum(e, cond["vec"], self.label_balance)
        return step.silu(e)

    def _block(
        self, name: str, features: int, step: Step, encoder: bool, level: int | None = None, *, attends: bool = False,
        resize: str | None = None,
    ) -> nn.Module:
        """A block; one of a level attends where the level does."""
        block = Block if self.remat is None else nn.remat(Block, policy=REMAT[self.remat])
        attends = attends or (level is not None and 2**level in self.attend)
        if attends and features % self.head_channels:
            raise ConfigError(f"{features} channels do not divide into heads of {self.head_channels}: change the head_channels")
        heads, balance = features // self.head_channels if attends else 0, (self.res_balance, self.attn_balance)
        shared = tuple(self.filter), self.dropout, self.clip, self.dtype
        return block(features, step, encoder, resize, heads, balance, *shared, name=name)

    def _check(self, x: Array, cond: Cond) -> None:
        for kind, got, known in (("dtype", self.dtype, DTYPES), ("remat", self.remat or "full", REMAT),
                                 *(("condition of EDM2", key, CONDITIONS) for key in cond)):
            if got not in known:
                raise unknown(kind, got, known)
        vec = cond["vec"].shape[-1] if "vec" in cond else self.emb_channels
        if vec != self.emb_channels:
            raise ConfigError(f"this network sees a vec of {self.emb_channels} channels, not {vec}: set task.cond.width")
        levels = [2**level for level in range(len(self.mults))]
        if not set(self.attend) <= set(levels):
            raise ConfigError(f"attend={tuple(self.attend)} names levels that are not there, {len(levels)} mults make {levels}")
        if any(side % levels[-1] for side in x.shape[1:3]):
            raise ConfigError(f"an image of {x.shape[1]}x{x.shape[2]} does not halve {len(levels) - 1} times: change one")


class Uncertainty(nn.Module):
    """u(c) = W fourier(c), the log variance that the network's loss is expected to have at each noise level (sec. 2.2, eq. 15).

    Attributes:
      features: how many Fourier features.
    """

    features: int = 128

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        """noise [B] -> [B]."""
        return MPLayer(1, name="linear")(Fourier(self.features, name="fourier")(noise))[:, 0]


PRESETS = {
    # Options, with the peak of the published learning rate and the images of the published training, in Mi = 2^20. FID-50K on
    # ImageNet without, with guidance (2312.02696, tables 2, 3).
    "edm2-img512-xxs": {"width": 64,  "dropout": 0.0,  "lr": 0.0170, "mi": 2048},
    "edm2-img512-xs":  {"width": 128, "dropout": 0.0,  "lr": 0.0120, "mi": 2048},   # 3.53, 2.91
    "edm2-img512-s":   {"width": 192, "dropout": 0.0,  "lr": 0.0100, "mi": 2048},   # 2.56, 2.23
    "edm2-img512-m":   {"width": 256, "dropout": 0.10, "lr": 0.0090, "mi": 2048},   # 2.25, 2.01
    "edm2-img512-l":   {"width": 320, "dropout": 0.10, "lr": 0.0080, "mi": 1792},   # 2.06, 1.88
    "edm2-img512-xl":  {"width": 384, "dropout": 0.10, "lr": 0.0070, "mi": 1280},   # 1.96, 1.85
    "edm2-img512-xxl": {"width": 448, "dropout": 0.10, "lr": 0.0065, "mi": 896},    # 1.91, 1.81
    "edm2-img64-xs":   {"width": 128, "dropout": 0.0,  "lr": 0.0120, "mi": 1024},
    "edm2-img64-s":    {"width": 192, "dropout": 0.0,  "lr": 0.0100, "mi": 1024},   # 1.58
    "edm2-img64-m":    {"width": 256, "dropout": 0.10, "lr": 0.0090, "mi": 2048},   # 1.43
    "edm2-img64-l":    {"width": 320, "dropout": 0.10, "lr": 0.0080, "mi": 1024},   # 1.33
    "edm2-img64-xl":   {"width": 384, "dropout": 0.10, "lr": 0.0070, "mi": 640},    # 1.33
}


def preset(name: str) -> dict[str, Any]:
    """The options of a published network, 'edm2-img512-s' for example, which sees a vec of 4 * width.

    Raises:
      ConfigError: no such network; names the nearest.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return {key: PRESETS[name][key] for key in ("width", "dropout")} | {"channels": 4 if "512" in name else 3}
