"""Whether a run may go on: in its folder with the config and the data that it was begun with."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.build import ConfigError
from diffusion_jax.data import fingerprint

DIFFERENCES = 3                                            # how many differing keys an error names
ABSENT = object()
MAY_DIFFER = ("data.decode.tokenizer.truncate: ", "data.train.without: ", "data.test.without: ")
"""A run that went on had no caption to cut, or was of a release that cut them all without a word; of the files that are left out
`check_data` says more."""


def check_config(before: Mapping[str, Any], asked: Mapping[str, Any], may_change: frozenset[str], folder: Path) -> None:
    """Raises ConfigError where two configs differ in more than the keys that may change; it names the first few."""
    differences = _differences({k: v for k, v in before.items() if k not in may_change},
                               {k: v for k, v in asked.items() if k not in may_change})
    differences = [line for line in differences if not line.startswith(MAY_DIFFER)]
    if differences:
        more = f" and {len(differences) - DIFFERENCES} more" if len(differences) > DIFFERENCES else ""
        raise ConfigError(f"{folder} holds a run with another config ({'; '.join(differences[:DIFFERENCES])}{more}): "
                          "choose another workdir, or the same config to resume")


def check_data(before: Mapping[str, Any] | None, now: Mapping[str, Any], folder: str | Path) -> None:
    """Raises ConfigError where a run's data are not those that it was trained on so far.

    Args:
      before: fingerprint in its newest checkpoint; None where it has none: a new run, or one of an older version.
      now: of the data that there are.
      folder: the run's, for the error.
    """
    difference = fingerprint.difference(before, now) if isinstance(before, Mapping) else None
    if difference:
        raise ConfigError(f"the run in {folder} was trained on other data ({difference}): bring them back, choose another "
                          "workdir, or go on with these by --config.data.changed=True")


def _differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """'task.depth: 4 in the folder, 6 asked' for every leaf that differs."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        return [line for key in sorted(stored.keys() | asked.keys())
                for line in _differences(stored.get(key, ABSENT), asked.get(key, ABSENT), f"{path}.{key}" if path else key)]
    return [] if stored == asked else [f"{path}: {_shown(stored)} in the folder, {_shown(asked)} asked"]


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value)[:60]
