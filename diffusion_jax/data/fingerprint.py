"""What tells a data set from others, in a few words: a run that goes on with other data would not be the run that it was.

    {"records": 1500, "classes": ["cat", "dog"], "list": "0f3a..."}

The list is a digest of every record's place, label and caption where the source knows them without reading images
(data/source.py), else of the labels, captions and shapes of some records that are spread over it. No pixel is looked at: what
a JPEG decodes to differs from machine to machine.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.rows import spread
from diffusion_jax.data.source import Source

LOOKED_AT = 32
"""Records that are read where a source does not list them."""


def fingerprint(source: Source) -> dict[str, Any]:
    """What tells a source's records from those of another, plain JSON."""
    digest = hashlib.sha256()
    for row in _rows(source):
        digest.update(json.dumps(row).encode() + b"\n")
    names = source.names
    return {"records": len(source), "classes": list(names) if names else None, "list": digest.hexdigest()[:32]}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How the data differ from those of before, a clause for an error; None where they do not."""
    if before.get("records") != now["records"]:
        return f"{before.get('records')} records then, {now['records']} now"
    then, classes = before.get("classes") or [], now["classes"] or []
    if then != classes:
        gone, new = ([repr(name) for name in one if name not in other][:3] for one, other in ((then, classes), (classes, then)))
        lacks = f"; without {', '.join(gone)}" if gone else ""
        return f"{len(then)} classes then, {len(classes)} now{lacks}{'; new: ' + ', '.join(new) if new else ''}"
    return None if before.get("list") == now["list"] else "as many records, but not the same ones in the same order"


def _rows(source: Any) -> Iterator[list[Any]]:
    """What is digested of each record."""
    place = source.place if callable(getattr(source, "place", None)) else None
    # By these names a source of the user's own may have something else.
    labels, captions = (_column(source, name) for name in ("labels", "captions"))
    if place is None and labels is None and captions is None:
        for i in spread(len(source), LOOKED_AT):
            record = source[i]
            image = record.get("image", record.get("moments"))
            yield [list(getattr(image, "shape", ())), _plain(record.get("label")), record.get("caption")]
        return
    # Where the data lie is no part of them: they may move.
    root = str(Path(str(getattr(source, "path", ""))).expanduser())
    for i in range(len(source)):
        yield [place(i).replace(root, "") if place else None, None if labels is None else _plain(labels[i]),
               None if captions is None else captions[i]]


def _column(source: Any, name: str) -> Any:
    column = getattr(source, name, None)
    return column if isinstance(column, (np.ndarray, list, tuple)) and len(column) == len(source) else None


def _plain(label: Any) -> Any:
    return None if label is None else int(label)
