"""GLIDE's tokenizer (Nichol et al. 2021, arXiv 2112.10741), that of GPT-2 in lower case: text -> numbers.

    text -> lower case
         -> words: 's 't 're 've 'm 'll 'd, letters, digits or other signs with the space before them, spaces
         -> the bytes of each word, merged (data/bpe.py)
         -> numbers, and the end token up to the context; a mask tells which are real

The numbers are: 256 bytes, the merges, the end token. There is no start token, and a long text is cut without an end token.
Without merges every byte is a token.

The merges are GPT-2's vocab.bpe, at https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe, gzipped in
https://github.com/openai/glide-text2im/tree/main/glide_text2im/tokenizer (MIT licence).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WHERE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"


@dataclass(frozen=True)
class GlideBPE:
    """The tokenizer.

    Attributes:
      merges: the file vocab.bpe, gzipped or not; '' is no merges: 257 tokens, for small models that need no download.
      context: length of what comes out.
      truncate: whether training may cut captions that are too long (data/survey.py); without it such data are refused.

    Raises:
      ConfigError: at first use: no file of merges, or the package regex is missing.

    Example:
      >>> GlideBPE(merges='', context=4)('Hi')
      array([ 71,  72, 256, 256], dtype=int32)
    """

    merges: str | None = None
    context: int = 128
    truncate: bool = False

    def __post_init__(self):
        bpe.room("context", self.context)

    @property
    def vocab(self) -> int:
        """The number of tokens."""
        return len(self._numbers) + 1

    @property
    def end(self) -> int:
        """The token that fills up the context, the largest; a text of nothing else is no caption."""
        return len(self._numbers)

    def __call__(self, text: str, truncate: bool = True) -> np.ndarray:
        """The tokens of a text, int32 [context]; the mask is `mask`.

        Args:
          text: anything.
          truncate: cut a text that is too long.

        Raises:
          ConfigError: it is too long, and not to be cut.
        """
        numbers = self.encode(text)
        if not truncate:
            bpe.fits(len(numbers), self.context, text)
        return bpe.row(numbers, self.context, self.end)

    def batch(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, context]."""
        return np.stack([self(text) for text in texts])

    def mask(self, tokens: np.ndarray) -> np.ndarray:
        """Which tokens are real: bool, shaped like `tokens`."""
        return tokens != self.end

    def count(self, text: str) -> int:
        """How many tokens a text has, before any is cut."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """The numbers of a text."""
        return [number for word in self._words.findall(text.lower()) for number in self._word(word)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers; the end token is nothing."""
        symbols = [*self._numbers, ""]
        return bpe.read_back("".join(symbols[number] for number in numbers))

    @functools.cached_property
    def _words(self):
        return bpe.pattern(WORDS)

    @functools.cached_property
    def _pairs(self) -> list[bpe.Pair]:
        if self.merges is None:
            raise ConfigError(f"GLIDE's tokenizer needs vocab.bpe, from {WHERE}: import again with --official, a JSON file of "
                              '{"merges": "vocab.bpe"}, or give its path as \'merges\' of the tokenizer')
        return bpe.read_merges(self.merges) if self.merges else []

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        symbols = [*bpe.letters().values(), *("".join(pair) for pair in self._pairs)]
        return {symbol: i for i, symbol in enumerate(symbols)}

    @functools.cached_property
    def _word(self) -> Callable[[str], tuple[int, ...]]:
        numbers, ranks = self._numbers, {pair: i for i, pair in enumerate(self._pairs)}
        return bpe.remembered(lambda word: tuple(numbers[symbol] for symbol in bpe.merge(tuple(bpe.spelt(word)), ranks)))
