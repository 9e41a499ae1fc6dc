"""DiffiT, the diffusion vision transformer (Hatamizadeh et al. 2023, arXiv 2312.02139), and its model of latents.

With p the patch, x the image, t the noise label, z the tokens and d the channels of a head:

    z_0       = W_p patches(x) + position                                             (1)
    c         = MLP(sincos(t)) + vec                                                  (2)
    [q, k, v] = W_s z + W_t c                                                         (3)   W_t c the same for all tokens
    TMSA      = W_o softmax(q k^T / sqrt(d) + B) v                                    (4)   B from a table, by offset
    z         = z + TMSA(norm(z), c)                                                  (5)
    z         = z + MLP(norm(z))                                                      (6)
    out       = unpatch(W silu(norm(z)))                                              (7)

The time steers attention itself, where DiT modulates norms and gates; no other layer sees it. B is Swin's (2103.14030): for
tokens i and j of a w x w window, a learned number for each head and each of the (2w - 1)^2 offsets of i from j. The model of
latents attends over one window, its whole grid, so it serves one size of image.

The paper leaves open how training starts. Here: the table as Swin's, the last layer at zero as DiT's, so that the network starts
as zero, and the rest as DiT's.
"""
from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.dit import CONDITIONS, Mlp, TimeEmbedding, check, run_blocks
from diffusion_jax.nn.attention import attention, join_heads, split_heads
from diffusion_jax.nn.embed import patchify, sincos_2d, unpatchify
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.norm import layer_norm
from diffusion_jax.nn.resample import bilinear
from diffusion_jax.types import Array, Cond


def offsets(window: int) -> np.ndarray:
    """How far i is from j along one axis, counted from the smallest: i - j + window - 1, [window, window]."""
    return np.subtract.outer(np.arange(window), np.arange(window)) + window - 1


def relative_positions(window: int) -> np.ndarray:
    """The row of the table for each pair of tokens of a window, [window^2, window^2]; the rows of pixels come first."""
    along = offsets(window)
    index = along[:, None, :, None] * (2 * window - 1) + along[None, :, None, :]
    return index.reshape(window**2, window**2)


def position_bias(table: Array, window: int) -> Array:
    """B of (4): `table` at `relative_positions`, as products with zeros and ones.

    Reading a table at an index has a scatter for its gradient, which is slow on a TPU and not deterministic on a GPU.

    Args:
      table: [(2w - 1)^2, heads].
      window: w.

    Returns:
      [heads, w^2, w^2].
    """
    side = 2 * window - 1
    chosen = np.eye(side, dtype=np.float32)[offsets(window)]  # [w, w, 2w-1]: the offset of i from j
    square, exact = table.reshape(side, side, -1), jax.lax.Precision.HIGHEST
    rows = jnp.einsum("ija,abh->ijbh", chosen, square, precision=exact)
    bias = jnp.einsum("klb,ijbh->hikjl", chosen, rows, precision=exact)  # token (i, k) sees token (j, l)
    return bias.reshape(-1, window**2, window**2)


class TMSA(nn.Module):
    """Time-dependent self-attention within windows, (3) and (4).

    Attributes:
      heads: a divisor of the channels.
      window: the side w of a window.
      dtype: of the products and the output.

    Parameters: qkv, qkv_time, proj; table [(2w - 1)^2, heads], float32.
    """

    heads: int
    window: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        """x [B * N, w^2, D], the N windows of a sample one after the other; c [B, E] -> like x."""
        width = x.shape[-1]
        time = Linear(3 * width, dtype=self.dtype, name="qkv_time")(c)  # [B, 3D]
        time = jnp.repeat(time, x.shape[0] // c.shape[0], axis=0)[:, None]  # [B * N, 1, 3D]
        q, k, v = split_heads(Linear(3 * width, dtype=self.dtype, name="qkv")(x) + time, 3, self.heads)
        rows = (2 * self.window - 1) ** 2
        table = self.param("table", nn.initializers.truncated_normal(0.02), (rows, self.heads), jnp.float32)
        out = attention(q, k, v, position_bias(table, self.window))
        return Linear(width, dtype=self.dtype, name="proj")(join_heads(out))


class Block(nn.Module):
    """The transformer block (5), (6)."""

    heads: int
    window: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        """x [B * N, w^2, D], c [B, E] -> like x."""
        x = x + TMSA(self.heads, self.window, self.dtype, name="attn")(layer_norm(x), c)
        return x + Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")(layer_norm(x))


class Final(nn.Module):
    """The last layer (7) without its unpatching."""

    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, features]."""
        return Linear(self.features, nn.initializers.zeros, self.dtype, name="linear")(nn.silu(layer_norm(x)))


class DiffiT(nn.Module):
    """DiffiT of latents.

    Attributes:
      patch: side of a patch in pixels (of the latent).
      width: channels D of a token, a multiple of 4 and of heads.
      depth: number of blocks.
      heads: attention heads.
      grid: patches along each side; images are grid * patch pixels high and wide.
      mlp_ratio: hidden channels of the MLP over D.
      channels: channels C of the prediction, those of the image.
      learn_sigma: predict C more channels, the raw variances, after the first C.
      dtype: what the blocks are computed in: 'float32' or 'bfloat16'. Parameters, norms, softmax, time embedding and output are
        float32.
      scan, remat: see `DiT`.

    Example:
      model = DiffiT(**preset('DiffiT-256'))
      params = model.init(key, x, noise, {})['params']               # x [B, 32, 32, 4], noise [B]
      model.apply({'params': params}, x, noise, {'vec': vec})       # [B, 32, 32, 8]; vec [B, 1152]
    """

    patch: int
    width: int
    depth: int
    heads: int
    grid: int
    mlp_ratio: float = 4.0
    channels: int = 4
    learn_sigma: bool = True
    dtype: str = "float32"
    scan: bool = False
    remat: str | None = None

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The raw output of the network.

        Args:
          x: [B, H, W, C], already scaled; H = W = grid * patch.
          noise: [B], the DDPM step 0 ... 999; may be fractional.
          cond: any of vec [B, width]; cat [B, h, w, c], a smaller image, enlarged and stacked behind x.

        Returns:
          [B, H, W, C], or [B, H, W, 2C] with learn_sigma, float32.

        Raises:
          ConfigError: another size of image, an unknown option or a condition that this network cannot take.
        """
        check("DiffiT", cond, CONDITIONS, self.width, self.heads, self.dtype, self.remat)
        h, w, side = x.shape[1], x.shape[2], self.grid * self.patch
        if (h, w) != (side, side):
            raise ConfigError(f"this network is made for images of {side}x{side}, not {h}x{w}: set model.grid or task.shape")
        if "cat" in cond:
            x = jnp.concatenate([x, bilinear(cond["cat"], h, w)], axis=-1)
        z = Linear(self.width, dtype=self.dtype, name="patch")(patchify(x, self.patch))  # [B, T, D]
        z = z + jnp.asarray(sincos_2d(self.grid, self.grid, self.width), z.dtype)[None]
        c = TimeEmbedding(self.width, name="time")(noise)  # [B, D]
        if "vec" in cond:
            c = c + cond["vec"]
        options = (self.heads, self.grid, self.mlp_ratio, self.dtype)
        z = run_blocks(Block, options, self.depth, self.scan, self.remat, z, c)
        out = Final(self.patch**2 * self.channels * (1 + self.learn_sigma), self.dtype, name="final")(z)
        return unpatchify(out.astype(jnp.float32), h, w, self.patch)


PRESETS = {
    #               options                                                            FID-50K on ImageNet, 250 steps, guided
    "DiffiT-256":  {"patch": 2, "width": 1152, "depth": 28, "heads": 16, "grid": 16},  # 1.73
    "DiffiT-512":  {"patch": 2, "width": 1152, "depth": 28, "heads": 16, "grid": 32},  # 2.67
}


def preset(name: str) -> dict[str, Any]:
    """The options of a published network, for the latents of images of 256 or 512 pixels: 'DiffiT-256' or 'DiffiT-512'.

    Raises:
      ConfigError: no such network; names the nearest.

    Example:
      dict(name='diffusion_jax.models.diffit:DiffiT', **preset('DiffiT-256'), scan=True)
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
