"""DiT, the diffusion transformer (Peebles & Xie 2022, arXiv 2212.09748).

With p the patch, x the image, t the noise label, c the condition and z the tokens:

    z_0 = W_p patches(x) + position                                                   (1)
    c   = MLP(sincos(t)) + vec                                                        (2)
    shift, scale, gate, shift', scale', gate' = W silu(c)                             (3)
    z   = z + gate  attention((1 + scale)  norm(z) + shift)                           (4)
    z   = z + gate' MLP      ((1 + scale') norm(z) + shift')                          (5)
    out = unpatch(W_o ((1 + scale) norm(z) + shift)),   shift, scale = W silu(c)      (6)

"adaLN-Zero": the W of (3) and (6) and W_o start at zero, so that every block starts as the identity and the network as zero.
The paper compares three other blocks, which see the tokens y of the condition, one for the time, one for vec and those of seq:

    in_context          z <- [z, y] before the blocks, whose norms have affine maps of their own; y is dropped after them      (7)
    cross_attention     z = z + attention(q = norm(z), k = v = y) between (4) and (5); norms as in (7)                (8)
    adaln               (4) and (5) without gates                                                             (9)
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.embed import patchify, sincos_2d, timestep_embedding, unpatchify
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.norm import LayerNorm, layer_norm
from diffusion_jax.nn.resample import bilinear
from diffusion_jax.types import UNTIL, Array, Cond, Params

TIME_CHANNELS = 256
DTYPES = ("float32", "bfloat16")
BLOCKS = ("adaln_zero", "adaln", "cross_attention", "in_context")
CONDITIONS = ("vec", "cat")
TOKENS = ("seq", "seq_mask")
SLOW = 1e-3
"""What noise labels are multiplied by where a network is differentiated by them (2505.13447's code)."""
REMAT = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class TimeEmbedding(nn.Module):
    """The MLP of (2), in float32."""

    width: int

    @nn.compact
    def __call__(self, noise: Array) -> Array:
        """noise [B] -> [B, width]."""
        linear = partial(Linear, self.width, kernel_init=nn.initializers.normal(0.02))
        h = linear(name="fc1")(timestep_embedding(noise, TIME_CHANNELS))
        return linear(name="fc2")(nn.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """x [B, T, D], mask [B, T], False for tokens to leave out -> [B, T, D]."""
        q, k, v = split_heads(Linear(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x), 3, self.heads)
        return Linear(x.shape[-1], dtype=self.dtype, name="proj")(join_heads(masked_attention(q, k, v, mask)))


class CrossAttention(nn.Module):
    """Multi-head attention to the tokens of the condition."""

    heads: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, y: Array, mask: Array | None = None) -> Array:
        """x [B, T, D], y [B, L, D], mask [B, L], False for tokens to leave out -> [B, T, D]."""
        (q,) = split_heads(Linear(x.shape[-1], dtype=self.dtype, name="q")(x), 1, self.heads)
        k, v = split_heads(Linear(2 * x.shape[-1], dtype=self.dtype, name="kv")(y), 2, self.heads)
        return Linear(x.shape[-1], dtype=self.dtype, name="proj")(join_heads(masked_attention(q, k, v, mask)))


class Mlp(nn.Module):
    """Two linear layers around a GELU (its tanh form)."""

    hidden: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        h = nn.gelu(Linear(self.hidden, dtype=self.dtype, name="fc1")(x), approximate=True)
        return Linear(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class Modulation(nn.Module):
    """What the condition does to a block, (3)."""

    parts: int
    dtype: str = "float32"
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, c: Array) -> list[Array]:
        """c [B, D] -> `parts` arrays [B, 1, D]."""
        out = Linear(self.parts * c.shape[-1], self.kernel_init, self.dtype, name="linear")(nn.silu(c))
        return jnp.split(out[:, None], self.parts, axis=-1)


class Tokens(NamedTuple):
    """What a block sees of the condition.

    Attributes:
      c: the sum of all embeddings, [B, D].
      y: the embeddings one by one, [B, L, D].
      mask: [B, L], or [B, T] for self-attention over image and condition; False for tokens to leave out, None leaves none out.
    """

    c: Array
    y: Array
    mask: Array | None


class Block(nn.Module):
    """One block: adaLN-Zero, (3) to (5), or another one of the paper's four."""

    heads: int
    mlp_ratio: float = 4.0
    dtype: str = "float32"
    kind: str = "adaln_zero"

    @nn.compact
    def __call__(self, x: Array, cond: Tokens) -> Array:
        """x [B, T, D] -> [B, T, D]."""
        attn = Attention(self.heads, self.dtype, name="attn")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        if self.kind == "adaln_zero":
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = Modulation(6, self.dtype, name="modulation")(cond.c)
            x = x + gate_a * attn(layer_norm(x) * (1 + scale_a) + shift_a)
            return x + gate_m * mlp(layer_norm(x) * (1 + scale_m) + shift_m)
        if self.kind == "adaln":
            modulation = Modulation(4, self.dtype, nn.initializers.xavier_uniform(), name="modulation")
            shift_a, scale_a, shift_m, scale_m = modulation(cond.c)
            x = x + attn(layer_norm(x) * (1 + scale_a) + shift_a)
            return x + mlp(layer_norm(x) * (1 + scale_m) + shift_m)
        cross = self.kind == "cross_attention"
        x = x + attn(LayerNorm(name="norm1")(x), None if cross else cond.mask)
        if cross:
            x = x + CrossAttention(self.heads, self.dtype, name="cross_attn")(LayerNorm(name="norm2")(x), cond.y, cond.mask)
        return x + mlp(LayerNorm(name="norm3")(x))


class Final(nn.Module):
    """The last layer (6) without its unpatching; its norm is modulated where those of the blocks are."""

    features: int
    dtype: str = "float32"
    adaptive: bool = True

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        """x [B, T, D], c [B, D] -> [B, T, features]."""
        if self.adaptive:
            shift, scale = Modulation(2, self.dtype, name="modulation")(c)
            x = layer_norm(x) * (1 + scale) + shift
        else:
            x = LayerNorm(name="norm")(x)
        return Linear(self.features, nn.initializers.zeros, self.dtype, name="linear")(x)


class DiT(nn.Module):
    """The diffusion transformer.

    Positions come from the input's own grid, so any image whose sides are multiples of the patch will do.

    Attributes:
      patch: side of a patch in pixels (of the latent).
      width: channels D of a token, a multiple of 4 and of heads.
      depth: number of blocks.
      heads: attention heads.
      mlp_ratio: hidden channels of the MLP over D.
      channels: channels C of the prediction, those of the image.
      learn_sigma: predict C more channels, the raw variances, after the first C.
      block: 'adaln_zero', 'adaln', 'cross_attention' or 'in_context', see the top of this file.
      grid: to fine-tune a model that was trained on grid x grid patches at another size: its positions are interpolated to span
        the same range. None: positions count patches.
      dtype: what the blocks are computed in: 'float32' or 'bfloat16'. Parameters, norms, softmax, time embedding and output are
        float32.
      scan: one traced block over stacked parameters ('blocks') in place of `depth` blocks ('blocks_0' ...): compile time does not
        grow with depth. `stack_layers` and `unstack_layers` convert.
      remat: what the backward pass computes again: None nothing, 'full' every block, 'dots' all but the products with weights.
        On a CPU a small network trains fastest with scan=True, remat='dots', slowest with scan=True, remat=None: there memory
        traffic is what costs.
      interval: see `until` of the condition too, for mean flows: the embedding of noise - until is added to c of (2), and both
        are of thousandths, so that derivatives by time are not large.
      skip: numbers of blocks that are passed over, for diffusion/skip_layers.py.

    Example:
      model = DiT(**preset('DiT-S/2'))
      params = model.init(key, x, noise, {})['params']               # x [B, H, W, 4], noise [B]
      model.apply({'params': params}, x, noise, {'vec': vec})       # [B, H, W, 8]; vec [B, 384]
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    channels: int = 4
    learn_sigma: bool = True
    block: str = "adaln_zero"
    grid: int | None = None
    dtype: str = "float32"
    scan: bool = False
    remat: str | None = None
    interval: bool = False
    skip: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Array, noise: Array, cond: Cond) -> Array:
        """The raw output of the network.

        Args:
          x: [B, H, W, C], already scaled.
          noise: [B], the DDPM step 0 ... 999; may be fractional.
          cond: any of vec [B, width]; cat [B, h, w, c], a smaller image, enlarged and stacked behind x; with the blocks
            'cross_attention' and 'in_context' also seq [B, L, width], of which those count where seq_mask [B, L] is True; with
            `interval` also until [B], a noise label, without which it is `noise`.

        Returns:
          [B, H, W, C], or [B, H, W, 2C] with learn_sigma, float32.

        Raises:
          ConfigError: a size that does not divide, an unknown option or a condition that this network cannot take.
        """
        self._check(cond)
        b, h, w, _ = x.shape
        if "cat" in cond:
            x = jnp.concatenate([x, bilinear(cond["cat"], h, w)], axis=-1)
        z = Linear(self.width, dtype=self.dtype, name="patch")(patchify(x, self.patch))  # [B, T, D]
        z = z + jnp.asarray(sincos_2d(h // self.patch, w // self.patch, self.width, self.grid), z.dtype)[None]
        scale = SLOW if self.interval else 1
        c = TimeEmbedding(self.width, name="time")(scale * noise)  # [B, D]
        if self.interval:
            c = c + TimeEmbedding(self.width, name="interval")(scale * (noise - cond.get(UNTIL, noise)))
        y = [c[:, None], *([cond["vec"][:, None]] if "vec" in cond else []), *([cond["seq"]] if "seq" in cond else [])]
        tokens, mask = jnp.concatenate(y, axis=1).astype(self.dtype), cond.get("seq_mask")
        if mask is not None:
            mask = jnp.pad(mask.astype(bool), ((0, 0), (tokens.shape[1] - mask.shape[1], 0)), constant_values=True)
        if "vec" in cond:
            c = c + cond["vec"]
        patches = z.shape[1]
        if self.block == "in_context":
            z = jnp.concatenate([z, tokens], axis=1)
            mask = None if mask is None else jnp.concatenate([jnp.ones((b, patches), bool), mask], axis=1)
        z = self._blocks(z, Tokens(c, tokens, mask))[:, :patches]
        adaptive = self.block.startswith("adaln")
        out = Final(self.patch**2 * self.channels * (1 + self.learn_sigma), self.dtype, adaptive, name="final")(z, c)
        return unpatchify(out.astype(jnp.float32), h, w, self.patch)

    def _check(self, cond: Cond) -> None:
        if self.block not in BLOCKS:
            raise unknown("block", self.block, BLOCKS)
        keys = CONDITIONS if self.block.startswith("adaln") else CONDITIONS + TOKENS
        keys = (*keys, UNTIL) if self.interval else keys
        check(f"DiT with {self.block} blocks", cond, keys, self.width, self.heads, self.dtype, self.remat)
        if any(not 0 <= i < self.depth for i in self.skip):
            raise ConfigError(f"the blocks of this network are 0 ... {self.depth - 1}, skip is {self.skip}")

    def _blocks(self, z: Array, cond: Tokens) -> Array:
        options = (self.heads, self.mlp_ratio, self.dtype, self.block)
        return run_blocks(Block, options, self.depth, self.scan, self.remat, z, cond, self.skip)


def check(title: str, cond: Cond, known: Sequence[str], width: int, heads: int, dtype: str, remat: str | None) -> None:
    """Refuses what no transformer of this kind can take.

    Args:
      title: the network in words.
      cond: what it is given.
      known: the keys of `cond` that it reads.
      width, heads, dtype, remat: its options.

    Raises:
      ConfigError: an unknown option or condition, a condition of another width, or heads that do not divide the width.
    """
    for key in cond:
        if key not in known:
            raise unknown(f"condition of {title}", key, known)
    if remat is not None and remat not in REMAT:
        raise unknown("remat", remat, REMAT)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    for key in {"vec", "seq"} & cond.keys():
        if cond[key].shape[-1] != width:
            raise ConfigError(f"this network sees a {key} of {width} channels, not {cond[key].shape[-1]}: set task.cond.width")
    if width % heads:
        raise ConfigError(f"width {width} does not divide into {heads} heads")


def run_blocks(
    block: type[nn.Module], options: Sequence[Any], depth: int, scan: bool, remat: str | None, z: Array, cond: Any,
    skip: tuple[int, ...] = (),
) -> Array:
    """Tokens through `depth` blocks, which belong to the module whose compact method calls this.

    Args:
      block: a module (z, cond) -> z; `options` are its attributes in their order.
      depth, scan, remat: see `DiT`.
      z: tokens [B, T, D].
      cond: arrays that every block sees.
      skip: numbers of blocks that are passed over.
    """
    if remat is not None:
        block = nn.remat(block, prevent_cse=not scan, policy=REMAT[remat])
    if not scan:
        for i in range(depth):
            after = block(*options, name=f"blocks_{i}")(z, cond)
            z = z if i in skip else after
        return z

    def step(layer: nn.Module, z: Array, keep: Array) -> tuple[Array, None]:
        after = layer(z, cond)
        return (jnp.where(keep, after, z) if skip else after), None

    over_layers = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)
    runs = jnp.asarray([i not in skip for i in range(depth)])
    return over_layers(block(*options, name="blocks"), z, runs)[0]


def stack_layers(params: Params) -> Params:
    """Parameters of unrolled blocks ('blocks_0' ...) as those of scanned ones ('blocks', depth first).

    Works at any level of the tree, so on a task's or an average's parameters too.
    """
    if not isinstance(params, Mapping):
        return params
    layers = sorted((key for key in params if re.fullmatch(r"blocks_\d+", key)), key=lambda key: int(key[7:]))
    out = {key: stack_layers(value) for key, value in params.items() if key not in layers}
    if layers:
        out["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[key] for key in layers))
    return out


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`."""
    if not isinstance(params, Mapping):
        return params
    out = {key: unstack_layers(value) for key, value in params.items() if key != "blocks"}
    if "blocks" in params:
        depth = jax.tree.leaves(params["blocks"])[0].shape[0]
        out |= {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}
    return out


PRESETS = {
    #             options                                                FID-50K on ImageNet 256, arXiv 2212.09748
    "DiT-S/2":  {"patch": 2, "width": 384,  "depth": 12, "heads": 6},   # 68.4 after 400K steps, no guidance
    "DiT-S/4":  {"patch": 4, "width": 384,  "depth": 12, "heads": 6},
    "DiT-S/8":  {"patch": 8, "width": 384,  "depth": 12, "heads": 6},
    "DiT-B/2":  {"patch": 2, "width": 768,  "depth": 12, "heads": 12},  # 43.5 after 400K steps, no guidance
    "DiT-B/4":  {"patch": 4, "width": 768,  "depth": 12, "heads": 12},
    "DiT-B/8":  {"patch": 8, "width": 768,  "depth": 12, "heads": 12},
    "DiT-L/2":  {"patch": 2, "width": 1024, "depth": 24, "heads": 16},  # 23.3 after 400K steps, no guidance
    "DiT-L/4":  {"patch": 4, "width": 1024, "depth": 24, "heads": 16},
    "DiT-L/8":  {"patch": 8, "width": 1024, "depth": 24, "heads": 16},
    "DiT-XL/2": {"patch": 2, "width": 1152, "depth": 28, "heads": 16},  # 19.5 after 400K; 2.27 after 7M, guidance 1.50
    "DiT-XL/4": {"patch": 4, "width": 1152, "depth": 28, "heads": 16},
    "DiT-XL/8": {"patch": 8, "width": 1152, "depth": 28, "heads": 16},
}


def preset(name: str) -> dict[str, int]:
    """The options of a published size, 'DiT-XL/2' for example (arXiv 2212.09748, table 1).

    Raises:
      ConfigError: no such size; names the nearest.

    Example:
      dict(name='diffusion_jax.models.dit:DiT', **preset('DiT-XL/2'), scan=True)
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return dict(PRESETS[name])
