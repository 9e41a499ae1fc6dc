"""Docstrings of the package as reStructuredText.

They are plain English with formulas, tables and examples set apart by indentation, and Google's sections. So

    a block that is indented                outside of a section becomes a literal block, as it stands
    `name`                                  becomes ``name``
    * | _ \\                                 mean themselves

and what lies in sections is left to napoleon.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SECTION = re.compile(r"(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")
BULLET = re.compile(r"(-|\d+\.) ")
MARKUP = re.compile(r"([*|\\]|_(?=\W|$)|(?<=\b[A-Za-z])\.(?=\s|$))")
"""What would mean something: emphasis, substitutions, links, and "N." as the number of a list."""


def escaped(line: str) -> str:
    """A line of prose without markup but code."""
    parts = line.split("`")
    if len(parts) % 2 == 0:  # a backtick that closes on another line
        return MARKUP.sub(r"\\\1", line.replace("`", "'"))
    texts = [part if i % 2 else MARKUP.sub(r"\\\1", part) for i, part in enumerate(parts)]
    return "``".join(texts)


def indent(line: str) -> int:
    """How far a line is set in."""
    return len(line) - len(line.lstrip())


def blocks(lines: list[str]) -> Iterator[list[str]]:
    """The paragraphs of a docstring: lines between empty ones."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def converted(lines: list[str]) -> list[str]:
    """A docstring, its common indentation taken away, as reStructuredText with Google's sections."""
    result: list[str] = []
    section, literal = "", False
    for block in blocks(lines):
        inside = indent(block[0]) > 0
        if not inside:
            section = ""
        for start in (i for i, line in enumerate(block) if SECTION.match(line)):
            result += [*_prose(block[:start]), ""]
            block, section = block[start:], block[start][:-1]
            break
        if section:
            result += _section(block, section)
        elif inside:
            result += ([] if literal else ["::", ""]) + block
        else:
            result += _prose(block)
        literal = inside and not section
        result.append("")
    return result


def _prose(block: list[str]) -> list[str]:
    """A paragraph, a list, or a paragraph with what is set in directly under it."""
    result: list[str] = []
    mode = ""
    for line in block:
        if BULLET.match(line):
            result += [] if mode == "list" else [""]
            mode = "list"
        elif not indent(line):
            result += [""] if mode in ("list", "literal") else []
            mode = "text"
        elif mode == "text":
            result += ["", "::", ""]
            mode = "literal"
        result.append(line if mode == "literal" else escaped(line))
    return result


def _section(block: list[str], section: str) -> list[str]:
    """What napoleon reads, prose; examples stay as they are: those that doctest runs to napoleon, others as blocks of code."""
    if section.startswith("Example") and ">>>" not in "".join(block) and SECTION.match(block[0]):
        return [f"{section}::", "", *block[1:]]
    if section.startswith("Example"):
        return block
    return [escaped(line) if indent(line) else line for line in block]


def process(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """The hook of autodoc-process-docstring."""
    lines[:] = converted(lines)


def is_inherited(value: Any) -> bool:
    """Whether a member comes from another package than ours."""
    module = getattr(value, "__module__", None) or ""
    return callable(value) and not module.startswith(("diffusion_jax", "builtins")) and bool(module)
