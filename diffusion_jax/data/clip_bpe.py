"""CLIP's tokenizer (Radford et al. 2021, arXiv 2103.00020): text -> numbers.

    text -> mended Unicode, HTML entities resolved twice, single spaces, lower case
         -> words: 's 't 're 've 'm 'll 'd, letters, single digits, anything else that is no space
         -> the bytes of each word, the last one marked as the end of a word, merged (data/bpe.py)
         -> start, numbers, end, and zeros up to the context

The numbers are: 256 bytes, the same at the end of a word, the merges, start, end. Without merges every byte is a token.

The merges are a file of OpenAI's, bpe_simple_vocab_16e6.txt.gz (MIT licence, md5 933b7abbbbde62c36f02f0e6ccde464f), at
https://github.com/openai/CLIP/tree/main/clip; the package open_clip_torch carries the same file, and is looked for.
"""
from __future__ import annotations

import functools
import html
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe

FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894
END = "</w>"
START_TEXT, END_TEXT = "<|startoftext|>", "<|endoftext|>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def find_merges() -> Path:
    """The file of merges of an installed open_clip_torch, which is not imported.

    Raises:
      ConfigError: it is not installed; says where the file is.
    """
    spec = importlib.util.find_spec("open_clip")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(place) / FILE).is_file():
            return file
    raise ConfigError(f"CLIP's tokenizer needs {FILE}: pip install open_clip_torch, or get it from "
                      "https://github.com/openai/CLIP/tree/main/clip and give its path as 'merges'")


@dataclass(frozen=True)
class ClipBPE:
    """The tokenizer.

    Attributes:
      merges: the file; None finds that of open_clip_torch, '' is no merges: 514 tokens, for small models that need no download.
      context: length of what comes out.
      pad_end: pad with the end token in place of zero, as Stable Diffusion does.
      most: how many of the merges to use, first things first; fewer than all make a smaller vocabulary, for a model of one's own.
      truncate: whether training may cut captions that are too long (data/survey.py); without it such data are refused.

    Raises:
      ConfigError: at first use: no file of merges, or a package is missing (ftfy, regex).

    Example:
      >>> ClipBPE(merges='', context=6)('Hi')
      array([512,  71, 328, 513,   0,   0], dtype=int32)
    """

    merges: str | None = None
    context: int = 77
    pad_end: bool = False
    most: int = MERGES
    truncate: bool = False

    def __post_init__(self):
        bpe.room("context", self.context, 2, self.most)

    @property
    def vocab(self) -> int:
        """The number of tokens."""
        return len(self._numbers)

    @property
    def numbers(self) -> dict[str, int]:
        """Symbol -> its number: what other programs call the vocabulary."""
        return dict(self._numbers)

    @property
    def pairs(self) -> list[bpe.Pair]:
        """The merges, first things first."""
        return list(self._pairs)

    @property
    def start(self) -> int:
        """The token that begins a text."""
        return self.vocab - 2

    @property
    def end(self) -> int:
        """The token that ends a text, the largest."""
        return self.vocab - 1

    def __call__(self, text: str, truncate: bool = True) -> np.ndarray:
        """The tokens of a text, int32 [context].

        Args:
          text: anything.
          truncate: cut a text that is too long, which keeps its end token.

        Raises:
          ConfigError: it is too long, and not to be cut.
        """
        numbers = [self.start, *self.encode(text), self.end]
        if not truncate:
            bpe.fits(len(numbers), self.context, text)
        return bpe.row(numbers, self.context, self.end if self.pad_end else 0, self.end)

    def batch(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, context]."""
        return np.stack([self(text) for text in texts])

    def count(self, text: str) -> int:
        """How many tokens a text has, start and end among them, before any is cut."""
        return len(self.encode(text)) + 2

    def encode(self, text: str) -> list[int]:
        """The numbers of a text, without start and end."""
        return [number for word in self._words.findall(clean(text)) for number in self._word(word)]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers; a space after every word."""
        symbols = list(self._numbers)
        return bpe.read_back("".join(symbols[number] for number in numbers)).replace(END, " ")

    @functools.cached_property
    def _words(self):
        return bpe.pattern(WORDS, ignore_case=True)

    @functools.cached_property
    def _pairs(self) -> list[bpe.Pair]:
        return [] if self.merges == "" else bpe.read_merges(self.merges or find_merges(), self.most)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        single = list(bpe.letters().values())
        symbols = single + [letter + END for letter in single] + ["".join(pair) for pair in self._pairs]
        return {symbol: i for i, symbol in enumerate([*symbols, START_TEXT, END_TEXT])}

    @functools.cached_property
    def _word(self) -> Callable[[str], tuple[int, ...]]:
        numbers, ranks = self._numbers, {pair: i for i, pair in enumerate(self._pairs)}

        def word(text: str) -> tuple[int, ...]:
            if text in (START_TEXT, END_TEXT):
                return (numbers[text],)
            spelt = bpe.spelt(text)
            return tuple(numbers[symbol] for symbol in bpe.merge((*spelt[:-1], spelt[-1] + END), ranks))

        return bpe.remembered(word)


def clean(text: str) -> str:
    """Mended Unicode, no HTML entities, single spaces, lower case."""
    text = html.unescape(html.unescape(bpe.wanted("ftfy").fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip().lower()
