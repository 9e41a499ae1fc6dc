"""The captions of DALL-E: byte-pair encoding with dropout (Ramesh et al. 2021, arXiv 2102.12092, section 2.2 and appendix B.2).

    text -> clean and lower-case, words, bytes with the end of a word marked (clip_bpe.py)
         -> merged, in training each possible merge passed over with probability p   (Provilkov et al., 1910.13267, algorithm 1)
         -> numbers from 1 on, zeros up to the length

so that the network sees rare symbols, and several spellings of a word; the paper has p = 0.1. The package tokenizers has the same
dropout, but draws it from a generator that nothing seeds, and a resumed run would not be the run that was never interrupted.
"""
from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe
from diffusion_jax.data.clip_bpe import END, MERGES, WORDS, clean, find_merges


@dataclass(frozen=True)
class CaptionBPE:
    """The tokenizer. Token 0 fills a caption up; no other is no caption.

    Attributes:
      length: tokens of a caption.
      merges: file of merges; None finds CLIP's, '' is no merges: every byte is a token.
      most: how many of the merges to use, first things first.
      dropout: p, where a generator is given.
      truncate: whether captions that are too long are cut where a call does not say; without it they are refused.

    Raises:
      ConfigError: a dropout that is no probability; at first use: no file of merges, or a package is missing (ftfy, regex).

    Example:
      >>> CaptionBPE(merges='', length=4)('Hi')
      array([ 72, 329,   0,   0], dtype=int32)
    """

    length: int
    merges: str | None = None
    most: int = MERGES
    dropout: float = 0.0
    truncate: bool = False

    def __post_init__(self):
        bpe.room("length", self.length, merges=self.most)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout of merges is a probability below 1, got {self.dropout}")

    @property
    def size(self) -> int:
        """The number of tokens, 0 among them."""
        return len(self._numbers) + 1

    def __call__(self, text: str, truncate: bool | None = None, rng: np.random.Generator | None = None) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Args:
          text: anything.
          truncate: cut a caption that is too long; None is as the tokenizer has it.
          rng: draws which merges are passed over; None passes over none. A spelling that is too long where the usual one is not
            gives way to that one: no draw of chance loses a word.

        Raises:
          ConfigError: it is too long, and not to be cut.
        """
        symbols = self._symbols(text, rng)
        if rng is not None and len(symbols) > self.length:
            symbols = self._symbols(text, None)
        if not (self.truncate if truncate is None else truncate):
            bpe.fits(len(symbols), self.length, text)
        return bpe.row([self._numbers[symbol] for symbol in symbols], self.length, 0)

    def count(self, text: str) -> int:
        """How many tokens a caption has, before any is cut."""
        return len(self._symbols(text, None))

    def _symbols(self, text: str, rng: np.random.Generator | None) -> list[str]:
        return [symbol for word in self._words.findall(clean(text)) for symbol in self._merged(word, rng)]

    def _merged(self, word: str, rng: np.random.Generator | None) -> tuple[str, ...]:
        spelt = bpe.spelt(word)
        symbols = (*spelt[:-1], spelt[-1] + END)
        if rng is None or not self.dropout:
            return bpe.merge(symbols, self._ranks)
        return merge_some(symbols, self._ranks, self.dropout, rng)

    @functools.cached_property
    def _words(self):
        return bpe.pattern(WORDS, ignore_case=True)

    @functools.cached_property
    def _ranks(self) -> dict[bpe.Pair, int]:
        pairs = [] if self.merges == "" else bpe.read_merges(self.merges or find_merges(), self.most)
        return {pair: i for i, pair in enumerate(pairs)}

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        single = list(bpe.letters().values())
        symbols = single + [letter + END for letter in single] + ["".join(pair) for pair in self._ranks]
        return {symbol: i for i, symbol in enumerate(symbols, 1)}


def merge_some(symbols: tuple[str, ...], ranks: Mapping[bpe.Pair, int], p: float, rng: np.random.Generator) -> tuple[str, ...]:
    """A word's symbols after merges of which each, wherever and whenever it is possible, is passed over with probability p."""
    while True:
        possible = sorted((ranks[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks)
        at = next((i for _, i in possible if rng.random() >= p), None)
        if at is None:
            return symbols
        symbols = (*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :])
