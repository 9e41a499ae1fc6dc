"""A page as text: flat Python in which every value stands, to be edited.

    config.model = dict(name="diffusion_jax.models.dit:DiT", patch=4, width=128, ...)

Read back it is the same page, whatever file and command line it came from.
"""
from __future__ import annotations

import keyword
import math
import numbers
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.runs.page import SECTIONS

WIDTH = 100
"""Columns of a line, where a value has so many places to break."""


def written(config: Mapping[str, Any], file: str) -> str:
    """The text of a page.

    Args:
      config: sections of `SECTIONS` that hold JSON, or tuples for lists; a ConfigDict as a dict.
      file: where it is to stand, for its docstring.

    Example:
      >>> "config.seed = 0" in written({"seed": 0}, "mine.py")
      True
    """
    sections = [_section(name, config[name]) for name in SECTIONS if name in config]
    body = "\n\n".join(sections)
    return (
        f'"""{_docstring(config, file)}"""\n'
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config() -> ConfigDict:\n"
        '    """The page."""\n'
        "    config = ConfigDict()\n\n"
        f"{body}\n    return config\n"
    )


def _docstring(config: Mapping[str, Any], file: str) -> str:
    """The command that trains the page."""
    workdir = shlex.quote(f"runs/{Path(file).stem}")
    command = f"python -m diffusion_jax.main --config {shlex.quote(file)} --workdir {workdir}"
    network = config.get("model", config.get("task", {})).get("name", "").rpartition(":")[2]
    text = (
        f"A page of one's own: {network or 'a model'}, with every value to edit.\n\n"
        f"    {command}\n\n"
        "Mode page wrote it. What was inferred from data stands here as it was then.\n"
    )
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def _section(name: str, value: Any) -> str:
    """A comment that says what a section is, and its assignment."""
    mark = "    # "
    comment = textwrap.fill(SECTIONS[name], WIDTH, initial_indent=mark, subsequent_indent=mark)
    return f"{comment}\n    config.{name} = {_spelt(value, 4, len(f'config.{name} = '))}"


def _spelt(value: Any, indent: int, before: int = 0) -> str:
    """A value as Python; over several lines where it does not fit into one.

    Args:
      value: JSON, or tuples.
      indent: of the line that it begins in.
      before: what stands in that line before it, behind the indent.
    """
    if not isinstance(value, (Mapping, list, tuple)):
        return _scalar(value)
    opening, closing, parts = _parts(value)
    inline = ", ".join(f"{key}{_spelt(part, 0)}" for key, part in parts)
    comma = "," if isinstance(value, tuple) and len(parts) == 1 else ""
    line = f"{opening}{inline}{comma}{closing}"
    if not parts or ("\n" not in line and indent + before + len(line) < WIDTH):
        return line
    inner = indent + 4
    rows = [f"{' ' * inner}{key}{_spelt(part, inner, len(key))},\n" for key, part in parts]
    return f"{opening}\n{''.join(rows)}{' ' * indent}{closing}"


def _parts(value: Mapping[str, Any] | Sequence[Any]) -> tuple[str, str, list[tuple[str, Any]]]:
    """(what opens a value, what closes it, its parts, each with what stands before it)."""
    if isinstance(value, tuple):
        return "(", ")", [("", part) for part in value]
    if not isinstance(value, Mapping):
        return "[", "]", [("", part) for part in value]
    # The name of a part says what all else is of.
    keys = sorted(value, key=lambda key: key != "name")
    if all(key.isidentifier() and not keyword.iskeyword(key) for key in keys):
        return "dict(", ")", [(f"{key}=", value[key]) for key in keys]
    return "{", "}", [(f"{_scalar(key)}: ", value[key]) for key in keys]


def _scalar(value: Any) -> str:
    """A text, a number, a truth or None as Python."""
    if isinstance(value, str):
        text = repr(value)
        # As the pages of configs/ quote; `repr` has it so only where there is an apostrophe.
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text else text
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, numbers.Integral):
        return str(int(value))
    return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'
