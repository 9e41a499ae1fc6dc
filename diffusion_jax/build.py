"""From configuration to objects: `dict(name='diffusion_jax.models.dit:DiT', depth=28)` becomes
`DiT(depth=28)`.

An object is named by its real symbol, so a config can be read with grep and stored as JSON. A
checkpoint's config is input from elsewhere, so that

1. of this package only what stands in parts.py can be named, and of others only packages that the
   user allowed (`allow`, --allow): never the checkpoint;
2. the whole tree is checked, names, keys, kinds and sizes of values, before anything is made.
"""
from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import math
import numbers
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any, Literal, get_args, get_origin

from flax.core import FrozenDict

from diffusion_jax import hints
from diffusion_jax.parts import BOUNDS, KINDS, MOST, SLOTS

PACKAGE = __package__
ALLOW = "DIFFUSION_JAX_ALLOW"
"""Of the environment: packages of the user's own that configs may name, separated by commas."""
_SPELT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.I)
_SYMBOL = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*):([A-Za-z]\w*)", re.ASCII)
_PATH = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)
_DEEP = 40  # levels of a config; the deepest page has seven
_LARGE = 100_000  # entries of a config


class ConfigError(ValueError):
    """A configuration, flag or input that the user can mend; its message is one line that says
    how."""


def unknown(kind: str, got: str, names: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `names`; it names the nearest one, or some."""
    names = sorted(names)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {shorten(', '.join(names), 1000)}"
    return ConfigError(f"unknown {kind} {got!r}: {hint}")


def option(
    default: Any,
    help: str,
    least: float | None = None,
    most: float | None = None,
    choices: Iterable[str] = (),
) -> Any:
    """A field of a dataclass of options: what `check_options` and the flags of the command line are
    made from.

    Args:
      default: its value where the user gives none; None where that depends on other options.
      help: a phrase that says what it is.
      least, most: bounds of a number, inclusive.
      choices: all values that a text may have; none for any.
    """
    return dataclasses.field(
        default=default, metadata=dict(help=help, least=least, most=most, choices=tuple(choices))
    )


def check_options(options: Any) -> None:
    """Raises ConfigError for an option of another type than its annotation says, a number that is
    not finite or out of bounds, or an unknown word. Whole numbers become ints."""
    for field in dataclasses.fields(options):
        if "help" not in field.metadata:  # a plain field, for Python alone: no option
            continue
        value = getattr(options, field.name)
        if isinstance(value, os.PathLike):  # a file or a folder, as text from here on
            value = os.fspath(value)
            object.__setattr__(options, field.name, value)
        least, most, choices = (field.metadata[name] for name in ("least", "most", "choices"))
        kinds = _kinds_of(field)
        if isinstance(value, str) and choices and value not in choices:
            raise unknown(field.name, value, choices)
        _check_kind(field.name, value, kinds)
        # A bool is an int in Python, and has no bounds.
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            continue
        whole = "int" in kinds and "float" not in kinds
        converted = number(field.name, value, least, most, integer=whole)
        # 5.0 of a JSON file, or NumPy's 5, is to be the same option as 5, also where it is static.
        if (whole and type(value) is not int) or not isinstance(value, (int, float)):
            object.__setattr__(options, field.name, converted)


def _kinds_of(field: dataclasses.Field[Any]) -> set[str]:
    """The types that a field's annotation lists, where all are plain ones: {'float', 'None'}."""
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    kinds = {part.strip() for part in text.split("|")}
    return kinds if kinds <= _PLAIN.keys() | {"None"} else set()


def _check_kind(name: str, value: Any, kinds: set[str]) -> None:
    """Raises ConfigError for a value of none of these types, where there are any."""
    of_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    matches = {
        "bool": isinstance(value, bool),
        "int": of_number,
        "float": of_number,
        "str": isinstance(value, str),
        "None": value is None,
    }
    if kinds and not any(matches[kind] for kind in kinds):
        wanted = " or ".join(_PLAIN[kind] for kind in _PLAIN if kind in kinds)
        raise ConfigError(f"{name} is {wanted}, got {short(value)}")


_PLAIN = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "a text"}


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    integer: bool = False,
) -> float:
    """A number from anywhere outside (a flag, a page, a session, a stored config), checked.

    Args:
      name: what the error calls it.
      value: the number, or a text that spells one.
      least, most: bounds, inclusive.
      integer: whether it must be whole.

    Raises:
      ConfigError: no number, not finite, not whole, or out of bounds.

    Example:
      >>> number("seed", "7", least=0, integer=True)
      7
    """
    kind = "a whole number" if integer else "a number"
    # A bool is an int in Python, and '1_000' and '²' are numbers there too: nobody means them.
    if isinstance(value, bool) or (isinstance(value, str) and not _SPELT.fullmatch(value.strip())):
        raise ConfigError(f"{name} is {kind}, got {short(value)}")
    try:
        converted = int(value) if integer and not isinstance(value, float) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {kind}, got {short(value)}") from None
    # Bounds do not see NaN: every comparison with it is false. Python's ints may exceed all floats.
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{name} is {short(value)}, which is not finite: give a number")
    if integer and converted != int(converted):
        raise ConfigError(f"{name} is {kind}, got {short(value)}")
    if (least is not None and converted < least) or (most is not None and converted > most):
        raise ConfigError(f"{name} is {_bounds(least, most)}, got {short(value)}")
    return int(converted) if integer else converted


def short(value: Any) -> str:
    """A value for an error, which stays one line that can be read."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python spells no int of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) < 100 else f"{text[:80]}..."


def _bounds(least: float | None, most: float | None) -> str:
    if most is None:
        return f"{least} or more"
    return f"{most} or less" if least is None else f"{least} ... {most}"


def allow(*packages: str) -> None:
    """Lets configs name the symbols of packages of one's own, from now on and in this process:
    their code will run.

    Args:
      *packages: 'mypkg' for all of it, 'mypkg.nets' for a part.

    Raises:
      ConfigError: no name of a package, or one of Python's own or of this package.
    """
    _allowed().update(map(_package, packages))


def _package(name: str) -> str:
    root = name.partition(".")[0]
    if not _PATH.fullmatch(name):
        raise ConfigError(f"--allow {short(name)} is no name of a package: write mypkg")
    if root in sys.stdlib_module_names or root == PACKAGE:
        raise ConfigError(
            f"--allow {name}: only a package of your own can be allowed, not "
            f"{'this one, of which configs name the parts' if root == PACKAGE else 'one of Python'}"
        )
    return name


@functools.cache
def _allowed() -> set[str]:
    """The packages that the user allowed; those of the environment are read at first use."""
    return {_package(name.strip()) for name in os.environ.get(ALLOW, "").split(",") if name}


def _covered(module: Any) -> bool:
    """Whether a module is of a package that the user allowed."""
    return isinstance(module, str) and any(
        module == package or module.startswith(f"{package}.") for package in _allowed()
    )


def check_name(name: Any) -> None:
    """Raises ConfigError for a symbol that no config may name; nothing is imported for that."""
    parts = _SYMBOL.fullmatch(name) if isinstance(name, str) else None
    if parts is None:
        raise ConfigError(
            f"{short(name)} is not '{PACKAGE}.<module>:<Name>', the name of something public"
        )
    module, attribute = parts.groups()
    root = module.partition(".")[0]
    if root == PACKAGE and name not in KINDS:
        raise _not_a_part(module, attribute)
    if root in sys.stdlib_module_names:
        raise ConfigError(f"{short(name)} is of Python itself, of which configs name nothing")
    if root != PACKAGE and not _covered(module):
        flag = f"give --allow {root} (or {ALLOW}={root}) if you trust it: its code will run"
        raise ConfigError(f"{short(name)} is of a package that is not allowed: {flag}")


def symbol(name: Any) -> Any:
    """The object behind 'diffusion_jax.<module>:<Name>', or behind one of an allowed package.

    Raises:
      ConfigError: no such symbol, or none that a config may name.
    """
    check_name(name)
    module, _, attribute = name.partition(":")
    try:
        members = vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        hint = "install it, or set PYTHONPATH"
        raise ConfigError(f"{short(name)}: there is no module {error.name!r}; {hint}") from None
    # Only what a package defines itself: through its own imports a config would reach os.system.
    public = [key for key, value in members.items() if _defines(module, value) and key[0] != "_"]
    if attribute not in public:
        raise unknown(f"symbol in {module}", attribute, public)
    return members[attribute]


def _defines(module: str, value: Any) -> bool:
    """Whether a module defines a value, or takes it from another of an allowed package."""
    home = getattr(value, "__module__", None)
    return callable(value) and (home == module or (_covered(module) and _covered(home)))


def _not_a_part(module: str, attribute: str) -> ConfigError:
    """The error for a symbol of this package that is no part of pages."""
    parts = [part.split(":") for part in KINDS]
    names = [name for home, name in parts if home == module]
    if names:
        return unknown(f"symbol in {module}", attribute, names)
    near = difflib.get_close_matches(module, {home for home, _ in parts}, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"there is no module {short(module)} that configs may name{hint}")


# Checks -------------------------------------------------------------------------------------------


def check(spec: Any, *args: Any, **parts: Any) -> None:
    """`build` without making anything; arguments and errors are the same."""
    check_names(spec)
    _check(spec, args, parts)


def check_names(tree: Any) -> None:
    """The part of `check` that imports nothing: whether configs may name each symbol in a tree.

    Raises:
      ConfigError: no; a tree too deep or too large to be a config; keys that are not texts.
    """
    entries = [(tree, 0)]
    for entry, depth in entries:  # grows as it goes: no recursion, which a deep tree would exhaust
        mapping = isinstance(entry, Mapping)
        if mapping and (wrong := [key for key in entry if not isinstance(key, str)]):
            raise ConfigError(f"the keys of a config are texts, got {short(wrong[0])}")
        if mapping and "name" in entry:
            check_name(entry["name"])
        if not mapping and not isinstance(entry, (list, tuple)):
            continue
        if depth == _DEEP or len(entries) + len(entry) > _LARGE:
            raise ConfigError(
                f"a config has at most {_DEEP} levels and {_LARGE:,} entries: this is none"
            )
        entries += [(part, depth + 1) for part in (entry.values() if mapping else entry)]


def _check(spec: Any, args: Sequence[Any] = (), parts: Mapping[str, Any] = FrozenDict()) -> None:
    if isinstance(spec, Mapping) and "name" in spec:
        _check_call(spec, args, parts)
    elif isinstance(spec, (list, tuple, Mapping)):
        for part in spec.values() if isinstance(spec, Mapping) else spec:
            _check(part)


def _check_call(spec: Mapping[str, Any], args: Sequence[Any], parts: Mapping[str, Any]) -> None:
    """Raises ConfigError where a symbol cannot be called with the options of its spec."""
    name = spec["name"]
    signature, annotations = hints.signature(symbol(name))
    options = {key: value for key, value in spec.items() if key != "name"}
    for key in (*options, *parts):
        if key not in annotations:
            raise unknown(f"option of {name}", key, annotations)
    # Bound first and called after: a TypeError out of the call is a bug, not a page's mistake.
    try:
        signature.bind(*args, **{**options, **parts})
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None
    for key, value in options.items():
        if name in KINDS:  # a package of the user's own checks its options itself
            _check_value(name, key, annotations[key], value)
        _check(value)


def _check_value(name: str, key: str, hint: Any, value: Any) -> None:
    """Raises ConfigError where a value is not of the kind or the size of an option."""
    place = f"{name.partition(':')[2]}.{key}"
    kind = SLOTS.get(place, SLOTS.get(key))
    noun = f"one of the {kind}, {{'name': ...}}" if kind else "for the program to give"
    if get_origin(hint) is Literal and isinstance(value, str) and value not in get_args(hint):
        raise unknown(f"{key} of {name}", value, get_args(hint))
    if not hints.fits(hint, value, functools.partial(_makes, kind)):
        wanted = hints.described(hint, noun)
        raise ConfigError(f"{key} of {name} is {wanted}, got {short(value)}")
    for leaf in hints.numbers(value):
        default = (0, MOST) if isinstance(leaf, int) else (None, None)
        least, most = BOUNDS.get(place, BOUNDS.get(key, default))
        if leaf != most:  # infinity, where that is the bound
            number(f"{key} of {name}", leaf, least, most, integer=isinstance(leaf, int))


def _makes(kind: str | None, hint: Any, spec: Mapping[str, Any]) -> bool:
    """Whether a spec makes an object of a kind, and of the class that an annotation names."""
    name = spec["name"]
    target = symbol(name)
    if kind is None or KINDS.get(name, kind) != kind:
        return False
    named = isinstance(hint, type) and hint.__module__.startswith(f"{PACKAGE}.")
    if not named or getattr(hint, "_is_protocol", False) or name not in KINDS:
        return True
    # Weights are of no one class: each looks like `Simple`, beside which it stands.
    return issubclass(target, hint) or target.__module__ == hint.__module__


# Objects ------------------------------------------------------------------------------------------


def build(spec: Any, *args: Any, **parts: Any) -> Any:
    """Builds what `spec` names, and everything inside it, once all of it is checked.

    Args:
      spec: a mapping with the key 'name' ('diffusion_jax.<module>:<Name>') whose other keys are
        keyword arguments; nested mappings with a name, and lists of them, are built first. Anything
        else is returned as it is, lists as tuples and nameless mappings as FrozenDict, so that
        dataclasses built from them stay hashable.
      *args: positional arguments of the outermost object that are not part of the config (a
        process, say).
      **parts: keyword arguments of the outermost object that were built elsewhere.

    Raises:
      ConfigError: a symbol that no config may name, an unknown keyword (the message names the
        nearest known one), a value of another kind or out of bounds.

    Example:
      >>> build(dict(name='diffusion_jax.diffusion.process:Flow', shift=3.0))
      Flow(shift=3.0, t_max=1.0, t_clean=0.0)
    """
    check(spec, *args, **parts)
    return _made(spec, args, parts)


def _made(spec: Any, args: Sequence[Any] = (), parts: Mapping[str, Any] = FrozenDict()) -> Any:
    if not isinstance(spec, Mapping):
        return tuple(map(_made, spec)) if isinstance(spec, (list, tuple)) else spec
    options = {key: _made(value) for key, value in spec.items() if key != "name"}
    if "name" not in spec:
        return FrozenDict(options)
    try:
        return symbol(spec["name"])(*args, **{**options, **parts})
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Of checked values a part refuses no more than what does not go together.
        if isinstance(error, ConfigError) or spec["name"] not in KINDS:
            raise
        raise ConfigError(f"{spec['name']} is not made of such options: {error}") from error
