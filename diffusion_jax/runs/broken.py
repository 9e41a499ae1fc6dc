"""Pictures that do not read, before a run starts: `config.data.broken` says what becomes of them.

    "stop"     all are named in one error, the default
    "skip"     they are left out, and that is said

What is left out stands in the page from then on (`without` of data.train and data.test), and so in
every checkpoint: held-out readers and a run that goes on leave out the same files. The pictures are
read once; `NOTES` in the run's folder says what came of it (data/damage.py).
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import damage

NOTES = "data_files.json"
SPLITS = ("train", "test")
SHOWN = 10
"""Broken files that a line names."""


def settled(config: Mapping[str, Any], broken: str, workdir: str) -> dict[str, Any]:
    """The page of a run whose data sets have no broken files.

    Args:
      config: a whole page.
      broken: 'stop' or 'skip'.
      workdir: the run's folder, in which `NOTES` is written where pictures were read.

    Returns:
      The page, with the broken files of each split in its `without`.

    Raises:
      ConfigError: there are some, and they are not to be skipped; a data set that cannot leave
        them out.
    """
    looked = _by_the_first(lambda: _looked(config["data"], Path(workdir, NOTES)))
    lines = list(dict.fromkeys(line for split in SPLITS for line in looked[split].values()))
    says = f"{len(lines)} of {looked['count']} pictures cannot be read: {_listed(lines)}"
    if lines and broken == "stop":
        raise ConfigError(
            f"{says}: mend or remove them, or leave them out by --config.data.broken=skip"
        )
    if jax.process_index() == 0:
        if lines:
            print(f"{says}: left out")
        if looked["same"]:
            print(looked["same"])
    data = dict(config["data"])
    for split in SPLITS:
        if looked[split]:
            data[split] = _without(data[split], list(looked[split]))
    return {**config, "data": data}


def _looked(data: Mapping[str, Any], notes: Path) -> dict[str, Any]:
    """What is wrong with the files of both splits, plain JSON: for each split {name: line} of those
    that are broken, how many files there are, and a line about those that are the same."""
    looked: dict[str, Any] = {}
    looks: dict[str, damage.Look] = {}
    for split in SPLITS:
        source = build(data[split])
        out = set(getattr(source, "without", ()))
        of_split = damage.look_at(source, notes)
        inside = {name: look for name, look in of_split.items() if name not in out}
        bad = {name: look.reason for name, look in inside.items() if look.reason}
        looked[split] = {name: f"{Path(source.path, name)}: {bad[name]}" for name in bad}
        # Both splits may be of one folder.
        looks |= {str(Path(source.path, name)): look for name, look in inside.items()}
    number, pair = damage.same(looks.items())
    same = ""
    if pair:
        same = f"copies, byte for byte: {number} of {len(looks)} pictures, {pair[1]} of {pair[0]}"
    return looked | {"count": len(looks), "same": same}


def _without(spec: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The spec of a data set that leaves files out."""
    if not hasattr(build(spec), "without"):
        raise ConfigError(
            f"{spec['name']} has no option 'without', by which files are left out: mend or remove "
            "those that do not read"
        )
    return {**spec, "without": sorted({*spec.get("without", ()), *names})}


def _listed(lines: list[str]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def _by_the_first(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first of several processes makes of it: all are to leave out the same files."""
    if jax.process_count() == 1:
        return look()
    text = json.dumps(look()).encode() if jax.process_index() == 0 else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    letters = np.frombuffer(text or bytes(length), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(letters)).tobytes())
