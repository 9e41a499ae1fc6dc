"""What annotations say of the values of a config, which are JSON: numbers, texts, lists, mappings,
and {'name': ...} where an object is to stand.

    fits(tuple[int, ...], [1, 2], makes)          True
    described(int | None, "")                     'a whole number or null'

`makes(hint, value)` tells whether such a mapping makes what an annotation asks for.
"""
from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

JSON = (NoneType, bool, int, float, str, list, tuple, Mapping)
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@functools.lru_cache(maxsize=1024)
def signature(target: Any) -> tuple[inspect.Signature, dict[str, Any]]:
    """(how a symbol is called, what the annotation of each option means; Any outside this
    package)."""
    called = inspect.signature(target)
    # `**kwargs` accept no key here: one that is misspelt would vanish in them. `parent` is flax's.
    hints = {
        p.name: Any
        for p in called.parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "parent"
    }
    if target.__module__.partition(".")[0] != __package__:
        return called, hints
    # Of each class in its own module: what a field inherits is annotated in the words of another.
    for owner in reversed(target.__mro__) if isinstance(target, type) else (target,):
        words = vars(sys.modules[owner.__module__])
        for name, hint in inspect.get_annotations(owner).items():
            if name in hints:
                hints[name] = eval(hint, words) if isinstance(hint, str) else hint
    return called, hints


def fits(hint: Any, value: Any, makes: Callable[[Any, Any], bool]) -> bool:
    """Whether an annotation lets a value be."""
    if hint is Any or not isinstance(value, JSON):
        return True  # an object, which comes from Python and not from a config
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(one, value, makes) for one in inner)
    if origin is Literal:
        return value in inner
    if hint in (None, NoneType):
        return value is None
    if hint in (int, float):
        numeric = (int,) if hint is int else (int, float)
        return isinstance(value, numeric) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool) or value in (0, 1)  # as some pages write it
    if hint is str:
        return isinstance(value, str)
    if origin in (tuple, Sequence):
        return isinstance(value, (list, tuple)) and _all_fit(inner, value, makes)
    if origin is Mapping:
        if not isinstance(value, Mapping) or "name" in value:
            return False
        return all(fits(inner[1], part, makes) for part in value.values())
    return isinstance(value, Mapping) and "name" in value and makes(hint, value)


def _all_fit(inner: tuple[Any, ...], values: Sequence[Any], makes: Callable) -> bool:
    """Whether a list is one of a tuple[T, ...], a Sequence[T] or a tuple[T, T, T]."""
    hints = inner if _is_fixed(inner) else inner[:1] * len(values)
    return len(hints) == len(values) and all(map(fits, hints, values, [makes] * len(values)))


def _is_fixed(inner: tuple[Any, ...]) -> bool:
    return len(inner) > 1 and inner[1] is not ...


def described(hint: Any, noun: str) -> str:
    """What an option may be, for errors; `noun` is what it calls an object."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(described(one, noun) for one in inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if hint in (None, NoneType):
        return "null"
    if hint in WORDS:
        return WORDS[hint]
    if origin in (tuple, Sequence):
        count = f"{len(inner)} times " if _is_fixed(inner) else ""
        return f"a list of {count}{described(inner[0], noun)}"
    if origin is Mapping:
        return f"a mapping to {described(inner[1], noun)}"
    return noun


def numbers(value: Any) -> Iterator[int | float]:
    """The numbers in a value, outside {'name': ...}."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, Mapping) and "name" not in value:
        yield from numbers(list(value.values()))
