"""Two tokenizers that need no file: words of a small vocabulary, and bytes. Token 0 fills a caption up; no other is no caption.

Those of CLIP and GLIDE are in clip_bpe.py and glide_bpe.py.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import unknown
from diffusion_jax.data.bpe import fits


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
    """

    words: tuple[str, ...]
    length: int

    @property
    def size(self) -> int:
        """The number of tokens, 0 among them."""
        return len(self.words) + 1

    def __call__(self, text: str, truncate: bool = False) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Raises:
          ConfigError: a word that is not in the vocabulary (names the nearest one), or too many words that are not to be cut.
        """
        found = re.findall(r"\w+", text.lower())
        for word in found:
            if word not in self.words:
                raise unknown("word", word, self.words)
        return _filled([self.words.index(word) + 1 for word in found], self.length, text, truncate)


@dataclass(frozen=True)
class Bytes:
    """The bytes of a caption in UTF-8: byte b is token b + 1.

    Attributes:
      length: tokens of a caption.
    """

    length: int

    size = 257

    def __call__(self, text: str, truncate: bool = False) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Raises:
          ConfigError: too many bytes that are not to be cut.
        """
        return _filled([byte + 1 for byte in text.encode()], self.length, text, truncate)
