"""Key lists of deep networks, by one block of each kind: a list of a thousand keys takes long to trace, and says little more."""
from __future__ import annotations

import re

Shapes = dict[str, tuple[int, ...]]


def thinned(official: Shapes, pattern: str) -> tuple[Shapes, dict[str, str]]:
    """(The keys of one block of each kind, in their order; key -> the one of those that stands for it).

    Args:
      official: key -> shape.
      pattern: of the keys of blocks, in three groups: before, the block's number, behind. Blocks of one kind have the same keys
        of the same shapes, and stand in a row.
    """
    blocks: dict[int, Shapes] = {}
    for key, shape in official.items():
        if match := re.fullmatch(pattern, key):
            blocks.setdefault(int(match[2]), {})[match[1] + match[3]] = shape
    assert sorted(blocks) == list(range(len(blocks)))
    kinds: list[Shapes] = []
    places: dict[int, int] = {}
    for number, block in sorted(blocks.items()):
        if not kinds or block != kinds[-1]:
            kinds.append(block)
        places[number] = len(kinds) - 1

    def stands(key: str) -> str:
        match = re.fullmatch(pattern, key)
        return f"{match[1]}{places[int(match[2])]}{match[3]}" if match else key

    return {stands(key): shape for key, shape in official.items()}, {key: stands(key) for key in official}
