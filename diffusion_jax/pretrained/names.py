"""Official names and shapes of our parameters: the tables of pretrained/rules.py, read from right to left.

    Rule(r"blocks\\.(\\d+)\\.attn\\.(qkv|proj)\\.weight", r"model/blocks_\\1/attn/\\2/kernel", TRANSPOSE)

    model/blocks_3/attn/qkv/kernel (96, 288)    ->    blocks.3.attn.qkv.weight (288, 96)

A rule leaves two things open. Of `(?:a|b)` in a key, where both are read, the first is written, and `fixes` say where that is
wrong. A convolution over single pixels or tokens is a matrix here, and `ranks` say how many axes it has there. What comes out
goes into `rules.revert`, which uses every parameter once, so that nothing can be lost on the way.
"""
from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence

from flax.core import FrozenDict
from flax.traverse_util import flatten_dict

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained.rules import Rule, Rules, Shape
from diffusion_jax.types import Params

Fixes = Sequence[tuple[str, str]]
"""Regular expressions for what is wrong in a name, and what stands there."""
Ranks = Mapping[str, int]
"""A regular expression for whole names -> how many axes these arrays have."""


def shapes(
    params: Params, table: Rules, ranks: Ranks = FrozenDict(), special: Mapping[str, Shape] = FrozenDict(), fixes: Fixes = ()
) -> dict[str, Shape]:
    """Official key -> shape, for parameters without names of their own in a file: what `rules.revert` takes.

    Args:
      params: a tree of arrays, or of anything with a shape.
      table: the rules; of those whose path fits a parameter there is one.
      ranks, fixes: see the top of this file.
      special: the shapes that ours do not tell, such as those of patches, and those of constants, which are no parameters.

    Raises:
      ConfigError: a parameter for which there is no official name.
    """
    official: dict[str, Shape] = {}
    for path, value in flatten_dict(params, sep="/").items():
        key, rule = name(path, table, fixes)
        shape = rule.layout.shape(tuple(value.shape))
        rank = next((rank for pattern, rank in ranks.items() if re.fullmatch(pattern, key)), len(shape))
        official[key] = (*shape, *[1] * (rank - len(shape)))
    return official | {key: tuple(shape) for key, shape in special.items()}


def name(path: str, table: Rules, fixes: Fixes = ()) -> tuple[str, Rule]:
    """The official key of one parameter, and the rule that says so.

    Raises:
      ConfigError: there is none.

    Example:
      >>> from diffusion_jax.pretrained import dit
      >>> name("model/time/fc1/bias", dit.RULES)[0]
      't_embedder.mlp.0.bias'
    """
    for rule in table:
        key = _key(rule, path) if isinstance(rule, Rule) else None
        if key is not None:
            for pattern, text in fixes:
                key = re.sub(pattern, text, key)
            return key, rule
    raise ConfigError(f"the official network has nothing like {path}: its weights cannot be written")


def _key(rule: Rule, path: str) -> str | None:
    """The key that a rule gives this path; None where it gives it none."""
    parts, pattern = _inverse(rule.key, rule.path)
    match = pattern.fullmatch(path)
    if match is None:
        return None
    values = (match[f"g{i}"] for i in itertools.count(1))
    return "".join(next(values) if _captures(part) else _plain(part) for part in parts)


@functools.cache
def _inverse(key: str, path: str) -> tuple[list[str], re.Pattern[str]]:
    """The parts of a rule's key, and a regular expression for its paths: a table is looked through for every parameter."""
    parts = _parts(key)
    groups = [part[1:-1] for part in parts if _captures(part)]
    return parts, re.compile(_path_pattern(path, groups))


def _parts(pattern: str) -> list[str]:
    """A regular expression cut before and behind its outermost groups."""
    depths = itertools.accumulate((char == "(") - (char == ")") for char in pattern)
    cuts = [0]
    before = 0
    for i, depth in enumerate(depths):
        cuts += [i] if before == 0 and depth == 1 else [i + 1] if before == 1 and depth == 0 else []
        before = depth
    return [pattern[start:end] for start, end in itertools.pairwise([*cuts, len(pattern)]) if start < end]


def _captures(part: str) -> bool:
    return part.startswith("(") and not part.startswith("(?:")


def _plain(part: str) -> str:
    """A text as it stands in a key; the first of alternatives."""
    if part.startswith("(?:"):
        part = part[3:-1].partition("|")[0]
    return part.replace("\\", "")


def _path_pattern(path: str, groups: Sequence[str]) -> str:
    """A regular expression for the paths of a rule; group i is called gi."""
    texts = re.split(r"\\(\d)", path)                                             # text, number, text, number ... text
    pattern = re.escape(texts[0])
    used: set[str] = set()
    for number, text in zip(texts[1::2], texts[2::2], strict=True):
        pattern += f"(?P=g{number})" if number in used else f"(?P<g{number}>{groups[int(number) - 1]})"
        pattern += re.escape(text)
        used.add(number)
    return pattern
