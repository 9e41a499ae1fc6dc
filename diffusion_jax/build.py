"""From configuration to objects: `dict(name='diffusion_jax.models.dit:DiT', depth=28)` becomes
`DiT(depth=28)`.

An object is named by its real symbol, so a config can be read with grep and stored as JSON. A
checkpoint's config is input from elsewhere: symbols outside this package are refused, and nothing
is imported to find that out.
"""
from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flax.core import FrozenDict

PACKAGE = __package__
_SPELT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity|nan)", re.ASCII | re.I)


class ConfigError(ValueError):
    """A configuration, flag or input that the user can mend; its message is one line that says
    how."""


def unknown(kind: str, got: str, names: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `names`; it names the nearest one, or all."""
    names = sorted(names)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
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
    """Raises ConfigError for a number of a dataclass of options that is not finite or out of
    bounds, or an unknown word."""
    for field in dataclasses.fields(options):
        if "help" not in field.metadata:  # a plain field, for Python alone: no option
            continue
        value = getattr(options, field.name)
        least, most, choices = (field.metadata[name] for name in ("least", "most", "choices"))
        if isinstance(value, str) and choices and value not in choices:
            raise unknown(field.name, value, choices)
        # A bool is an int in Python, and has no bounds.
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            number(field.name, value, least, most)


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
        raise ConfigError(f"{name} is {kind}, got {value!r}")
    try:
        converted = int(value) if integer and not isinstance(value, float) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} is {kind}, got {value!r}") from None
    # Bounds do not see NaN: every comparison with it is false.
    if not math.isfinite(converted):
        raise ConfigError(f"{name} is {value}, which is not finite: give a number")
    if integer and converted != int(converted):
        raise ConfigError(f"{name} is {kind}, got {value}")
    if (least is not None and converted < least) or (most is not None and converted > most):
        raise ConfigError(f"{name} is {_bounds(least, most)}, got {value}")
    return int(converted) if integer else converted


def _bounds(least: float | None, most: float | None) -> str:
    if most is None:
        return f"{least} or more"
    return f"{most} or less" if least is None else f"{least} ... {most}"


def symbol(name: str) -> Any:
    """The object behind 'diffusion_jax.module:Name'.

    Raises:
      ConfigError: the name lies outside this package, or does not exist.
    """
    module, _, attribute = str(name).partition(":")
    # Before the import, which already runs the code of whatever is named.
    if module.split(".")[0] != PACKAGE or not attribute.isidentifier():
        raise ConfigError(
            f"{name!r} is not 'diffusion_jax.<module>:<Name>'; configs may name symbols of this "
            "package only"
        )
    try:
        target = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name!r}: there is no module {error.name!r}") from None
    # Only what the module defines itself: through its own imports a config would reach os.system.
    public = {
        key: value
        for key, value in vars(target).items()
        if getattr(value, "__module__", None) == module
    }
    if attribute not in public:
        raise unknown(f"symbol in {module}", attribute, public)
    return public[attribute]


def build(spec: Any, *args: Any, **parts: Any) -> Any:
    """Builds what `spec` names, and everything inside it.

    Args:
      spec: a mapping with the key 'name' ('diffusion_jax.<module>:<Name>') whose other keys are
        keyword arguments; nested mappings with a name, and lists of them, are built first. Anything
        else is returned as it is, lists as tuples and nameless mappings as FrozenDict, so that
        dataclasses built from them stay hashable.
      *args: positional arguments of the outermost object that are not part of the config (a
        process, say).
      **parts: keyword arguments of the outermost object that were built elsewhere.

    Raises:
      ConfigError: an unknown symbol or keyword; the message names the nearest known one.

    Example:
      >>> build(dict(name='diffusion_jax.diffusion.process:Flow', shift=3.0))
      Flow(shift=3.0)
    """
    if isinstance(spec, (list, tuple)):
        return tuple(build(item) for item in spec)
    if not isinstance(spec, Mapping):
        return spec
    if "name" not in spec:
        return FrozenDict({key: build(value) for key, value in spec.items()})
    target = symbol(spec["name"])
    options = {key: build(value) for key, value in spec.items() if key != "name"} | parts
    signature = inspect.signature(target)
    # `**kwargs` of a target accept no key here: one that is misspelt would vanish in them.
    accepted = [
        p.name
        for p in signature.parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    for key in options:
        if key not in accepted:
            raise unknown(f"option of {spec['name']}", key, accepted)
    # Bound first and called after: a TypeError out of the call is a bug, not a page's mistake.
    try:
        signature.bind(*args, **options)
    except TypeError as error:
        raise ConfigError(f"{spec['name']}: {error}") from None
    return target(*args, **options)
