"""Shapes of whole networks in a fraction of the time of `jax.eval_shape`: equal blocks are traced once.

A network of 48 equal blocks is traced 48 times by `jax.eval_shape`. Inside `tracing_once`, a module that equals
one that was called before, with inputs and parameters of the same shapes, is not traced again: it declares
parameters of those shapes and returns arrays of those shapes, all zero. So nothing that is traced there may be
run, and programs that JAX keeps from there are set apart from all others.
"""
from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from jax.experimental.xla_metadata import set_xla_metadata

from diffusion_jax.types import Params

MOST = 20_000  # calls that are remembered; a large network makes some hundred
LARGE = 4096  # bytes of a constant input up to which it is told apart by its values

_calls: dict[Any, tuple[Any, Any]] = {}


class Unknown(Exception):
    """A call that cannot be told apart from others by hashable values alone."""


def shapes_of(make: Callable[..., Any], *args: Any) -> Any:
    """`jax.eval_shape(make, *args)`, where equal modules are traced once.

    Example:
      shapes_of(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    """
    with tracing_once():
        return jax.eval_shape(lambda *args: make(*args), *args)


@contextlib.contextmanager
def tracing_once() -> Iterator[None]:
    """Inside, equal modules are traced once: for what traces for shapes alone, see above."""
    # JAX keeps what it traced by its settings, of which metadata are one: no such program is ever run.
    with set_xla_metadata(traced="for_shapes"), nn.intercept_methods(_remembered):
        yield


def _remembered(
    call: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    """An interceptor of flax: the call, or what an equal one declared and returned."""
    module = context.module
    if context.method_name != "__call__" or module.scope is None:
        return call(*args, **kwargs)
    try:
        key = _call_key(module, args, kwargs)
    except Unknown:
        return call(*args, **kwargs)
    if key not in _calls:
        out = call(*args, **kwargs)
        declared = unfreeze(module.variables)
        if set(declared) <= {"params"} and _traced(out):
            if len(_calls) >= MOST:
                _calls.clear()
            _calls[key] = jax.tree.map(_struct, (declared.get("params", {}), out))
        return out
    params, out = _calls[key]
    if module.is_mutable_collection("params"):
        _declare(module, params)
    return jax.tree.map(_zeros, out)


def _call_key(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What the shapes of a call depend on.

    Raises:
      Unknown: an input, or an attribute of the module, cannot be hashed.
    """
    leaves, structure = jax.tree.flatten((args, kwargs))
    variables = unfreeze(module.variables)
    held, names = jax.tree.flatten(variables)
    key = (
        _module_key(module, module),
        structure,
        tuple(map(_leaf_key, leaves)),
        names,
        tuple(map(_leaf_key, held)),
        module.is_mutable_collection("params"),
        module.is_initializing(),
        frozenset(module.scope.rngs),
        jax.config.jax_enable_x64,
    )
    try:
        hash(key)
    except TypeError as error:
        raise Unknown from error
    return key


def _module_key(value: Any, top: nn.Module) -> Any:
    """A module's type and attributes, those of the modules among them too.

    Raises:
      Unknown: it holds a module that belongs elsewhere, where its parameters are.
    """
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_module_key(item, top) for item in value)
    if isinstance(value, Mapping):
        return tuple((name, _module_key(item, top)) for name, item in value.items())
    if not isinstance(value, nn.Module):
        return type(value), value
    if value is not top and value.scope is not None and value.parent is not top:
        raise Unknown
    names = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
    return type(value), tuple((name, _module_key(getattr(value, name), top)) for name in names)


def _leaf_key(value: Any) -> Any:
    """An input's shape and type; of a constant also its values, which Python may have looked at.

    Raises:
      Unknown: a large constant.
    """
    if isinstance(value, jax.core.Tracer):
        return value.aval
    if not isinstance(value, (jax.Array, np.ndarray)):
        return type(value), value
    if value.nbytes > LARGE or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        raise Unknown
    return value.shape, value.dtype, np.asarray(value).tobytes()


def _traced(out: Any) -> bool:
    """Whether all that a call returned are arrays, which shapes stand for."""
    return all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(out))


def _struct(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype, weak_type=getattr(value, "weak_type", False))


def _zeros(struct: jax.ShapeDtypeStruct) -> Any:
    """Zeros that are as weakly typed as the original."""
    return jax.lax.full(struct.shape, 0, struct.dtype) if not struct.weak_type else jax.lax.full(struct.shape, 0)


def _declare(module: nn.Module, params: Params) -> None:
    """Gives the module parameters of those shapes; those that it has stay."""
    present = unfreeze(module.variables).get("params", {})
    for name, tree in params.items():
        module.put_variable("params", name, _joined(present.get(name), tree))


def _joined(present: Any, structs: Any) -> Any:
    """A tree of parameters: those that are there, and zeros for the others."""
    if not isinstance(structs, Mapping):
        return _zeros(structs) if present is None else present
    present = present or {}
    return present | {name: _joined(present.get(name), tree) for name, tree in structs.items()}
