"""From configuration to objects: `dict(name='diffusion_jax.models.dit:DiT', depth=28)` becomes `DiT(depth=28)`.

An object is named by its real symbol, so a config can be read with grep and stored as JSON. A checkpoint's config is input from
elsewhere: symbols outside this package are refused, and nothing is imported to find that out.
"""
from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from flax.core import FrozenDict

PACKAGE = __package__


class ConfigError(ValueError):
    """A configuration, flag or input that the user can mend; its message is one line that says how."""


def unknown(kind: str, got: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not among `known`; names the nearest one."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return ConfigError(f"unknown {kind} {got!r}: {hint}")


def symbol(name: str) -> Any:
    """The object behind 'diffusion_jax.module:Name'.

    Raises:
      ConfigError: the name lies outside this package, or does not exist.
    """
    module, _, attribute = str(name).partition(":")
    if module.split(".")[0] != PACKAGE or not attribute.isidentifier():
        raise ConfigError(f"{name!r} is not 'diffusion_jax.<module>:<Name>'; configs may name symbols of this package only")
    try:
        target = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name!r}: there is no module {error.name!r}") from None
    public = {key: value for key, value in vars(target).items() if getattr(value, "__module__", None) == module}
    if attribute not in public:
        raise unknown(f"symbol in {module}", attribute, public)
    return public[attribute]


def build(spec: Any, *args: Any, **parts: Any) -> Any:
    """Builds what `spec` names, and everything inside it.

    Args:
      spec: a mapping with the key 'name' ('diffusion_jax.<module>:<Name>') whose other keys are keyword arguments; nested
        mappings with a name, and lists of them, are built first. Anything else is returned as it is, lists as tuples and nameless
        mappings as FrozenDict, so that dataclasses built from them stay hashable.
      *args: positional arguments of the outermost object that are not part of the config (a process, say).
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
    given = {key: build(value) for key, value in spec.items() if key != "name"} | parts
    accepted = [p.name for p in inspect.signature(target).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for key in given:
        if key not in accepted:
            raise unknown(f"option of {spec['name']}", key, accepted)
    try:
        inspect.signature(target).bind(*args, **given)
    except TypeError as error:
        raise ConfigError(f"{spec['name']}: {error}") from None
    return target(*args, **given)
