"""The autoregressive transformers of DALL-E (Ramesh et al. 2021, arXiv 2102.12092), ru-DALL-E and minDALL-E.

The sequence is [start,] T text tokens, g^2 image tokens; with e its embeddings, f the layers' patterns (nn/sparse_attention.py):

    e     = text table + text position,   image table + row + column  (or + one position)       (1)
    y     = x + [norm] W attention_f(q, k, v),   q, k, v = W' norm(x)                  (2)
    x'    = y + [norm] W2 act(W1 norm(y))                                             (3)      [norm]: CogView's sandwich
    text logits, image logits = W head(norm(x)),   of the next token                  (4)

A text token 0 is padding: it becomes one of T tokens of its own, one for each position ("padding tokens").

Sampling keeps the keys and values of all layers (`Cache`) and computes one token at a time.

The paper trains in float16 with a gradient scale of its own for every residual block, because gradients of deep blocks underflow
(appendix D). bfloat16 has the range of float32 and needs none of that: tests/models/test_dalle.py shows where the one
underflows and the other does not.
"""
from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.transformer import ACTIVATIONS
from diffusion_jax.nn.attention import join_heads, split_heads
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.nn.sparse_attention import Pattern, cached_attention, dense_attention, sparse_attention
from diffusion_jax.types import Array

Cache = list[tuple[Array, Array]]
"""Keys and values of every layer, each [B, heads, S, d]."""

LAYOUTS = ("dalle", "rudalle", "dense")
SPARSE_GRID = {"row": 16, "column": 16, "conv": 32}    # from this side on blocks beat masks on a CPU: tests/bench_dalle.py
CYCLE = 4                                              # layers after which the order of patterns repeats
INIT = nn.initializers.normal(0.02)


def layer_kinds(layout: str, depth: int) -> tuple[str, ...]:
    """The kind of attention of every layer: column in every fourth, conv in the last, row elsewhere; 'dense' has full attention.

    Where the last layer is due to see columns, conv wins in 'dalle' and column in 'rudalle'.

    Raises:
      ConfigError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("layout of attention", layout, LAYOUTS)
    if layout == "dense":
        return ("full",) * depth
    kinds = ["column" if i % 4 == 1 else "row" for i in range(depth)]
    if layout == "dalle" or kinds[-1] == "row":
        kinds[-1] = "conv"
    return tuple(kinds)


class Block(nn.Module):
    """One layer, (2) and (3).

    Attributes:
      heads: a divisor of the width.
      act: of `models.transformer.ACTIVATIONS`.
      attn_bias, mlp_bias: whether these linear layers have biases.
      sandwich: the norms in brackets.
      dropout: of what is added to the residual stream; acts where a key named 'dropout' is given.
      dtype: of the products.

    Parameters: norm1, qkv, proj, norm2, fc1, fc2 and, of the sandwich, norm3, norm4.
    """

    heads: int
    act: str = "gelu_tanh"
    attn_bias: bool = True
    mlp_bias: bool = True
    sandwich: bool = False
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, attend: Any) -> tuple[Array, Any]:
        """x [B, T, D], attend (q, k, v) -> (out, what to keep), each [B, heads, T, d] -> (x [B, T, D], what to keep)."""
        width = x.shape[-1]
        linear, norm = partial(Linear, kernel_init=INIT, dtype=self.dtype), partial(LayerNorm, 1e-5)
        qkv = linear(3 * width, use_bias=self.attn_bias, name="qkv")(norm(name="norm1")(x))
        out, kept = attend(*split_heads(qkv, 3, self.heads))
        out = linear(width, use_bias=self.attn_bias, name="proj")(join_heads(out))
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        x = x + drop(norm(name="norm3")(out) if self.sandwich else out)
        h = linear(4 * width, use_bias=self.mlp_bias, name="fc1")(norm(name="norm2")(x))
        h = linear(width, use_bias=self.mlp_bias, name="fc2")(ACTIVATIONS[self.act](h))
        return x + drop(norm(name="norm4")(h) if self.sandwich else h), kept


class DALLE(nn.Module):
    """The transformer.

    Attributes:
      text_codes: size of the text vocabulary; its last `text_length` are the padding tokens where `pad`.
      image_codes: size of the image vocabulary.
      text_length, grid: T and g.
      width, depth, heads: of the layers.
      layout: see `layer_kinds`.
      kernel, wrap: of the conv layer.
      start: id of a text token before all others, None for none.
      mask_text: P of the patterns, None for all text tokens; ru-DALL-E with a start token counts it as an image token's place.
      pad: padding tokens for each position; without them 0 is a token like others.
      axial: rows and columns of the image have an embedding each; otherwise every place has one.
      joint: one head for both vocabularies, with a bias and a norm of its own; otherwise two without.
      act, attn_bias, mlp_bias, sandwich, dropout, dtype: see `Block`; embeddings are dropped at the same rate.
      remat: recompute each layer in the backward pass.
      scan: in training, one traced group of `CYCLE` layers over their stacked weights in place of all layers, as far as the order
        of patterns repeats: compile time does not grow with the depth, and the parameters are the same.
      sparse: whether row, column and conv layers compute their blocks only; None chooses what is faster.

    Parameters: text, text_position, image, row and column (or image_position), blocks_i, norm, head_norm and head (or head_text
    and head_image).
    """

    text_codes: int
    image_codes: int
    text_length: int
    grid: int
    width: int
    depth: int
    heads: int
    layout: str = "dalle"
    kernel: int = 11
    wrap: bool = False
    start: int | None = None
    mask_text: int | None = None
    pad: bool = True
    axial: bool = True
    joint: bool = True
    act: str = "gelu_tanh"
    attn_bias: bool = True
    mlp_bias: bool = True
    sandwich: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    scan: bool = False
    sparse: bool | None = None

    @property
    def lead(self) -> int:
        """Tokens before the image's."""
        return self.text_length + (self.start is not None)

    @property
    def positions(self) -> int:
        """Rows of the table of text positions; published joint models have one to spare for a start token."""
        return self.text_length + (self.joint or self.start is not None)

    @property
    def length(self) -> int:
        """Tokens that the network reads: after a start token the last one of the image is only ever predicted."""
        return self.text_length + self.grid**2

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """That of each layer; where a start token makes the sequence one longer than a pattern, its last row is left out."""
        text = self.lead if self.mask_text is None else self.mask_text
        return tuple(Pattern(kind, text, self.grid, self.kernel, self.wrap) for kind in layer_kinds(self.layout, self.depth))

    def setup(self):
        """Tables, layers and heads."""
        if self.width % self.heads:
            raise ConfigError(f"a width of {self.width} does not divide into {self.heads} heads: change one")
        if self.act not in ACTIVATIONS:
            raise unknown("activation", self.act, ACTIVATIONS)
        table = partial(nn.Embed, features=self.width, embedding_init=INIT)
        self.text, self.text_position = table(self.text_codes), table(self.positions)
        self.image = table(self.image_codes)
        if self.axial:
            self.row, self.column = table(self.grid), table(self.grid)
        else:
            self.image_position = table(self.grid**2)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        options = dict(act=self.act, attn_bias=self.attn_bias, mlp_bias=self.mlp_bias, sandwich=self.sandwich,
                       dropout=self.dropout, dtype=self.dtype)
        self.blocks = [block(self.heads, **options) for _ in range(self.depth)]
        self.norm, self.drop = LayerNorm(1e-5), nn.Dropout(self.dropout)
        if self.joint:
            self.head_norm, self.head = LayerNorm(1e-5), Linear(self.text_codes + self.image_codes, INIT)
        else:
            self.head_text, self.head_image = (Linear(n, INIT, use_bias=False) for n in (self.text_codes, self.image_codes))

    def __call__(self, text: Array, image: Array) -> tuple[Array, Array]:
        """Logits of all tokens but the first that is read.

        Args:
          text: [B, T] int.
          image: [B, g^2] int.

        Returns:
          (text logits [B, T or T - 1, text_codes], image logits [B, g^2, image_codes]): without a start token none for the
          first token of the text.
        """
        h = self.hidden(text, image)
        return self.text_logits(h[:, : self.lead - 1]), self.image_logits(h[:, self.lead - 1 : self.lead - 1 + self.grid**2])

    def hidden(self, text: Array, image: Array) -> Array:
        """What the heads see of every token that is read: [B, length, D] float32."""
        x = self.embed(text, image)[:, : self.length]
        number = self._repeats() if self.scan and not self.is_initializing() else 0
        x = self._scanned(x, number) if number else x
        for block, pattern in list(zip(self.blocks, self.patterns, strict=True))[number * CYCLE :]:
            x, _ = block(x, self._attention(pattern))
        return self.norm(x.astype(jnp.float32))

    def _attention(self, pattern: Pattern) -> Any:
        pays = self.grid >= SPARSE_GRID.get(pattern.kind, self.grid + 1) if self.sparse is None else self.sparse
        return partial(_attend, pattern=pattern, sparse=pays and pattern.kind != "full")

    def _repeats(self) -> int:
        """How many times the first `CYCLE` patterns stand one after the other."""
        groups = [self.patterns[i : i + CYCLE] for i in range(0, self.depth, CYCLE)]
        return sum(1 for _ in itertools.takewhile(lambda group: len(group) == CYCLE and group == groups[0], groups))

    def _scanned(self, x: Array, number: int) -> Array:
        """The first `number` groups of layers, x [B, T, D] -> [B, T, D]."""
        layers = [block.variables["params"] for block in self.blocks[: number * CYCLE]]
        stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers[i::CYCLE]) for i in range(CYCLE)]
        block, drop = self.blocks[0].clone(parent=None, name="blocks"), self.has_rng("dropout")
        keys = jax.random.split(self.make_rng("dropout"), (number, CYCLE)) if drop else None

        def group(x: Array, parts: Any) -> tuple[Array, None]:
            weights, keys = parts
            for i, pattern in enumerate(self.patterns[:CYCLE]):
                rngs = {"dropout": keys[i]} if drop else {}
                x, _ = block.apply({"params": weights[i]}, x, self._attention(pattern), rngs=rngs)
            return x, None

        return jax.lax.scan(group, x, (stacked, keys))[0]

    def embed(self, text: Array, image: Array) -> Array:
        """(1): text [B, T], image [B, n] with n <= g^2 -> [B, lead + n, D]."""
        places = jnp.arange(self.text_length)[None]
        if self.pad:
            text = jnp.where(text == 0, self.text_codes - self.text_length + places, text)
        if self.start is not None:
            text = jnp.pad(text, ((0, 0), (1, 0)), constant_values=self.start)
        e = self.text(text) + self.text_position(jnp.arange(text.shape[1]))[None]
        e = jnp.concatenate([e, self.place(image, jnp.arange(image.shape[1]))], axis=1)
        return self.drop(e, deterministic=not self.has_rng("dropout")).astype(self.dtype)

    def place(self, image: Array, places: Array) -> Array:
        """The embeddings of image tokens [B, n] at places [n] of the grid: [B, n, D]."""
        if self.axial:
            return self.image(image) + (self.row(places // self.grid) + self.column(places % self.grid))[None]
        return self.image(image) + self.image_position(places)[None]

    def logits(self, h: Array) -> Array:
        """Of both vocabularies in a row, [B, n, text_codes + image_codes]; of a joint head only."""
        return self.head(self.head_norm(h))

    def text_logits(self, h: Array) -> Array:
        """[B, n, D] -> [B, n, text_codes]."""
        return self.logits(h)[..., : self.text_codes] if self.joint else self.head_text(h)

    def image_logits(self, h: Array) -> Array:
        """[B, n, D] -> [B, n, image_codes]."""
        return self.logits(h)[..., self.text_codes :] if self.joint else self.head_image(h)

    def prefill(self, text: Array, image: Array) -> tuple[Array, Cache]:
        """text [B, T] and the first n tokens of the image [B, n] -> (logits of the next [B, image_codes], cache)."""
        x, cache = self.embed(text, image), []
        for block, pattern in zip(self.blocks, self.patterns, strict=True):
            x, kept = block(x, partial(_attend, pattern=pattern, sparse=False))
            room = ((0, 0), (0, 0), (0, pattern.length - x.shape[1]), (0, 0))
            cache.append(tuple(jnp.pad(part, room) for part in kept))
        return self.image_logits(self.norm(x[:, -1:].astype(jnp.float32)))[:, 0], cache

    def step(self, token: Array, place: Array, cache: Cache) -> tuple[Array, Cache]:
        """One more image token: token [B], its place in the grid, cache -> (logits of the next [B, image_codes], cache)."""
        x, new = self.place(token[:, None], place[None]).astype(self.dtype), []
        for block, pattern, kept in zip(self.blocks, self.patterns, cache, strict=True):
            x, kept = block(x, partial(_attend_cached, cache=kept, position=self.lead + place, pattern=pattern))
            new.append(kept)
        return self.image_logits(self.norm(x.astype(jnp.float32)))[:, 0], new


def _attend(q: Array, k: Array, v: Array, pattern: Pattern, sparse: bool) -> tuple[Array, tuple[Array, Array]]:
    """Attention of all tokens: (out, keys and values). Blocks want the whole sequence, which may lack its last token."""
    if not sparse:
        return dense_attention(q, k, v, pattern), (k, v)
    room = ((0, 0), (0, 0), (0, pattern.length - q.shape[2]), (0, 0))
    return sparse_attention(*(jnp.pad(x, room) for x in (q, k, v)), pattern)[:, :, : q.shape[2]], (k, v)


def _attend_cached(
    q: Array, k: Array, v: Array, cache: tuple[Array, Array], position: Array, pattern: Pattern
) -> tuple[Array, tuple[Array, Array]]:
    """Attention of the token at `position`, whose key and value join the cache."""
    zero = jnp.zeros((), jnp.int32)
    k, v = (jax.lax.dynamic_update_slice(old, new, (zero, zero, position, zero)) for old, new in zip(cache, (k, v), strict=True))
    return cached_attention(q, k, v, position, pattern), (k, v)


PRESETS = {
    "tiny": dict(width=64, depth=2, heads=4),
    "small": dict(width=256, depth=8, heads=4),
    "1.3B": dict(width=2048, depth=24, heads=16),              # the sizes of ru-DALL-E (Malevich) and near those of minDALL-E
    "12B": dict(width=3968, depth=64, heads=62),               # the paper's
}
"""Sizes; the paper's has heads of 64 channels."""

PAPER = dict(text_codes=16384 + 256, image_codes=8192, text_length=256, grid=32, layout="dalle", start=0)
"""The paper's vocabularies and lengths."""


def preset(name: str, **options: Any) -> DALLE:
    """A size of `PRESETS` with the paper's vocabularies and lengths, or those given.

    Raises:
      ConfigError: an unknown size.
    """
    if name not in PRESETS:
        raise unknown("size of DALL-E", name, PRESETS)
    return DALLE(**{**PAPER, **PRESETS[name], **options})
