"""A data set looked over before training, for what the train step would not say.

    labels      all that lie outside the classes of the model: under jit an index out of range does not raise
    captions    all that have more tokens than the model reads: a tokenizer would cut them

Labels and captions that a source holds in memory (`Source.labels`, `Source.captions`) are looked at all together, texts up to
`TEXTS`; where a record must be read to know them, `RECORDS` of them, spread over the set, and the result says so.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.rows import spread
from diffusion_jax.data.source import place

TEXTS = 20_000
"""Captions that are counted: of a BPE about two seconds."""
RECORDS = 256
"""Records that are read."""


def check_labels(source: Any, num_classes: int) -> None:
    """Refuses labels that the model has no class for.

    Args:
      source: a data set.
      num_classes: of the model; 0 for one without classes, which takes all.

    Raises:
      ConfigError: names the record, by file and line where the source knows them.
    """
    if not num_classes:
        return
    labels = _column(source, "labels")
    if labels is None:
        rows, labels = _read(source, "label")
    else:
        rows, labels = range(len(labels)), np.asarray(labels)
    for row, label in zip(rows, labels, strict=True) if _outside(labels, num_classes) else ():
        if not _is_class(label, num_classes):
            raise ConfigError(f"{place(source, row)}: label {label} is none of the model's {num_classes} classes, 0 ... "
                              f"{num_classes - 1}: mend it, or raise num_classes")


def check_captions(source: Any, tokenizer: Any) -> str:
    """Counts the captions that are longer than what the model reads.

    Args:
      source: a data set.
      tokenizer: of its page; one of the user's own that cannot `count` is asked nothing.

    Returns:
      What to say of captions that will be cut; '' where there are none.

    Raises:
      ConfigError: there are some, and the tokenizer has no `truncate`; a caption that the tokenizer refuses.
    """
    if not hasattr(tokenizer, "count"):
        return ""
    captions = _column(source, "captions")
    if captions is None:
        rows, captions = _read(source, "caption")
    else:
        rows = spread(len(captions), TEXTS)
        captions = [captions[row] for row in rows]
    if not len(rows):
        return ""
    room = getattr(tokenizer, "context", None) or tokenizer.length
    counts = np.array([_count(tokenizer.count, source, row, text) for row, text in zip(rows, captions, strict=True)])
    long = int((counts > room).sum())
    if not long:
        return ""
    longest = int(counts.argmax())
    looked = f"{long} of {len(rows)} captions" + (f" (looked at, of {len(source)})" if len(rows) < len(source) else "")
    says = (f"{looked} are longer than the {room} tokens that the model reads, the longest, {place(source, rows[longest])}, has "
            f"{counts[longest]}")
    if not getattr(tokenizer, "truncate", False):
        raise ConfigError(f"{says}: make room for them in data.decode.tokenizer, or set its truncate=True on the page "
                          "to cut them")
    return f"{says}: what is beyond is cut"


def _column(source: Any, name: str) -> Any:
    """What a source holds of all its records; None where it has no such thing, or one of its own by that name."""
    column = getattr(source, name, None)
    return column if isinstance(column, (np.ndarray, list, tuple)) and len(column) == len(source) else None


def _count(count: Callable[[str], int], source: Any, row: int, text: str) -> int:
    try:
        return count(text)
    except ConfigError as error:
        raise ConfigError(f"{place(source, row)}: {error}") from None


def _read(source: Any, key: str) -> tuple[list[int], list[Any]]:
    """(rows, their values of `key`) of records spread over a source; none where it has no such key."""
    if key not in source[0]:
        return [], []
    rows = spread(len(source), RECORDS)
    return rows, [source[row].get(key) for row in rows]


def _outside(labels: Sequence[Any] | np.ndarray, num_classes: int) -> bool:
    """Whether any of many labels is none of the classes."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        return bool(len(labels)) and not 0 <= labels.min() <= labels.max() < num_classes
    return not all(_is_class(label, num_classes) for label in labels)


def _is_class(label: Any, num_classes: int) -> bool:
    """Whether a label is an integer, no bool, that the model has a class for."""
    value = label.item() if isinstance(label, (np.ndarray, np.generic)) and not label.ndim else label
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < num_classes
