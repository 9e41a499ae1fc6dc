"""The data of a run as it is measured: spread over a split, decoded with nothing drawn at
random."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, build, check_names
from diffusion_jax.data.image import to_unit
from diffusion_jax.data.latents import PICTURES, Latents
from diffusion_jax.data.rows import spread
from diffusion_jax.data.source import Record, decoded, place
from diffusion_jax.types import Raw

Data = Mapping[str, Any]
"""The section `data` of a page: train, test, decode."""


def still(decode: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a page's decoding without its chance: central crops, no mirrors, captions
    spelt one way."""
    spec = dict(decode)
    # Only what the page has: a decoder of the user's own may take none of these.
    if spec.get("flip"):
        spec["flip"] = False
    if spec.get("crop") == "random":
        spec["crop"] = "center"
    if (spec.get("tokenizer") or {}).get("dropout"):
        spec["tokenizer"] = {**spec["tokenizer"], "dropout": 0.0}
    return spec


def records(data: Data, split: str, num: int | None = None) -> Iterator[Record]:
    """Decoded records of a split, `num` of them spread over it, or all.

    Raises:
      ConfigError: there are none, or one cannot be decoded, by name.
    """
    source = _source(data, split)
    decode = _cutting(build(still(data["decode"])))
    for i in spread(len(source), num):
        # A generator for each, so that no record depends on those before it.
        yield decoded(source, decode, i, np.random.default_rng(0))


def _cutting(decode: Any) -> Any:
    """A decoder whose tokenizer cuts captions that are too long: what is measured is not there to
    be shortened, and training has counted its own."""
    tokenizer: Any = getattr(decode, "tokenizer", None)
    if getattr(tokenizer, "truncate", True):
        return decode
    return replace(decode, tokenizer=replace(tokenizer, truncate=True))


def of_pictures(data: Data) -> Data:
    """What samples are measured against: the pictures that a page's latents were made of, where
    these say it; else the page's own data."""
    source = build(data["train"]) if "train" in data else None
    section = source.about.get(PICTURES) if isinstance(source, Latents) else None
    if not isinstance(section, Mapping) or not section.keys() >= {"train", "test", "decode"}:
        return data
    # It came in a file, as a checkpoint's config does.
    check_names(section)
    return section


def _source(data: Data, split: str) -> Any:
    """The source of a split; `ConfigError` where it has no records."""
    source = build(data[split])
    if not len(source):
        raise ConfigError(f"{source} holds no records; check its path and split")
    return source


def pictures(
    data: Data, split: str, num: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(images uint8 [N, H, W, C], labels int [N] or None) of a split, `num` of them spread over
    it, or all."""
    rows = list(records(data, split, num))
    labels = np.array([row["label"] for row in rows]) if "label" in rows[0] else None  # [N]
    return np.stack([row["image"] for row in rows]), labels  # [N, H, W, C]


def batches(data: Data, split: str, num: int | None, size: int) -> Iterator[Raw]:
    """Batches of 'image' [b, H, W, C] in [-1, 1] and, where there are captions, 'tokens' [b, L];
    the last may be smaller."""
    rows: list[Record] = []
    for row in records(data, split, num):
        rows.append(row)
        if len(rows) == size:
            yield _batch(rows)
            rows = []
    if rows:
        yield _batch(rows)


def _batch(rows: list[Record]) -> Raw:
    names = [name for name in ("image", "tokens") if name in rows[0]]
    batch = {name: np.stack([row[name] for row in rows]) for name in names}
    return batch | {"image": to_unit(batch["image"])}  # [b, H, W, C]


def captions(data: Data, num: int, split: str = "test") -> list[str]:
    """Captions of `num` images spread over a split; they come again where there are fewer.

    Raises:
      ConfigError: the data has none.
    """
    source = _source(data, split)
    # From the source: a decoder that has read the record leaves its tokens, not the text.
    texts = []
    for i in spread(len(source), num):
        texts.append(source[i].get("caption"))
        if texts[-1] is None and len(texts) == 1:
            raise ConfigError("this model reads captions: give data that has them, or a --prompt")
        if not isinstance(texts[-1], str):
            raise ConfigError(f"{place(source, i)}: caption {texts[-1]!r} is no text; mend it")
    return [texts[i % len(texts)] for i in range(num)]
