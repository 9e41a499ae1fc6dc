"""The autoregressive prior of unCLIP (Ramesh et al. 2022, arXiv 2204.06125, sec. 2.2): the codes of an embedding, one by one.

A causal transformer sees the row

    [W1 states of the text ..., W2 embedding of the text, dot, code_1, code_2 ...] + position         (1)

whose dot token says how near the image is to the text, and at the places of dot, code_1 ... it says what comes next:

    logits_k = W norm(transformer(row))_(dot + k)                                                     (2)

The codes are those of tasks/embedder.py. Sampling keeps the keys and values of all layers and computes one place at a time.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.dalle import Block, Cache
from diffusion_jax.models.transformer import causal
from diffusion_jax.models.unclip import TEXT, text_of
from diffusion_jax.nn.linear import Linear
from diffusion_jax.nn.masked_attention import masked_attention
from diffusion_jax.nn.norm import LayerNorm
from diffusion_jax.nn.tokens import choose
from diffusion_jax.types import Array, Raw

INIT = nn.initializers.normal(0.02)


class ARPrior(nn.Module):
    """The network.

    Attributes:
      length: the most codes of an embedding; no more than its channels are needed.
      context: tokens of a text.
      width, depth, heads: of the transformer.
      codes: K, the buckets of a code.
      dots: how many dot tokens there are; one more stands for a dropped text.
      dropout: of what is added to the residual stream; acts where a key named 'dropout' is given.
      dtype: of the products.

    Parameters: text_seq, text_vec, dot [dots + 1, D], code [codes, D], position [context + 2 + length, D], blocks_i, norm, head.
    """

    length: int
    context: int = 77
    width: int = 2048
    depth: int = 24
    heads: int = 32
    codes: int = 1024
    dots: int = 32
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self):
        """Layers; see the attributes."""
        self.text_seq, self.text_vec = Linear(self.width), Linear(self.width)
        self.dot = nn.Embed(self.dots + 1, self.width, embedding_init=INIT)
        self.code = nn.Embed(self.codes, self.width, embedding_init=INIT)
        self.position = self.param("position", nn.initializers.normal(0.01), (self.context + 2 + self.length, self.width))
        self.blocks = [Block(self.heads, dropout=self.dropout, dtype=self.dtype) for _ in range(self.depth)]
        self.norm, self.head = LayerNorm(1e-5), Linear(self.codes)

    def __call__(self, raw: Raw, codes: Array) -> Array:
        """Logits (2), [B, n, codes], of the codes [B, n] themselves.

        Args:
          raw: clip_text [B, F], text_states [B, context, D], text_mask [B, context], clip_dot [B] int, and perhaps with_text [B].
          codes: int32 [B, n], n <= length.
        """
        row, mask = self._prefix(raw)
        row = jnp.concatenate([row, self.code(codes[:, :-1])], axis=1)
        places = row.shape[1]
        x = (row + self.position[None, :places]).astype(self.dtype)
        mask = jnp.pad(mask, ((0, 0), (0, places - mask.shape[1])), constant_values=True)
        for block in self.blocks:
            x, _ = block(x, partial(_attend, mask=mask))
        return self.head(self.norm(x[:, self.context + 1 :].astype(jnp.float32)))

    def _prefix(self, raw: Raw) -> tuple[Array, Array]:
        """The row (1) up to the dot [B, context + 2, D], without its positions, and which of it is real."""
        embedding, states, real = text_of(raw)
        dot = jnp.where(raw["with_text"] > 0, raw["clip_dot"], self.dots) if "with_text" in raw else raw["clip_dot"]
        last = jnp.stack([self.text_vec(embedding), self.dot(dot)], axis=1)
        return jnp.concatenate([self.text_seq(states), last], axis=1), jnp.pad(real, ((0, 0), (0, 2)), constant_values=True)

    def prefill(self, raw: Raw, length: int) -> tuple[Array, Cache, Array]:
        """(logits of the first code [B, codes], cache with room for `length` codes, mask of its places)."""
        row, mask = self._prefix(raw)
        x, cache = (row + self.position[None, : row.shape[1]]).astype(self.dtype), []
        for block in self.blocks:
            x, kept = block(x, partial(_attend, mask=mask))
            cache.append(tuple(jnp.pad(part, ((0, 0), (0, 0), (0, length), (0, 0))) for part in kept))
        logits = self.head(self.norm(x[:, -1:].astype(jnp.float32)))[:, 0]
        return logits, cache, jnp.pad(mask, ((0, 0), (0, length)), constant_values=True)

    def step(self, code: Array, place: Array, cache: Cache, mask: Array) -> tuple[Array, Cache]:
        """One more code: code [B], which one it is from 0 on, cache and mask -> (logits of the next [B, codes], cache)."""
        where = self.context + 2 + place
        x, new = (self.code(code[:, None]) + self.position[where][None, None]).astype(self.dtype), []
        for block, kept in zip(self.blocks, cache, strict=True):
            x, kept = block(x, partial(_attend_cached, cache=kept, place=where, mask=mask))
            new.append(kept)
        return self.head(self.norm(x.astype(jnp.float32)))[:, 0], new


def _attend(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Any]:
    """Causal attention: (out, keys and values)."""
    return masked_attention(q, k, v, mask, causal(q.shape[2])), (k, v)


def _attend_cached(q: Array, k: Array, v: Array, cache: tuple[Array, Array], place: Array, mask: Array) -> tuple[Array, Any]:
    """Attention of the token at `place`, whose key and value join the cache."""
    zero = jnp.zeros((), jnp.int32)
    k, v = (jax.lax.dynamic_update_slice(old, new, (zero, zero, place, zero)) for old, new in zip(cache, (k, v), strict=True))
    seen = mask & (jnp.arange(k.shape[2]) <= place)[None]
    return masked_attention(q, k, v, seen), (k, v)


def pick(model: ARPrior, params: Any, raw: Raw, length: int, keys: Array, guidance: Array | float = 1.0, guided: bool = True,
         temperature: Array | float = 1.0) -> Array:
    """Codes [B, length] drawn one after the other, null + w (cond - null) being their logits.

    Args:
      model, params: the network and its parameters.
      raw: see `ARPrior`; with the empty text where `guided`.
      length: codes to draw.
      keys: of the draws, [B]; those of code k come from fold_in(key, k).
      guidance: w.
      guided: whether there is guidance at all.
      temperature: of the softmax.
    """
    bound = {"params": params}
    if guided:
        ones = jnp.ones(len(raw[TEXT[0]]))
        double = {name: jnp.concatenate([value, value]) for name, value in raw.items()}
        raw = {**double, "with_text": jnp.concatenate([ones, 0 * ones])}

    def drawn(logits: Array, place: Array) -> Array:
        if guided:
            cond, null = jnp.split(logits, 2)
            logits = null + guidance * (cond - null)
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, place), logits.shape[1:]))(keys)
        return choose(logits / temperature, noise)

    def step(carry: tuple[Array, Cache], place: Array) -> tuple[tuple[Array, Cache], Array]:
        code, cache = carry
        both = jnp.concatenate([code, code]) if guided else code
        logits, cache = model.apply(bound, both, place, cache, mask, method="step")
        code = drawn(logits, place + 1)
        return (code, cache), code

    logits, cache, mask = model.apply(bound, raw, length, method="prefill")
    first = drawn(logits, jnp.int32(0))
    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(length - 1, dtype=jnp.int32))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
