"""T5's tokenizer (Kudo & Richardson 2018, arXiv 1808.06226): text -> numbers, by a model of SentencePiece.

    text -> Unicode in its compatible form, single spaces, "_" in place of each and before the first word
         -> the most probable pieces of the model's vocabulary
         -> numbers, the end token, and the token that fills up, to the context

The model is a file that lies beside the weights of every T5, spiece.model. What it makes of a text, the package sentencepiece
computes (Apache 2.0; extra `text`); the normal form and the numbers of the special tokens stand in the file.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import bpe

FILE = "spiece.model"
MOST_BYTES = 2**26
"""Of a model; the published ones of T5 have 0.8 million, those of a hundred languages 4."""
FILL, END = 0, 1
"""Of T5's own vocabulary, where a model does not say."""


@dataclass(frozen=True)
class SentencePieces:
    """The tokenizer.

    Attributes:
      model: the file.
      context: length of what comes out.
      truncate: whether training may cut captions that are too long (data/survey.py); without it such data are refused.

    Raises:
      ConfigError: at first use: no such file, another kind of file, or the package is missing.

    Example:
      SentencePieces('text_encoder_3/spiece.model', context=6)('A cat')
      array([  71, 1712,    1,    0,    0,    0], dtype=int32)
    """

    model: str
    context: int = 256
    truncate: bool = False

    def __post_init__(self):
        bpe.room("context", self.context, 1)

    @property
    def vocab(self) -> int:
        """The number of tokens of the model; T5's embedding has some hundred rows more."""
        return self._pieces.vocab_size()

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return self._or(self._pieces.eos_id(), END)

    @property
    def fill(self) -> int:
        """The token that fills up."""
        return self._or(self._pieces.pad_id(), FILL)

    def __call__(self, text: str, truncate: bool = True) -> np.ndarray:
        """The tokens of a text, int32 [context].

        Args:
          text: anything.
          truncate: cut a text that is too long, which keeps its end token.

        Raises:
          ConfigError: it is too long, and not to be cut.
        """
        numbers = [*self.encode(text), self.end]
        if not truncate:
            bpe.fits(len(numbers), self.context, text)
        return bpe.row(numbers, self.context, self.fill, self.end)

    def batch(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [N, context]."""
        return np.stack([self(text) for text in texts])

    def count(self, text: str) -> int:
        """How many tokens a text has, the end among them, before any is cut."""
        return len(self.encode(text)) + 1

    def encode(self, text: str) -> list[int]:
        """The numbers of a text, without the end."""
        return list(self._pieces.encode(text))

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers; the end and what fills up are nothing."""
        return self._pieces.decode([int(number) for number in numbers])

    @functools.cached_property
    def content(self) -> bytes:
        """The file itself, for an export."""
        path = Path(self.model).expanduser()
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ConfigError(f"{path} has {path.stat().st_size:,} bytes, no model of SentencePiece has: give {FILE}")
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"T5's tokenizer needs {FILE}, which lies beside the published weights: {path}: "
                              f"{error.strerror}; give its path as 'model' of the tokenizer") from None

    @functools.cached_property
    def _pieces(self) -> Any:
        try:
            import sentencepiece
        except ImportError:
            raise ConfigError("T5's tokenizer needs the package sentencepiece: pip install 'diffusion_jax[text]'") from None
        pieces = sentencepiece.SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(self.content)
        except RuntimeError:
            raise ConfigError(f"{self.model} does not read as a model of SentencePiece: give {FILE} of the checkpoint") from None
        return pieces

    @staticmethod
    def _or(number: int, other: int) -> int:
        """A special token's number, or another one where the model has none, -1."""
        return number if number >= 0 else other
