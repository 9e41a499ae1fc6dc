"""Published weights into our parameters, by a table of rules.

A rule names official keys by a regular expression, our parameter by a path, and the map between the two layouts with its inverse:

    Rule(r"blocks\\.(\\d+)\\.attn\\.qkv\\.weight", r"model/blocks_\\1/attn/qkv/kernel", TRANSPOSE)

`convert` is strict: every official key is used exactly once, every parameter of ours is filled, every shape fits. `revert` goes
back, for weights that were trained here and for gradients. Both only move data, so that they also run inside `jax.eval_shape` (a
whole key list is checked without memory) and `jax.jit`.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import memory
from diffusion_jax.types import Array, Params

Shape = tuple[int, ...]
Weights = Mapping[str, Array | np.ndarray]


class Layout(NamedTuple):
    """A map between two layouts of the same numbers.

    Attributes:
      ours: official array -> our array.
      official: (our array, official shape) -> official array; the inverse.
      shape: our shape -> the official one, as far as ours tells it: axes of one at its end are left to pretrained/names.py.
    """

    ours: Callable[[Any], Any]
    official: Callable[[Any, Shape], Any]
    shape: Callable[[Shape], Shape] = lambda shape: shape


SAME = Layout(lambda w: w, lambda w, shape: w)
TRANSPOSE = Layout(lambda w: w.T, lambda w, shape: w.T, lambda shape: shape[::-1])
"""A linear layer: (out, in) <-> (in, out)."""
CONV = Layout(
    lambda w: w.transpose(2, 3, 1, 0), lambda w, shape: w.transpose(3, 2, 0, 1), lambda shape: (shape[3], shape[2], *shape[:2])
)
"""A convolution: (out, in, h, w) <-> (h, w, in, out)."""
POINT = Layout(lambda w: w.reshape(w.shape[:2]).T, lambda w, shape: w.T.reshape(shape), lambda shape: shape[::-1])
"""A convolution over single pixels or tokens, as a linear layer: (out, in, 1 ...) <-> (in, out)."""
PATCH = Layout(
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
    lambda w, shape: w.reshape(*shape[2:], shape[1], shape[0]).transpose(3, 2, 0, 1),
)
"""A convolution whose stride is its size, as a linear layer over patches: (out, c, p, q) <-> (p*q*c, out)."""
ROW = Layout(lambda w: w.reshape(-1), lambda w, shape: w.reshape(shape), lambda shape: (1, 1, *shape))
"""A single row behind axes of one: (1 ..., c) <-> (c)."""
UNBATCHED = Layout(lambda w: w[0], lambda w, shape: w[None], lambda shape: (1, *shape))
"""A table behind an axis of one: (1, n, c) <-> (n, c)."""


class Rule(NamedTuple):
    """Where official keys go.

    Attributes:
      key: a regular expression that matches the whole official key.
      path: our parameter, 'model/...' or 'cond/...'; may use the groups of `key`.
      layout: the map between the two arrays.
    """

    key: str
    path: str
    layout: Layout = SAME


class Constant(NamedTuple):
    """An official tensor that is no parameter of ours but a known constant: it is compared, and made again on the way back.

    Attributes:
      key: a regular expression that matches the whole official key.
      value: shape -> the constant.
    """

    key: str
    value: Callable[[Shape], np.ndarray]


Rules = Sequence[Rule | Constant]
CONSTANT_ATOL = 2e-3  # published tables may have been through float16


def layer(
    key: str,
    path: str,
    weight: Layout = TRANSPOSE,
    name: str = "kernel",
    bias: Layout = SAME,
    ends: tuple[str, str] = ("weight", "bias"),
) -> list[Rule]:
    """The rules of a layer with a weight and a bias.

    Args:
      key: a regular expression for the official key of the layer, without the last part.
      path: our path of the layer, without the last part; may use the groups of `key`.
      weight, bias: the layouts of the two.
      name: of our weight; our bias is always called 'bias'.
      ends: the last parts of the two official keys.

    Example:
      >>> [rule.path for rule in layer(r"mlp\\.(fc[12])", r"model/\\1")]
      ['model/\\\\1/kernel', 'model/\\\\1/bias']
    """
    return [
        Rule(rf"{key}\.{ends[0]}", f"{path}/{name}", weight),
        Rule(rf"{key}\.{ends[1]}", f"{path}/bias", bias),
    ]


def norm(key: str, path: str, ends: tuple[str, str] = ("weight", "bias")) -> list[Rule]:
    """The rules of a normalisation with a scale and a bias; see `layer`."""
    return layer(key, path, SAME, "scale", ends=ends)


def batch_norm(key: str, path: str) -> list[Rule]:
    """The rules of a batch norm with the statistics that it has gathered; see `layer`."""
    statistics = [
        Rule(rf"{key}\.running_mean", f"{path}/mean"),
        Rule(rf"{key}\.running_var", f"{path}/var"),
    ]
    return [*norm(key, path), *statistics]


def convert(state_dict: Weights, rules: Rules, target: Params) -> Params:
    """Official weights as our parameters.

    Args:
      state_dict: official key -> array.
      rules: the table; exactly one rule must match each key.
      target: the shapes and types of our parameters, as `jax.eval_shape` of the initialisation gives them.

    Returns:
      A tree like `target`, each array in its type.

    Raises:
      ConfigError: names, in one line, the keys left over, the parameters missing and the shapes that do not fit.
    """
    wanted: dict[str, Any] = flatten_dict(target, sep="/")
    filled: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in state_dict.items():
        rule, path = find(key, rules)
        if isinstance(rule, Constant):
            problems += _differs(key, value, rule)
        elif rule is None or path not in wanted or path in filled:
            problems.append(f"left over: {key}")
        else:
            filled[path] = _ours(value, rule.layout)
            if np.shape(filled[path]) != wanted[path].shape:
                problems.append(
                    f"wrong shape: {key} {value.shape} does not give {path} {wanted[path].shape}"
                )
    problems += [f"missing: {path}" for path in wanted if path not in filled]
    _refuse("the weights do not fit the model", problems)
    typed = {path: _typed(value, wanted[path].dtype) for path, value in filled.items()}
    return unflatten_dict(typed, sep="/")


def revert(params: Params, rules: Rules, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Our parameters, or their gradients, in the official layout: the inverse of `convert`.

    Args:
      params: a tree of arrays as `convert` returns it.
      rules: the table.
      shapes: official key -> shape.

    Returns:
      official key -> array.

    Raises:
      ConfigError: names, in one line, the keys without a parameter and the parameters without a key.
    """
    ours: dict[str, Any] = flatten_dict(params, sep="/")
    used: set[str] = set()
    official: dict[str, Any] = {}
    problems: list[str] = []
    for key, shape in shapes.items():
        rule, path = find(key, rules)
        if isinstance(rule, Constant):
            official[key] = rule.value(tuple(shape))
        elif rule is None or path not in ours or path in used:
            problems.append(f"missing: {key}")
        else:
            used.add(path)
            official[key] = rule.layout.official(_on_host(ours[path]), tuple(shape))
    problems += [f"left over: {path}" for path in ours if path not in used]
    _refuse("the parameters do not fit the official keys", problems)
    return official


def revert_renamed(
    params: Params, rules: Rules, shapes: Mapping[str, Shape], names: Mapping[str, str]
) -> dict[str, Array]:
    """`revert` by a table that reads other keys than the official ones.

    Args:
      params, rules: see `revert`.
      shapes: official key -> shape.
      names: key of the table -> official key.
    """
    weights = revert(params, rules, {name: shapes[key] for name, key in names.items()})
    return {names[name]: value for name, value in weights.items()}


def structs(shapes: Mapping[str, Shape]) -> dict[str, jax.ShapeDtypeStruct]:
    """Official key -> shape as a state dict without numbers, for what reads shapes off one."""
    return {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in shapes.items()}


_pattern = functools.cache(re.compile)  # `re` itself looks long for it among many


def find(key: str, rules: Rules) -> tuple[Rule | Constant | None, str]:
    """The one rule for an official key, if any, and our path, if it has one.

    Raises:
      ConfigError: several rules match.
    """
    matches = [(rule, match) for rule in rules if (match := _pattern(rule.key).fullmatch(key))]
    if len(matches) > 1:
        patterns = ", ".join(rule.key for rule, _ in matches)
        raise ConfigError(f"{len(matches)} rules match the key {key!r}: {patterns}")
    if not matches:
        return None, ""
    rule, match = matches[0]
    path = match.expand(rule.path) if isinstance(rule, Rule) else ""
    return rule, path


def _ours(value: Array | np.ndarray, layout: Layout) -> Array | np.ndarray | None:
    """`value` in our layout; None where it has too few or too many axes for that."""
    try:
        return layout.ours(value)
    except (TypeError, ValueError):
        return None


def _typed(value: Array | np.ndarray, dtype: Any) -> Array:
    """`value` in a type; NumPy changes it on the host, where JAX would compile a program for each shape."""
    dtype = memory.stored_type(dtype)
    if isinstance(value, np.ndarray):
        return memory.to_device(memory.typed(value, dtype))
    return jnp.asarray(value, dtype)


def _on_host(value: Any) -> Any:
    """An array for NumPy to turn around, where JAX would compile a program for each shape; a traced value stays."""
    return np.asarray(value) if isinstance(value, jax.Array) and not isinstance(value, Tracer) else value


def _differs(key: str, value: Array | np.ndarray, rule: Constant) -> list[str]:
    """The problem with an official constant, if any; a traced value has a shape only."""
    want = rule.value(value.shape)
    if want.shape != value.shape:
        return [f"wrong shape: {key} {value.shape} in place of {want.shape}"]
    if isinstance(value, Tracer):                   # inside eval_shape: nothing to compare
        return []
    if np.allclose(np.asarray(value, np.float64), want, rtol=0, atol=CONSTANT_ATOL):
        return []
    return [f"wrong values: {key} is not the constant that this model uses"]


def _refuse(title: str, problems: list[str]) -> None:
    """Raises the first few problems in one line, if there are any."""
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ConfigError(f"{title}: {'; '.join(problems[:4])}{more}")
