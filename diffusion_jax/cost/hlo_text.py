"""The text of an HLO module, taken apart: computations, their instructions, and the shapes of arrays."""
from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s4": 0.5, "u4": 0.5, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "token": 0}
ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")


class Instruction(NamedTuple):
    """One line: %name = shape opcode(operands), attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(computations by name, the name of the one that runs)."""
    computations: dict[str, list[Instruction]] = {}
    entry, body = "", []
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head and " = " not in line.split("(")[0]:
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line):
            shape, rest = _cut(found[3])
            opcode, _, rest = rest.partition("(")
            inside, attributes = _closing(rest)
            operands = tuple(name.split()[-1].lstrip("%") for name in _arguments(inside) if name)
            body.append(Instruction(found[2], shape, opcode.strip(), operands, attributes, bool(found[1])))
    return computations, entry


def _cut(text: str) -> tuple[str, str]:
    """(shape, rest) of 'f32[2,3]{1,0} add(...)' or '(f32[2], s32[]) while(...)'."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    inside, rest = _closing(text[1:])
    return f"({inside})", rest.lstrip()


def _closing(text: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes, and after it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def _arguments(text: str) -> Iterator[str]:
    """The arguments between the commas that are in no brackets."""
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            yield text[start:place].strip()
            start = place + 1
    yield text[start:].strip()


def dims_of(shape: str) -> tuple[int, ...]:
    """Sizes of an array, of the first one of a tuple."""
    found = ARRAY.match(shape.lstrip("("))
    return tuple(int(d) for d in found[2].split(",") if d)


def size_of(shape: str) -> float:
    """Bytes of an array or of a tuple of them."""
    return sum(SIZES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d) for kind, dims, _ in ARRAY.findall(shape))


def in_memory(shape: str) -> float:
    """Bytes of what lies in main memory: memory space S(1) and others are the chip's own."""
    return sum(SIZES.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d)
               for kind, dims, layout in ARRAY.findall(shape) if "S(" not in layout)
