"""How activations are split over the devices: rules of the config, looked up where a layer names what it has in hand.

A layer says `constrain(x, 'attention/q')`; whether that does anything, the rules in force decide. They are pairs (regex, spec),
the first whose regex is found in the name counts, and a spec has one entry, an axis, axes or None, for each of the last
dimensions of x. Without rules nothing happens.

    'attention/q'                  [B, heads, T, d]   queries, and what attention gives for them
    'attention/k', 'attention/v'   [B, heads, S, d]

So long sequences are split: with 'tensor' on T of q, and none on S of k and v, each device attends for its own queries.
"""
from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.types import Array

NAMES = ("attention/q", "attention/k", "attention/v")
DIMENSIONS = 4
Rules = Sequence[tuple[str, Sequence[str | Sequence[str] | None]]]
_IN_FORCE: ContextVar[tuple[Mesh, Rules] | None] = ContextVar("activation rules", default=None)


@contextlib.contextmanager
def activations(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Puts rules in force while a function is traced.

    Raises:
      ConfigError: an unknown axis, a spec of more entries than dimensions, a rule that decides nothing or is no regular
        expression.

    Example:
      with activations(mesh, [('attention/q', (('data', 'fsdp'), None, 'tensor', None))]):
          jax.jit(step).lower(...)
    """
    rules = tuple((str(pattern), spec) for pattern, spec in rules)
    _check(mesh, rules)
    token = _IN_FORCE.set((mesh, rules))
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def mesh() -> Mesh | None:
    """The mesh in force, None where there is none."""
    found = _IN_FORCE.get()
    return found[0] if found else None


def constrain(x: Array, name: str) -> Array:
    """x, split as the rules in force say; an axis that does not divide its dimension leaves it whole."""
    axes = _axes(x, name)
    return x if axes is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh(), PartitionSpec(*axes)))


def splits(x: Array, name: str, dim: int) -> bool:
    """Whether the rules in force split a dimension of x."""
    axes = _axes(x, name)
    return axes is not None and axes[dim] is not None


def _check(mesh: Mesh, rules: Rules) -> None:
    try:
        decided = {_decides(rules, name) for name in NAMES}
    except re.error as error:
        raise ConfigError(f"an activation rule is no regular expression ({error}): write names like 'attention/q'") from None
    for number, (pattern, spec) in enumerate(rules):
        if number not in decided:
            raise ConfigError(f"activation rule {pattern!r} decides nothing: none of {', '.join(NAMES)} is left to it")
        if len(spec) > DIMENSIONS:
            raise ConfigError(f"activation rule {pattern!r} has {len(spec)} entries for {DIMENSIONS} dimensions")
        for axis in (axis for entry in spec for axis in _names(entry)):
            if axis not in mesh.shape:
                raise unknown("mesh axis", axis, mesh.shape)


def _decides(rules: Rules, name: str) -> int | None:
    """The number of the rule that counts for a name."""
    return next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, name)), None)


def _axes(x: Array, name: str) -> list[str | tuple[str, ...] | None] | None:
    """One entry of a PartitionSpec for each dimension of x, None where no rule in force counts."""
    mesh, rules = _IN_FORCE.get() or (None, ())
    number = _decides(rules, name)
    if number is None:
        return None
    spec = rules[number][1]
    whole = [None] * (x.ndim - len(spec))
    return [*whole, *(_fitting(mesh, entry, dim) for entry, dim in zip(spec, x.shape[len(whole) :], strict=True))]


def _fitting(mesh: Mesh, entry: str | Sequence[str] | None, dim: int) -> str | tuple[str, ...] | None:
    names = _names(entry)
    size = math.prod(mesh.shape[name] for name in names)
    return names if size > 1 and dim % size == 0 else None


def _names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
