"""Two tokenizers that need no file: words of a small vocabulary, and bytes. Token 0 fills a caption up; no other is no caption.

Those of CLIP and GLIDE are in clip_bpe.py and glide_bpe.py.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import ConfigError, unknown


def _filled(numbers: list[int], length: int, text: str) -> np.ndarray:
    """int32 [length], zeros after the numbers."""
    if len(numbers) > length:
        raise ConfigError(f"a caption of {len(numbers)} tokens is too long, {length} is the tokenizer's length: {text[:40]!r}")
    return np.array(numbers + [0] * (length - len(numbers)), np.int32)


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

    def __call__(self, text: str) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Raises:
          ConfigError: a word that is not in the vocabulary (names the nearest one), or too many words.
        """
        found = re.findall(r"\w+", text.lower())
        for word in found:
            if word not in self.words:
                raise unknown("word", word, self.words)
        return _filled([self.words.index(word) + 1 for word in found], self.length, text)


@dataclass(frozen=True)
class Bytes:
    """The bytes of a caption in UTF-8: byte b is token b + 1.

    Attributes:
      length: tokens of a caption.
    """

    length: int

    size = 257

    def __call__(self, text: str) -> np.ndarray:
        """The tokens of a caption, int32 [length].

        Raises:
          ConfigError: too many bytes.
        """
        return _filled([byte + 1 for byte in text.encode()], self.length, text)
