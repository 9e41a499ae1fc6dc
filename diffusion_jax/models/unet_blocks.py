"""The blocks that UNets and autoencoders are made of: residual blocks and attention over pixels.

With e the embedding of the noise label and of vectors of the condition, none in an autoencoder,

    res   h + conv(dropout(silu(film(conv(silu(norm(h)))))))                          (1)
          film(y) = (1 + scale) norm(y) + shift,   scale, shift = W silu(e)           (2)   or  norm(y + W silu(e))
    attn  h + W attention(q, [k', k], [v', v]),   q, k, v = W norm(h),   k', v' = W seq     (3)

The last layers of (1) and (3) start at zero, so that every block starts as the identity; those of an autoencoder do not. How
the others start is the system's own (nn/init.py).
"""
from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.embed import timestep_embedding
from diffusion_jax.nn.group_norm import GroupNorm
from diffusion_jax.nn.init import TORCH, ZERO, Init, side_by_side
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.linear_attention import linear_attention, scaled_linear_attention
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.resample import double, halve
from diffusion_jax.types import Array

DTYPES = ("float32", "bfloat16")
ATTENTION = {"softmax": masked_attention, "linear": linear_attention, "linear_scaled": scaled_linear_attention}
RESIZE = {None: lambda x: x, "down": halve, "up": double}


def waves(noise: Array, width: int, ddpm: bool = False) -> Array:
    """Sines and cosines of the noise label [B], [B, width] float32; the options are those of `TimeEmbedding`."""
    if not ddpm:
        return timestep_embedding(noise, width)
    half = width // 2
    angle = noise.astype(jnp.float32)[:, None] * 1e4 ** (-jnp.arange(half) / (half - 1))[None]
    return jnp.pad(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1), ((0, 0), (0, width % 2)))


class TimeEmbedding(nn.Module):
    """The embedding of the noise label, MLP(sincos(t) + W g), in float32, four times as wide as the network.

    g embeds the weight of guidance (models/cond.py:GuidanceWeight); without it W g is 0.

    Attributes:
      width: channels of the sines and cosines.
      ddpm: sines before cosines, with the frequencies 10000^(-i / (half - 1)).
      start: how the layers start.

    Parameters: fc1, fc2, and with g guidance, W, without a bias.
    """

    width: int
    ddpm: bool = False
    start: Init = TORCH

    @nn.compact
    def __call__(self, noise: Array, guidance: Array | None = None) -> Array:
        """noise [B], guidance [B, G] or None -> [B, 4 * width]."""
        linear = partial(Linear, 4 * self.width, self.start.kernel, bias_init=self.start.bias)
        h = waves(noise, self.width, self.ddpm)
        if guidance is not None:
            h = h + Linear(self.width, self.start.kernel, use_bias=False, name="guidance")(guidance)
        h = linear(name="fc1")(h)
        return linear(name="fc2")(nn.silu(h))


class ResBlock(nn.Module):
    """The residual block (1).

    Attributes:
      features: channels of the output.
      resize: None, or 'down' or 'up': the image changes size between the first norm and convolution, and beside them.
      scale_shift: the two forms of (2).
      dropout: rate; acts where a key named 'dropout' is given.
      groups, eps: of the norms.
      dtype: of the convolutions and the output.
      start, last: how the layers start, and the last one.
    """

    features: int
    resize: str | None = None
    scale_shift: bool = True
    dropout: float = 0.0
    groups: int = 32
    eps: float = 1e-5
    dtype: str = "float32"
    start: Init = TORCH
    last: Init = ZERO

    @nn.compact
    def __call__(self, x: Array, emb: Array | None = None) -> Array:
        """x [B, H, W, C], emb [B, E] or None -> [B, H', W', features]."""
        norm, conv = partial(GroupNorm, self.groups, self.eps), partial(Conv, self.features, dtype=self.dtype)
        first = {"kernel_init": self.start.kernel, "bias_init": self.start.bias}
        resize = RESIZE[self.resize]
        h = conv(**first, name="conv1")(resize(nn.silu(norm(name="norm1")(x))))
        e = None if emb is None else Linear(self.features * (1 + self.scale_shift), **first, name="emb")(nn.silu(emb))
        if e is None:
            h = norm(name="norm2")(h)
        elif self.scale_shift:
            h = norm(name="norm2")(h, *jnp.split(e, 2, axis=-1))
        else:
            h = norm(name="norm2")(h + e.astype(h.dtype)[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(nn.silu(h))
        h = conv(kernel_init=self.last.kernel, bias_init=self.last.bias, name="conv2")(h)
        x = resize(x)
        if x.shape[-1] != self.features:
            x = Linear(self.features, **first, dtype=self.dtype, name="skip")(x)
        return x + h


class Attention(nn.Module):
    """The attention block (3) over all pixels, and over the tokens of a condition before them.

    Attributes:
      heads: a divisor of the channels.
      kind: 'softmax', or 'linear' or 'linear_scaled' (nn/linear_attention.py).
      groups, eps: of the norm.
      dtype: of the products and the output.
      start: how the layers start but the last.
    """

    heads: int
    kind: str = "softmax"
    groups: int = 32
    eps: float = 1e-5
    dtype: str = "float32"
    start: Init = TORCH

    @nn.compact
    def __call__(self, x: Array, seq: Array | None = None, seq_mask: Array | None = None) -> Array:
        """x [B, H, W, C], seq [B, L, D], seq_mask [B, L] -> [B, H, W, C]."""
        b, height, width, c = x.shape
        h = GroupNorm(self.groups, self.eps, name="norm")(x).reshape(b, height * width, c)
        q, k, v = split_heads(self._layers("qkv", 3, c)(h), 3, self.heads)  # each [B, heads, T, d]
        if seq is not None:
            k_seq, v_seq = split_heads(self._layers("kv", 2, c)(seq), 2, self.heads)
            k, v = jnp.concatenate([k_seq, k], axis=2), jnp.concatenate([v_seq, v], axis=2)
        if seq_mask is not None:
            seq_mask = jnp.concatenate([seq_mask.astype(bool), jnp.ones((b, height * width), bool)], axis=1)
        out = join_heads(ATTENTION[self.kind](q, k, v, seq_mask))
        out = Linear(c, nn.initializers.zeros, self.dtype, name="proj")(out)
        return x + out.reshape(x.shape)

    def _layers(self, name: str, parts: int, features: int) -> nn.Module:
        """`parts` linear layers in one."""
        init = side_by_side(self.start, parts)
        return Linear(parts * features, init.kernel, self.dtype, bias_init=init.bias, name=name)
