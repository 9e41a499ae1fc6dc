"""How activations are split over the devices: rules of the config, looked up where a layer names what it has in hand.

A layer says `constrain(x, 'attention/q')`; whether that does anything, the rules in force decide. They are pairs (regex, spec),
the first whose regex is found in the name counts, and a spec has one entry, an axis, axes or None, for each of the last
dimensions of x. Without rules nothing happens.

    'attention/q'                  [B, heads, T, d]   queries, and what attention gives for them
    'attention/k', 'attention/v'   [B, heads, S, d]
    'tokens'                       [B, T, D]          between the blocks of a transformer

So long sequences are split: with 'tensor' on T of q, and none on S of k and v, each device attends for its own queries.
"""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.types import Array

Rules = Sequence[tuple[str, Sequence[str | Sequence[str] | None]]]
_IN_FORCE: ContextVar[tuple[Mesh, Rules] | None] = ContextVar("activation rules", default=None)


@contextlib.contextmanager
def activations(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Puts rules in force while a function is traced.

    Example:
      >>> with activations(mesh, [('attention/q', (('data', 'fsdp'), None, 'tensor', None))]):
      ...     jax.jit(step).lower(...)
    """
    token = _IN_FORCE.set((mesh, tuple(rules)))
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
    found = _IN_FORCE.get()
    spec = next((spec for pattern, spec in found[1] if re.search(pattern, name)), None) if found else None
    if spec is None:
        return x
    mesh, whole = found[0], [None] * (x.ndim - len(spec))
    axes = [*whole, *(_fitting(mesh, entry, dim) for entry, dim in zip(spec, x.shape[len(whole) :], strict=True))]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))


def _fitting(mesh: Mesh, entry: str | Sequence[str] | None, dim: int) -> str | tuple[str, ...] | None:
    names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return names if names and dim % size == 0 else None
