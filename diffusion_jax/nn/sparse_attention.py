"""Attention over text and a grid of image tokens by a fixed pattern (Ramesh et al. 2021, arXiv 2102.12092, appendix B.1).

Token i < P is text; token P + r g + c lies in row r and column c of a g x g grid. i sees j <= i where j is text or

    full          always
    row           i - j <= g              (the rest of its row and what is above it: the rows are one string)     (1)
    column        i - j = 0 mod g                                                     (2)
    conv          |r - r'| <= k/2 and |c - c'| <= k/2, with `wrap` modulo g           (3)
    axial_row     r = r',       axial_column     c = c'                               (4)      DALLE-pytorch

ru-DALL-E has (1) to (3), once with and once without wrapping; the paper's figure shows them without saying how (3) ends.

`sparse_attention` computes (1) to (4) in blocks of g tokens, rows of the grid or, for (2) and (4), columns: a block of queries
meets the text and only those blocks of keys of which it sees any, so that its cost is that of the pattern. On a CPU that is worth
it from grids of 16 on, for (3) of 32 (docs/experiments.md has the figures); below, the masked dense product is faster.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.nn.attention import attention
from diffusion_jax.types import Array

KINDS = ("full", "row", "column", "conv", "axial_row", "axial_column")


@dataclass(frozen=True)
class Pattern:
    """Who sees whom.

    Attributes:
      kind: one of `KINDS`.
      text: P.
      grid: g.
      kernel: k of (3), odd.
      wrap: whether (3) is taken modulo g.

    Raises:
      ConfigError: an unknown kind, an even kernel, no text.
    """

    kind: str
    text: int
    grid: int
    kernel: int = 11
    wrap: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise unknown("kind of attention", self.kind, KINDS)
        if self.kernel % 2 != 1 or self.text < 1:
            raise ConfigError(f"a pattern has an odd kernel and at least one token of text, got {self.kernel} and {self.text}")

    @property
    def length(self) -> int:
        """P + g^2."""
        return self.text + self.grid**2


@functools.lru_cache(maxsize=64)
def mask(pattern: Pattern) -> np.ndarray:
    """(1) to (4): bool [S, S], query by key."""
    p, g = pattern.text, pattern.grid
    seen = np.tri(pattern.length, dtype=bool)
    cells = np.arange(g**2)
    lag, (row, column) = cells[:, None] - cells[None], np.divmod(cells, g)
    rows, columns = (np.abs(axis[:, None] - axis[None]) for axis in (row, column))
    if pattern.wrap:
        rows, columns = np.minimum(rows, g - rows), np.minimum(columns, g - columns)
    half = pattern.kernel // 2
    seen[p:, p:] &= {
        "full": lag >= 0, "row": lag <= g, "column": lag % g == 0, "conv": (rows <= half) & (columns <= half),
        "axial_row": rows == 0, "axial_column": columns == 0,
    }[pattern.kind]
    seen.flags.writeable = False
    return seen


def additive(seen: np.ndarray) -> np.ndarray:
    """A mask as what is added to logits: 0 where True, -inf where False; float32."""
    return np.where(seen, 0, -np.inf).astype(np.float32)


class Plan(NamedTuple):
    """How the image part is computed.

    Attributes:
      order: [N], the place of each token among the blocks; None keeps the order.
      keys: [n, m], for each block of queries the blocks of keys that it meets.
      bias: [n, g, m * g], 0 or -inf.
    """

    order: np.ndarray | None
    keys: np.ndarray
    bias: np.ndarray


@functools.lru_cache(maxsize=64)
def plan(pattern: Pattern) -> Plan:
    """The blocks of a pattern; blocks of queries that meet fewer keys than others are filled up with masked ones."""
    p, g = pattern.text, pattern.grid
    seen = mask(pattern)[p:, p:]
    order = np.arange(g**2).reshape(g, g).T.reshape(-1) if pattern.kind in ("column", "axial_column") else None
    seen = seen if order is None else seen[order][:, order]
    blocks = seen.reshape(g, g, g, g).transpose(0, 2, 1, 3)                                     # [n, n, query, key]
    met = [np.flatnonzero(row) for row in blocks.any((2, 3))]
    most = max(map(len, met))
    spare = [np.setdiff1d(np.arange(g), row)[: most - len(row)] for row in met]
    keys = np.stack([np.concatenate([row, rest]) for row, rest in zip(met, spare, strict=True)])
    taken = np.take_along_axis(blocks, keys[:, :, None, None], axis=1)                          # [n, m, query, key]
    return Plan(order, keys, additive(taken.transpose(0, 2, 1, 3).reshape(g, g, most * g)))


def dense_attention(q: Array, k: Array, v: Array, pattern: Pattern) -> Array:
    """Attention under a pattern, all products computed and masked: [B, heads, T, d] each, T <= S, the first T tokens."""
    length = q.shape[2]
    return attention(q, k, v, additive(mask(pattern)[:length, :length])[None])


def sparse_attention(q: Array, k: Array, v: Array, pattern: Pattern) -> Array:
    """Attention under a pattern, only the products of its blocks computed: [B, heads, S, d] each, the whole sequence."""
    p, g = pattern.text, pattern.grid
    order, keys, bias = plan(pattern)
    text = attention(q[:, :, :p], k[:, :, :p], v[:, :, :p], additive(np.tri(p, dtype=bool))[None])

    def blocks(x: Array) -> Array:
        x = x[:, :, p:]
        return (x if order is None else x[:, :, order]).reshape(*x.shape[:2], g, g, x.shape[-1])

    qi = blocks(q) * q.shape[-1] ** -0.5                                                        # [B, heads, n, g, d]
    ki, vi = (x[:, :, keys].reshape(*x.shape[:3], -1, x.shape[-1]) for x in (blocks(k), blocks(v)))
    near = jnp.einsum("bhnqd,bhnkd->bhnqk", qi, ki, preferred_element_type=jnp.float32) + bias[None, None]
    far = jnp.einsum("bhnqd,bhkd->bhnqk", qi, k[:, :, :p], preferred_element_type=jnp.float32)
    top = jnp.maximum(near.max(-1, keepdims=True), far.max(-1, keepdims=True))
    near, far = jnp.exp(near - top), jnp.exp(far - top)
    out = jnp.einsum("bhnqk,bhnkd->bhnqd", near.astype(v.dtype), vi, preferred_element_type=jnp.float32)
    out = out + jnp.einsum("bhnqk,bhkd->bhnqd", far.astype(v.dtype), v[:, :, :p], preferred_element_type=jnp.float32)
    image = (out / (near.sum(-1, keepdims=True) + far.sum(-1, keepdims=True))).astype(v.dtype)
    image = image.reshape(*q.shape[:2], g * g, -1)
    return jnp.concatenate([text, image if order is None else image[:, :, np.argsort(order)]], axis=2)


@functools.lru_cache(maxsize=64)
def visible(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that each token sees: (positions [S, M], additive mask [S, M]), M the most that one of them sees."""
    seen = mask(pattern)
    most = seen.sum(1).max()
    positions = np.argsort(~seen, axis=1, kind="stable")[:, :most].astype(np.int32)
    return positions, additive(np.take_along_axis(seen, positions, axis=1))


def cached_attention(q: Array, k: Array, v: Array, position: Array, pattern: Pattern) -> Array:
    """Attention of the one token at `position` to those before it, of whose keys only the visible ones are read.

    Args:
      q: [B, heads, 1, d].
      k, v: [B, heads, S, d], filled up to and with `position`.
      position: int scalar.
      pattern: who sees whom.

    Returns:
      [B, heads, 1, d].
    """
    positions, bias = visible(pattern)
    if 2 * positions.shape[1] > pattern.length:                       # most are visible: reading all is cheaper than choosing
        return attention(q, k, v, jnp.asarray(additive(mask(pattern)))[position][None, None])
    chosen = jnp.asarray(positions)[position]
    return attention(q, k[:, :, chosen], v[:, :, chosen], jnp.asarray(bias)[position][None, None])
