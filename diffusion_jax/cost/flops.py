"""Multiplications and additions of a JAX function, counted in its jaxpr: layer by layer, and with every trip of a loop.

    product      2 * elements of the output * elements contracted for each                     (1)
    convolution  2 * elements of the output * elements of the kernel for each output channel    (2)

XLA's own count takes the body of a loop once, and knows no layers. Only (1) and (2) are counted: what is done element by element
costs memory traffic, not operations. A layer is a module's name, as flax puts it on what it traces; those of a transposed or
recomputed layer count as that layer. (2) counts what a convolution multiplies with its padding too.
"""
from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax

TRANSFORMED = ("jvp", "transpose", "checkpoint", "rematted_computation")
WRAPPED = re.compile(r"\w+\(([^()]*)\)")


def count(function: Callable[..., Any], *shapes: Any) -> Counter[str]:
    """Layer -> operations of `function` on arguments of these shapes (pytrees of arrays or ShapeDtypeStructs).

    Example:
      >>> count(lambda x, w: x @ w, jax.ShapeDtypeStruct((2, 3), 'float32'), jax.ShapeDtypeStruct((3, 5), 'float32'))
      Counter({'': 60})
    """
    return jaxpr_count(jax.make_jaxpr(function)(*shapes).jaxpr)


def jaxpr_count(jaxpr: Any) -> Counter[str]:
    """`count` of a jaxpr."""
    total: Counter[str] = Counter()
    _walk(jaxpr, 1, "", total)
    return total


def _walk(jaxpr: Any, times: int, outer: str, total: Counter[str]) -> None:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        here = "/".join(filter(None, (outer, _layer(str(eqn.source_info.name_stack)))))
        if name == "dot_general":
            total[here] += times * _product(eqn)
        elif name == "conv_general_dilated":
            total[here] += times * _convolution(eqn)
        elif name == "cond":
            branches = [jaxpr_count(branch.jaxpr) for branch in eqn.params["branches"]]
            dearest = max(branches, key=lambda branch: sum(branch.values()))
            for layer, flops in dearest.items():
                total["/".join(filter(None, (here, layer)))] += times * flops
        else:
            for inner in _inner(eqn.params):
                _walk(inner, times * (eqn.params["length"] if name == "scan" else 1), here, total)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation runs; of a custom derivative's only the function, not its rules."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr"):
        if name in params:
            inner = params[name]
            yield inner.jaxpr if hasattr(inner, "jaxpr") else inner


def _layer(stack: str) -> str:
    """'jvp(DiT)/blocks/transpose(...)' without what transformations and methods add, and without numbers."""
    while WRAPPED.search(stack):
        stack = WRAPPED.sub(r"\1", stack)
    parts = [part for part in stack.split("/") if re.fullmatch(r"\w+", part) and part not in TRANSFORMED]
    return re.sub(r"_\d+(?=/|$)", "", "/".join(parts))


def _product(eqn: Any) -> int:
    """(1)."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _convolution(eqn: Any) -> int:
    """(2)."""
    numbers = eqn.params["dimension_numbers"]
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    spread = math.prod(eqn.params["lhs_dilation"])                 # zeros between the inputs, where a stride is transposed
    return 2 * math.prod(out) * per_output // (spread * eqn.params["batch_group_count"])
