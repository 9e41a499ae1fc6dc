"""The tokens of a text for Stable Diffusion 3, whose three encoders have a tokenizer each, in one row.

    [CLIP's, filled up with its end | CLIP's, filled up with 0 | T5's]

Without T5's model there are the first two alone. What CLIP has no room for T5 still reads, so a text is too long where T5 has no
room for it; without T5, where CLIP has none.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe
from diffusion_jax.data.clip_bpe import MERGES, ClipBPE
from diffusion_jax.data.sentence_pieces import SentencePieces


@dataclass(frozen=True)
class SD3Tokens:
    """The tokenizer.

    Attributes:
      length: of the whole row: twice `clip`, and what T5 gets, 256 in the published pipelines.
      clip: the length of each of CLIP's parts.
      pieces: the file of T5's model, spiece.model; None for a model without T5.
      merges, most: of CLIP's tokenizer, see data/clip_bpe.py.
      truncate: whether training may cut captions that are too long (data/survey.py); without it such data are refused.

    Raises:
      ConfigError: the length leaves T5 no room, or room where there is no T5; at first use what the two tokenizers refuse.

    Example:
      SD3Tokens(length=410, pieces='tokenizer_3/spiece.model')('a cat').shape
      (410,)
    """

    length: int = 154
    clip: int = 77
    pieces: str | None = None
    merges: str | None = None
    most: int = MERGES
    truncate: bool = False

    def __post_init__(self):
        bpe.room("length", self.length, 1)
        bpe.room("clip", self.clip, 2, self.most)
        if (self.pieces is None) != (self.length == 2 * self.clip) or self.length < 2 * self.clip:
            raise ConfigError(f"a row of {self.length} tokens has {2 * self.clip} of CLIP's, the others are T5's: give `pieces` "
                              "and a larger length, or leave out both")

    @property
    def context(self) -> int:
        """How many tokens a text may `count`."""
        return self.clip if self.pieces is None else self.length - 2 * self.clip

    @property
    def vocab(self) -> int:
        """The number of tokens of the larger vocabulary."""
        return max(self.first.vocab, 0 if self.t5 is None else self.t5.vocab)

    def __call__(self, text: str, truncate: bool = True) -> np.ndarray:
        """The tokens of a text, int32 [length].

        Args:
          text: anything.
          truncate: cut a text that is too long; each part keeps its end token.

        Raises:
          ConfigError: it is too long, and not to be cut.
        """
        if not truncate:
            bpe.fits(self.count(text), self.context, text)
        parts = (self.first, self.second) if self.t5 is None else (self.first, self.second, self.t5)
        return np.concatenate([part(text) for part in parts])

    def batch(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, length]."""
        return np.stack([self(text) for text in texts])

    def count(self, text: str) -> int:
        """How many tokens a text has for the encoder that decides whether it is too long, before any is cut."""
        return (self.first if self.t5 is None else self.t5).count(text)

    @functools.cached_property
    def first(self) -> ClipBPE:
        """That of the smaller CLIP."""
        return ClipBPE(self.merges, self.clip, pad_end=True, most=self.most)

    @functools.cached_property
    def second(self) -> ClipBPE:
        """That of the larger CLIP."""
        return ClipBPE(self.merges, self.clip, pad_end=False, most=self.most)

    @functools.cached_property
    def t5(self) -> SentencePieces | None:
        """That of T5; None without one."""
        return None if self.pieces is None else SentencePieces(self.pieces, self.context)
