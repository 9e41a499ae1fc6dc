"""The tokenizer that fits the captions at hand, for pages that choose one by them.

    CLIP's merges are there            ClipBPE: it spells any prompt
    up to `WORDS` words                Words of these captions: the least to learn
    more                               Bytes
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.clip_bpe import find_merges
from diffusion_jax.data.rows import spread
from diffusion_jax.data.survey import TEXTS
from diffusion_jax.data.words import vocabulary

WORDS = 2_000
TOKENS, BYTES = 77, 256
"""The most tokens of a caption, and of a tokenizer of bytes."""
EIGHT = 8
"""Lengths are rounded up to multiples of it, so that one more caption more seldom makes another network."""


class Spelling(NamedTuple):
    """A tokenizer, and what a network that reads its tokens must know.

    Attributes:
      spec: what to `build` it from, a page's section data.decode.tokenizer.
      vocab: how many tokens there are.
      length: how many a caption has.
      empty: the tokens of the empty text, the last one again and again (models/text_cond.py:TowerText).
    """

    spec: dict[str, Any]
    vocab: int
    length: int
    empty: tuple[int, ...]


def spelling(captions: Sequence[str], merges: str | None = None, most: int | None = None) -> Spelling:
    """Chooses a tokenizer, with room for the longest caption up to `TOKENS`; longer ones are cut.

    Args:
      captions: all of a data set.
      merges: the file of CLIP's merges; None looks for that of open_clip_torch.
      most: how many of the merges to use; None for all.

    Raises:
      ConfigError: `merges` is no such file; ClipBPE lacks a package (ftfy, regex).
    """
    room, limit = "length", TOKENS
    if merges is not None or _clip_is_installed():
        options = {key: value for key, value in (("merges", merges), ("most", most)) if value is not None}
        spec, room = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", **options), "context"
    elif len(words := vocabulary(captions)) <= WORDS:
        spec = dict(name="diffusion_jax.data.words:Words", words=words)
    else:
        spec, limit = dict(name="diffusion_jax.data.words:Bytes"), BYTES
    count = build({**spec, room: limit}).count
    longest = max(count(captions[row]) for row in spread(len(captions), TEXTS))
    spec[room] = min(-(-max(longest, 1) // EIGHT) * EIGHT, limit)
    if longest > limit:
        spec["truncate"] = True
    tokenizer = build(spec)
    empty = (tokenizer.start, tokenizer.end, 0) if room == "context" else (0,)
    return Spelling(spec, vocab_of(tokenizer), length_of(tokenizer), empty)


def vocab_of(tokenizer: Any) -> int:
    """How many tokens a tokenizer has."""
    return tokenizer.vocab if hasattr(tokenizer, "vocab") else tokenizer.size


def length_of(tokenizer: Any) -> int:
    """How many tokens of a text a tokenizer gives."""
    return tokenizer.context if hasattr(tokenizer, "context") else tokenizer.length


def _clip_is_installed() -> bool:
    try:
        return find_merges().is_file()
    except ConfigError:
        return False
