"""MMDiT, the transformer of Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206): image and text side by side in every block.

With p the patch, x the image, t the noise label, y the tokens of the text and v its pooled embedding:

    x_0 = W_p patches(x) + position,    c_0 = W_c y                                   (1)
    e   = MLP(sincos(t)) + MLP(v)                                                     (2)
    shift, scale, gate, shift', scale', gate' = W silu(e)        of each stream       (3)
    h   = (1 + scale) norm(x) + shift                            of each stream       (4)
    [a_x, a_c] = attention([q_x, q_c], [k_x, k_c], [v_x, v_c]),     q, k, v = W h     (5)
    x   = x + gate W a,    x = x + gate' MLP((1 + scale') norm(x) + shift')           (6)
    out = unpatch(W_o ((1 + scale) norm(x) + shift)),   shift, scale = W silu(e)      (7)

Each stream has weights of its own; in (5) alone they meet, image before text. The text ends in the last block, of which it has
only shift, scale, q, k and v. Two things came with version 3.5. Queries and keys are normed, head by head:

    q <- gamma_q q / rms(q),    k <- gamma_k k / rms(k)                               (8)

and in "dual" blocks, the first ones of the network, the image attends to itself once more, before its MLP:

    x   = x + gate'' W'' attention(q'', k'', v'')   of   (1 + scale'') norm(x) + shift''       (9)

where norm(x) is that of (4), and the three come behind those of (3). Positions are those of a table of `grid` x `grid` patches,
from whose middle a part of the image's size is cut; the i-th row or column of it lies at origin + i step:

    position(row, col) = [sin(col w), cos(col w), sin(row w), cos(row w)],    w_i = 10000^(-i / quarter)       (10)
"""
from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.dit import DTYPES, REMAT, Final, Mlp, Modulation, TimeEmbedding
from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.embed import patchify, unpatchify
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.norm import layer_norm
from diffusion_jax.nn.rms_norm import RMSNorm
from diffusion_jax.types import Array, Cond

CONDITIONS = ("vec", "seq", "seq_mask")
QK_NORMS = ("", "rms")


class Streams(NamedTuple):
    """What the blocks work on.

    Attributes:
      x: tokens of the image, [B, T, D].
      c: tokens of the text, [B, L, D].
    """

    x: Array
    c: Array


class Seen(NamedTuple):
    """What every block sees beside that.

    Attributes:
      e: (2), [B, D].
      mask: [B, T + L], False for tokens that none attends to; None leaves none out.
    """

    e: Array
    mask: Array | None


class Heads(nn.Module):
    """Queries, keys and values of one stream, (8).

    Attributes:
      heads: attention heads.
      norm: 'rms' or ''.
      dtype: of the product.

    Parameters: qkv, norm_q and norm_k with a norm.
    """

    heads: int
    norm: str = ""
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array, Array]:
        """x [B, T, D] -> three of [B, heads, T, d]."""
        q, k, v = split_heads(Linear(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x), 3, self.heads)
        if self.norm:
            q, k = RMSNorm(name="norm_q")(q), RMSNorm(name="norm_k")(k)
        return q, k, v


class Joint(nn.Module):
    """One block, (3) to (6).

    Attributes:
      heads, mlp_ratio, qk_norm, dtype: see `MMDiT`.
      dual: whether there is (9).
      last: whether the text ends here; its tokens come out as they went in.

    Parameters: of the image x_modulation, x_attn, x_proj, x_mlp and with `dual` x_attn2, x_proj2; the same of the text, c_...,
    in the last block c_modulation and c_attn alone.
    """

    heads: int
    mlp_ratio: float = 4.0
    qk_norm: str = ""
    dtype: str = "float32"
    dual: bool = False
    last: bool = False

    @nn.compact
    def __call__(self, streams: Streams, seen: Seen) -> Streams:
        """The two streams after the block."""
        x, c = streams
        of_x = Modulation(9 if self.dual else 6, self.dtype, name="x_modulation")(seen.e)
        of_c = Modulation(2 if self.last else 6, self.dtype, name="c_modulation")(seen.e)
        normed = layer_norm(x)                                                                   # (4)
        image = self._heads("x_attn")(modulated(normed, *of_x[:2]))
        text = self._heads("c_attn")(modulated(layer_norm(c), *of_c[:2]))
        q, k, v = (jnp.concatenate(pair, axis=2) for pair in zip(image, text, strict=True))
        attended = join_heads(masked_attention(q, k, v, seen.mask))                              # (5), [B, T + L, D]
        a_x, a_c = jnp.split(attended, [x.shape[1]], axis=1)
        x = x + of_x[2] * self._proj("x_proj")(a_x)
        if self.dual:
            again = masked_attention(*self._heads("x_attn2")(modulated(normed, *of_x[6:8])))     # (9)
            x = x + of_x[8] * self._proj("x_proj2")(join_heads(again))
        x = x + of_x[5] * self._mlp("x_mlp")(modulated(layer_norm(x), *of_x[3:5]))
        if self.last:
            return Streams(x, c)
        c = c + of_c[2] * self._proj("c_proj")(a_c)
        return Streams(x, c + of_c[5] * self._mlp("c_mlp")(modulated(layer_norm(c), *of_c[3:5])))

    def _heads(self, name: str) -> Heads:
        return Heads(self.heads, self.qk_norm, self.dtype, name=name)

    def _proj(self, name: str):
        return lambda a: Linear(a.shape[-1], dtype=self.dtype, name=name)(a)

    def _mlp(self, name: str):
        return lambda h: Mlp(int(h.shape[-1] * self.mlp_ratio), self.dtype, name=name)(h)


def modulated(normed: Array, shift: Array, scale: Array) -> Array:
    """(4) of norm(x) [B, T, D], shift and scale [B, 1, D]."""
    return normed * (1 + scale) + shift


class Blocks(nn.Module):
    """Equal blocks in a row.

    Attributes:
      depth: how many.
      options: of each, the attributes of `Joint` in their order.
      skip: numbers of blocks that are passed over.
      scan, remat: see `MMDiT`.

    Parameters: blocks_0 ..., or blocks with the depth first.
    """

    depth: int
    options: tuple[int | float | str | bool, ...]
    skip: tuple[int, ...] = ()
    scan: bool = False
    remat: str | None = None

    @nn.compact
    def __call__(self, streams: Streams, seen: Seen) -> Streams:
        """The two streams after the blocks."""
        block = Joint
        if self.remat is not None:
            block = nn.remat(Joint, prevent_cse=not self.scan, policy=REMAT[self.remat])
        if not self.scan:
            for i in range(self.depth):
                after = block(*self.options, name=f"blocks_{i}")(streams, seen)
                streams = streams if i in self.skip else after
            return streams
        kept = np.array([i not in self.skip for i in range(self.depth)])

        def step(layer: nn.Module, streams: Streams, keep: Array) -> tuple[Streams, None]:
            after = layer(streams, seen)
            if not self.skip:
                return after, None
            return jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, streams), None

        over_layers = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
        return over_layers(block(*self.options, name="blocks"), streams, jnp.asarray(kept))[0]


class Pooled(nn.Module):
    """The second MLP of (2), in float32. Parameters: fc1, fc2."""

    width: int

    @nn.compact
    def __call__(self, vec: Array) -> Array:
        """vec [B, P] -> [B, width]."""
        start = nn.initializers.normal(0.02)
        return Linear(self.width, start, name="fc2")(nn.silu(Linear(self.width, start, name="fc1")(vec)))


class MMDiT(nn.Module):
    """The multimodal diffusion transformer.

    Attributes:
      patch: side of a patch in pixels (of the latent).
      width: channels D of a token, a multiple of 4 and of heads.
      depth: number of blocks, the last one among them.
      heads: attention heads.
      mlp_ratio: hidden channels of the MLPs over D.
      channels: channels C of the image.
      qk_norm: 'rms' for (8), '' for none.
      dual: how many blocks, the first ones, have (9).
      grid: the largest side of an image in patches, that of the table of (10).
      origin, step: of (10).
      dtype: what the blocks are computed in: 'float32' or 'bfloat16'. Parameters, norms, softmax, (2) and output are float32.
      scan: one traced block over stacked parameters for each run of equal blocks: compile time does not grow with depth.
        `stack_layers` and `unstack_layers` of models/dit.py convert.
      remat: what the backward pass computes again: None nothing, 'full' every block, 'dots' all but the products with weights.
      skip: numbers of blocks that are passed over, both streams: what skip-layer guidance leads away from.

    Parameters: patch, context, time, pooled (with a vec), dual, joint, last, final.

    Example:
      model = MMDiT(**preset('sd3-medium'), scan=True)
      cond = {'seq': tokens, 'vec': pooled}                         # [B, 333, 4096], [B, 2048]
      v = model.apply({'params': params}, x, noise, cond)           # x [B, 128, 128, 16], noise [B] = 1000 sigma
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    channels: int = 16
    qk_norm: str = ""
    dual: int = 0
    grid: int = 192
    origin: float = 0.0
    step: float = 1.0
    dtype: str = "float32"
    scan: bool = False
    remat: str | None = None
    skip: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The raw output of the network: a velocity, eps - x0, in the published ones.

        Args:
          x: [B, H, W, C].
          noise: [B], 1000 sigma, not rounded.
          cond: seq [B, L, Y], the tokens of the text; vec [B, P], what its pooled embedding is, or none; seq_mask [B, L], False
            for tokens that none attends to.

        Returns:
          [B, H, W, C] float32.

        Raises:
          ConfigError: no tokens, a size that does not divide or that exceeds the grid, an unknown option or condition.
        """
        self._check(cond)
        h, w = x.shape[1:3]
        z = Linear(self.width, dtype=self.dtype, name="patch")(patchify(x, self.patch))           # [B, T, D]
        z = z + jnp.asarray(self.positions(h // self.patch, w // self.patch), z.dtype)[None]
        c = Linear(self.width, dtype=self.dtype, name="context")(cond["seq"])                     # [B, L, D]
        e = TimeEmbedding(self.width, name="time")(noise)                                         # [B, D]
        if "vec" in cond:
            e = e + Pooled(self.width, name="pooled")(cond["vec"])
        mask = cond.get("seq_mask")
        if mask is not None:
            mask = jnp.concatenate([jnp.ones(z.shape[:2], bool), mask.astype(bool)], axis=1)
        x_out = self._blocks(Streams(z, c), Seen(e, mask))
        out = Final(self.patch**2 * self.channels, self.dtype, name="final")(x_out, e)
        return unpatchify(out.astype(jnp.float32), h, w, self.patch)

    def positions(self, h: int, w: int) -> np.ndarray:
        """(10) of the middle h x w patches of the grid, [h * w, D] float64.

        Raises:
          ConfigError: the image is larger than the grid.
        """
        if max(h, w) > self.grid:
            raise ConfigError(f"this network has positions for {self.grid}x{self.grid} patches, the image has {h}x{w}: make it "
                              "smaller, or train with a larger model.grid")
        rows, columns = ((self.grid - side) // 2 + np.arange(side) for side in (h, w))
        half = self.width // 2
        of_rows, of_columns = (waves(self.origin + self.step * index, half) for index in (rows, columns))
        halves = [np.broadcast_to(part, (h, w, half)) for part in (of_columns[None], of_rows[:, None])]
        return np.concatenate(halves, axis=-1).reshape(h * w, self.width)

    def _blocks(self, streams: Streams, seen: Seen) -> Array:
        """The image's tokens after all blocks: the dual ones, the plain ones and the last."""
        options = self.heads, self.mlp_ratio, self.qk_norm, self.dtype
        plain = self.depth - 1 - self.dual
        runs = (("dual", self.dual, True, 0), ("joint", plain, False, self.dual))
        for name, depth, dual, before in runs:
            skip = tuple(i - before for i in self.skip if 0 <= i - before < depth)
            if depth:
                streams = Blocks(depth, (*options, dual, False), skip, self.scan, self.remat, name=name)(streams, seen)
        block = Joint if self.remat is None else nn.remat(Joint, policy=REMAT[self.remat])
        after = block(*options, False, True, name="last")(streams, seen)
        return streams.x if self.depth - 1 in self.skip else after.x

    def _check(self, cond: Cond) -> None:
        for key in cond:
            if key not in CONDITIONS:
                raise unknown("condition of MMDiT", key, CONDITIONS)
        if "seq" not in cond:
            raise ConfigError("MMDiT attends to the tokens of a text: give a conditioner that makes seq, as models/sd3_text.py")
        named = ("dtype", self.dtype, DTYPES), ("remat", self.remat or "full", REMAT), ("qk_norm", self.qk_norm, QK_NORMS)
        for kind, value, known in named:
            if value not in known:
                raise unknown(kind, value, known)
        if self.width % self.heads or self.width % 4:
            raise ConfigError(f"width {self.width} does not divide into {self.heads} heads, or by the 4 of its positions")
        if not 0 <= self.dual < self.depth:
            raise ConfigError(f"of {self.depth} blocks at most {self.depth - 1} are dual, the last one never is: got {self.dual}")
        if any(not 0 <= i < self.depth for i in self.skip):
            raise ConfigError(f"the blocks of this network are 0 ... {self.depth - 1}, skip is {self.skip}")


def waves(position: np.ndarray, width: int) -> np.ndarray:
    """One half of (10): positions [N] -> [N, width] float64, sines before cosines."""
    frequencies = 1e4 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    angle = position[:, None] * frequencies[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


PRESETS = {
    # The step of (10): 64 patches of 1024 pixels, which is what they were trained on, over the side of the grid.
    "sd3-medium": {"patch": 2, "width": 1536, "depth": 24, "heads": 24, "step": 64 / 192},                         # 2.03 B
    "sd3.5-medium": {"patch": 2, "width": 1536, "depth": 24, "heads": 24, "qk_norm": "rms", "dual": 13, "grid": 384,
                     "step": 64 / 384},                                                                            # 2.24 B
    "sd3.5-large": {"patch": 2, "width": 2432, "depth": 38, "heads": 38, "qk_norm": "rms", "step": 64 / 192},      # 8.06 B
    "tiny": {"patch": 2, "width": 32, "depth": 3, "heads": 4, "channels": 4, "qk_norm": "rms", "dual": 1, "grid": 16},
}
"""Behind them the parameters, without the table of positions that files hold."""


def preset(name: str) -> dict[str, int | float | str]:
    """The options of a published size, or of a tiny one with every part for tests.

    Raises:
      ConfigError: no such size; names the nearest.

    Example:
      dict(name='diffusion_jax.models.mmdit:MMDiT', **preset('sd3.5-medium'), scan=True, dtype='bfloat16')
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
