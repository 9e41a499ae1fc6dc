"""Two tokenizers that need no file: words of a small vocabulary, and bytes. Token 0 fills a caption up; no other is no caption.

Those of CLIP and GLIDE are in clip_bpe.py and glide_bpe.py.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import unknown
from diffusion_jax.data.bpe import fits, room
from diffusion_jax.files import composed


def vocabulary(texts: Iterable[str]) -> tuple[str, ...]:
    """All words of some texts, as `Words` reads them, in the order of the alphabet."""
    return tuple(sorted({word for text in texts for word in _words(text)}))


def _words(text: str) -> list[str]:
    # An accent that stands by itself is no part of a word.
    return re.findall(r"\w+", composed(text).lower())


def _filled(numbers: list[int], length: int, text: str, truncate: bool) -> np.ndarray:
    """int32 [length], zeros after the numbers."""
    if not truncate:
        fits(len(numbers), length, text)
    return np.array((numbers + [0] * length)[:length], np.int32)


@dataclass(frozen=True)
class Words:
    """Lower-case words of a fixed vocabulary: word i is token i + 1.

    Attributes:
      words: the vocabulary.
      length: tokens of a caption.
      truncate: whether captions that are too long are cut where a call does not say; without it they are refused.
    """

    words: tuple[str, ...]
    length: int
    truncate: bool = False

    def __post_init__(self):
        room("length", self.length)

    @property
    def size(self) -> int:
        """The number of tokens, 0 among them."""
        return len(self.words) + 1

    def __call__(self, text: str, truncate: bool | None = None) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Raises:
          ConfigError: a word that is not in the vocabulary (names the nearest one), or too many words that are not to be cut.
        """
        return _filled(self._numbers(text), self.length, text, self.truncate if truncate is None else truncate)

    def count(self, text: str) -> int:
        """How many tokens a caption has, before any is cut; `ConfigError` for a word that is not in the vocabulary."""
        return len(self._numbers(text))

    def _numbers(self, text: str) -> list[int]:
        words = _words(text)
        for word in words:
            if word not in self.words:
                raise unknown("word", word, self.words)
        return [self.words.index(word) + 1 for word in words]


@dataclass(frozen=True)
class Bytes:
    """The bytes of a caption in UTF-8: byte b is token b + 1.

    Attributes:
      length: tokens of a caption.
      truncate: whether captions that are too long are cut where a call does not say; without it they are refused.
    """

    length: int
    truncate: bool = False

    size = 257

    def __post_init__(self):
        room("length", self.length)

    def __call__(self, text: str, truncate: bool | None = None) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Raises:
          ConfigError: too many bytes that are not to be cut.
        """
        truncate = self.truncate if truncate is None else truncate
        return _filled([byte + 1 for byte in text.encode()], self.length, text, truncate)

    def count(self, text: str) -> int:
        """How many tokens a caption has, before any is cut."""
        return len(text.encode())
