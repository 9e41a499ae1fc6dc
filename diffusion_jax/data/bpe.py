"""Byte-pair encoding (Sennrich et al. 1508.07909) over bytes, as in GPT-2: what the tokenizers of CLIP and GLIDE share.

A word is a row of symbols. The pair of neighbours that stands first in the list of merges becomes one symbol, wherever it occurs,
again and again until none of the pairs left is in the list.

Files with merges write bytes as letters: a byte that is a printable sign of Latin-1 stands for itself, the others are 256 on.
"""
from __future__ import annotations

import functools
import gzip
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, number

Pair = tuple[str, str]
MOST_BYTES = 2**26
"""Of a file of merges, unpacked; the largest published ones have two million."""
LONGEST = 2**24
"""More tokens or merges than any tokenizer has."""


@functools.cache
def letters() -> dict[int, str]:
    """Byte -> the letter that stands for it, in the order in which vocabularies count them."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_merges(path: str | Path, most: int | None = None) -> list[Pair]:
    """The merges of a text file, gzipped or not, whose first line is a header: at most `most`, first things first.

    Raises:
      ConfigError: no such file, or another kind of file.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        lines = data.decode("utf-8").split("\n")[1:]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{path} does not read as a file of merges: {str(error).splitlines()[0]}") from None
    pairs = [tuple(line.split()) for line in lines[:most] if line.strip()]
    bad = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if bad is not None:
        raise ConfigError(f"{path}:{bad + 2} is no pair of symbols, so this is no file of merges")
    return pairs


def merge(symbols: tuple[str, ...], ranks: Mapping[Pair, int]) -> tuple[str, ...]:
    """A word's symbols after all merges; `ranks` is pair -> place in the list."""
    while len(symbols) > 1:
        first = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if first not in ranks:
            break
        joined, i = [], 0
        while i < len(symbols):
            found = symbols[i : i + 2] == first
            joined.append("".join(first) if found else symbols[i])
            i += 1 + found
        symbols = tuple(joined)
    return symbols


def spelt(word: str) -> str:
    """The UTF-8 bytes of a word as letters."""
    table = letters()
    return "".join(table[byte] for byte in word.encode("utf-8"))


def read_back(text: str) -> str:
    """The inverse of `spelt`; bytes that are no UTF-8 become the replacement character."""
    table = {letter: byte for byte, letter in letters().items()}
    return bytes(table[letter] for letter in text).decode("utf-8", errors="replace")


def pattern(source: str, ignore_case: bool = False) -> Any:
    """A compiled pattern with classes of Unicode, which Python's own `re` does not know.

    Raises:
      ConfigError: the package `regex` is missing.
    """
    regex = wanted("regex")
    return regex.compile(source, regex.IGNORECASE if ignore_case else 0)


def wanted(package: str) -> Any:
    """An imported package; `ConfigError` with the command that installs it where it is missing."""
    try:
        return __import__(package)
    except ImportError:
        raise ConfigError(f"the tokenizer needs the package {package}: pip install {package}") from None


def fits(count: int, context: int, text: str) -> None:
    """Refuses a text of more tokens than there is room for; `ConfigError` says how many would be dropped."""
    if count > context:
        raise ConfigError(f"a text of {count} tokens is longer than the context of {context}: shorten it, or have the last "
                          f"{count - context} dropped with --truncate: {text[:40]!r} ...")


def row(numbers: Sequence[int], context: int, fill: int, end: int | None = None) -> np.ndarray:
    """A text's numbers as a row of so many, int32 [context].

    Args:
      numbers: as many as there are.
      context: how many there is room for.
      fill: what fills up.
      end: the last number of a row that had to be cut; None for any.
    """
    out = np.full(context, fill, np.int32)
    out[: len(numbers)] = numbers[:context]
    if len(numbers) > context and end is not None:
        out[-1] = end
    return out


def room(name: str, length: int, least: int = 1, merges: int = 0) -> None:
    """Checks the numbers that a tokenizer is made of; `ConfigError`.

    Args:
      name: of its option.
      length: how many tokens a text has.
      least: how many it must have room for.
      merges: how many to use.
    """
    number(f"{name} of the tokenizer", length, least, LONGEST, integer=True)
    number("most of the tokenizer, the number of its merges", merges, 0, LONGEST, integer=True)


def remembered(function: Callable[[str], tuple[int, ...]]) -> Callable[[str], tuple[int, ...]]:
    """`function` of a word with its last results kept."""
    return functools.lru_cache(maxsize=2**16)(function)
