"""Weights that are gathered where a layer uses them, in place of all of them at the start of a step.

Weights stored split over `fsdp` are whole in memory only while their layer runs: in a scan over layers one layer's at a time,
and, where the layer is recomputed in the backward pass, gathered once more there. Every layer gets its weights in a box of flax's
(`flax.core.meta.AxisMetadata`), which flax opens at the place of use, so that no model knows of it:

    forward     w = gather(stored)                                                    (1)
    backward    d stored = split(d w)                                                 (2)

(2) tells XLA to sum and split a gradient in one collective (reduce-scatter), where left alone it would keep it whole.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.struct
import jax
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.train.shard import gathered
from diffusion_jax.types import Array, Params

CONVOLUTION = 4  # dimensions of a kernel: window, input and output channels
Axes = tuple[str | tuple[str, ...] | None, ...]


class Stored(flax.struct.PyTreeNode, meta.AxisMetadata):
    """A split weight in a box that gathers it when it is opened.

    Attributes:
      value: the weight.
      axes: how its dimensions are split.
      mesh: over which devices.
    """

    value: Any
    axes: Axes = flax.struct.field(pytree_node=False)
    mesh: Mesh = flax.struct.field(pytree_node=False)

    def unbox(self) -> Array:
        """The whole weight, (1)."""
        return _gather(NamedSharding(self.mesh, PartitionSpec(*self.axes)), self.value)

    def replace_boxed(self, val: Any) -> Stored:
        """Another value in the same box."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Stored:
        """The box of weights stacked along a new dimension."""
        return self.replace(axes=(*self.axes[:index], None, *self.axes[index:]))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Stored:
        """The box of one of the weights that are stacked along a dimension."""
        return self.replace(axes=(*self.axes[:index], *self.axes[index + 1 :]))


def split_like(gradient: Array, stored: NamedSharding) -> Array:
    """A weight's gradient, summed over the devices and split as the weight is stored.

    A convolution's is first asked for whole. Asked for its part at once, XLA's partitioner (JAX 0.10.2) exchanges channels of the
    images for examples of the batch, or goes around the devices part by part: for EDM2-XXL on 256 chips of v5e 44 GiB a chip in
    place of 9, for ADM on 16 chips 15 in place of 9.
    """
    if gradient.ndim == CONVOLUTION:
        gradient = jax.lax.with_sharding_constraint(gradient, gathered(stored))
    return jax.lax.with_sharding_constraint(gradient, stored)


def at_use(params: Params, shardings: Any) -> Params:
    """`params` with every weight that is stored split over `fsdp` or `data` in a box, for `flax.linen.Module.apply`.

    Args:
      params: nested dicts of arrays.
      shardings: a NamedSharding for each.
    """
    def box(x: Array, sharding: NamedSharding) -> Any:
        if gathered(sharding).spec == sharding.spec:
            return x
        return Stored(x, tuple(sharding.spec) + (None,) * (x.ndim - len(sharding.spec)), sharding.mesh)

    return jax.tree.map(box, params, shardings)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(stored: NamedSharding, x: Array) -> Array:
    return jax.lax.with_sharding_constraint(x, gathered(stored))


def _forward(stored: NamedSharding, x: Array) -> tuple[Array, None]:
    return _gather(stored, x), None


def _backward(stored: NamedSharding, _: None, dy: Array) -> tuple[Array]:
    return (split_like(dy, stored),)


_gather.defvjp(_forward, _backward)
