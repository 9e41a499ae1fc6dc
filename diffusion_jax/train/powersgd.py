"""PowerSGD: gradients in low rank, so that little has to be sent (Vogels et al. 2019, arXiv 1905.13727, algorithm 1 and 2).

For the gradient M [n, m] of each matrix on its own device, with the error e that earlier steps left there and a Q [m, r] kept
from the step before:

    M  = M + e                                                                        (1)
    P  = orthonormal columns of mean_devices(M Q)                                     (2)
    Q' = mean_devices(M^T P)                                                          (3)
    M^ = P Q'^T,   e' = M - M^                                                        (4)

(2) and (3) send r (n + m) numbers in place of n m; what is lost is sent later, because e is added to the next gradient. DALL-E
trains with it (Ramesh et al. 2021, section 2.4). Arrays of more than two axes are matrices of all axes but the last by the last;
vectors and matrices for which r (n + m) is no saving are averaged as they are.

`powersgd` is an optax transformation. Under `shard_map` over the axis 'data' its means are those of the devices; on its own it
compresses the gradient that is there already. `Compressed` is an optimiser that asks the train step for the former: the step
then takes each shard's own gradient, and only what `sent` counts crosses the axis.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError
from diffusion_jax.types import Array, Params, TrainState

AXIS = "data"
RULES = ((r"opt_state/powersgd/error/", (AXIS, None, None)),)
"""Where the errors of `Compressed` live: each shard's own on its own devices (train/shard.py)."""


class PowerState(NamedTuple):
    """State of `powersgd`: e and Q of every compressed array, one zero for each other (checkpoints take no empty arrays)."""

    error: Params
    q: Params


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(n, m) of an array's shape; a vector is a matrix with one column."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)


def compressed(shape: Sequence[int], rank: int) -> bool:
    """Whether sending r (n + m) numbers is less than all of them."""
    n, m = matrix(shape)
    return len(shape) > 1 and rank * (n + m) < n * m


def sent(params: Params, rank: int | None = None) -> int:
    """Numbers that each device sends at an update; None for no compression. Four bytes each in float32."""
    def count(shape: Sequence[int]) -> int:
        return rank * sum(matrix(shape)) if rank and compressed(shape, rank) else math.prod(shape)

    return sum(count(leaf.shape) for leaf in jax.tree.leaves(params))


def powersgd(rank: int = 4, axis: str | None = None, seed: int = 0) -> optax.GradientTransformation:
    """(1) to (4) for every matrix among the gradients.

    Args:
      rank: r.
      axis: the name of the mesh axis whose devices each have gradients of their own; None where there is one gradient.
      seed: of the first Q.

    Raises:
      ConfigError: a rank below 1.

    Example:
      optax.chain(powersgd(rank=4), optax.adam(1e-3))
    """
    if rank < 1:
        raise ConfigError(f"the rank of PowerSGD is at least 1, got {rank}")

    def mean(x: Array) -> Array:
        return x if axis is None else jax.lax.pmean(x, axis)

    def init(params: Params) -> PowerState:
        leaves, tree = jax.tree.flatten(params)
        used = [compressed(leaf.shape, rank) for leaf in leaves]
        keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
        error = [jnp.zeros(leaf.shape if small else (1,), jnp.float32) for leaf, small in zip(leaves, used, strict=True)]
        q = [jax.random.normal(key, (matrix(leaf.shape)[1], rank)) if small else jnp.zeros((1,))
             for key, leaf, small in zip(keys, leaves, used, strict=True)]
        return PowerState(jax.tree.unflatten(tree, error), jax.tree.unflatten(tree, q))

    def one(g: Array, e: Array, q: Array) -> tuple[Array, Array, Array]:
        if not compressed(g.shape, rank):
            return mean(g), e, q
        m = (g.astype(jnp.float32) + e).reshape(matrix(g.shape))                                    # (1)
        p, _ = jnp.linalg.qr(mean(m @ q))                                                           # (2)
        q = mean(m.T @ p)                                                                           # (3)
        low = p @ q.T                                                                               # (4)
        return low.reshape(g.shape).astype(g.dtype), (m - low).reshape(g.shape), q

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, PowerState]:
        del params
        leaves, tree = jax.tree.flatten(updates)
        done = [one(*item) for item in zip(leaves, jax.tree.leaves(state.error), jax.tree.leaves(state.q), strict=True)]
        found, error, q = (jax.tree.unflatten(tree, part) for part in zip(*done, strict=True))
        return found, PowerState(error, q)

    return optax.GradientTransformation(init, update)


@dataclass(frozen=True)
class Compressed:
    """An optimiser that is given gradients which shards of the data axis have not averaged, and averages them in low rank.

    Its state is {'powersgd': e as [shards, n, m] and Q, 'inner': the state of `inner`}.

    Attributes:
      inner: what moves the parameters by the mean gradient.
      rank: r.
      shards: devices along the data axis; `train.loop` fills it in.

    Raises:
      ConfigError: a rank below 1.
    """

    inner: optax.GradientTransformation
    rank: int
    shards: int = 1

    def __post_init__(self):
        powersgd(self.rank)

    def init(self, params: Params) -> dict[str, Any]:
        """The state before the first update."""
        def stacked(e: Array) -> Array:
            return jnp.zeros((self.shards, *matrix(e.shape))) if e.ndim > 1 else e

        first = powersgd(self.rank).init(params)
        return {"powersgd": PowerState(jax.tree.map(stacked, first.error), first.q), "inner": self.inner.init(params)}

    def average(self, grads: Params, state: PowerState) -> tuple[Params, PowerState]:
        """(the mean gradient, what is kept), (1) to (4); inside of a `shard_map` over 'data', e being [1, n, m] there."""
        error = jax.tree.map(lambda e, g: e.reshape(g.shape) if e.ndim > 1 else e, state.error, grads)
        mean, (error, q) = powersgd(self.rank, AXIS).update(grads, PowerState(error, state.q))
        return mean, PowerState(jax.tree.map(lambda e, kept: e.reshape(kept.shape), error, state.error), q)

    def update(self, grads: Params, state: dict[str, Any], params: Params) -> tuple[Params, dict[str, Any]]:
        """What to add to the parameters for a mean gradient."""
        updates, inner = self.inner.update(grads, state["inner"], params)
        return updates, {**state, "inner": inner}


def as_stored(state: TrainState, stored: Callable[[], Any]) -> TrainState:
    """What to restore a checkpoint into that may be of another number of shards.

    Args:
      state: the abstract state that is wanted, of any optimiser.
      stored: gives the checkpoint's own tree, which is looked at for `Compressed` alone.

    Returns:
      `state`, with e [shards, n, m] of as many shards as are stored, split over the data axis where it divides them.
    """
    def one(leaf: Array, kept: Any) -> jax.ShapeDtypeStruct:
        if kept.shape == leaf.shape:
            return leaf
        mesh = leaf.sharding.mesh
        split = next((i for i, size in enumerate(kept.shape) if size % mesh.shape[AXIS] == 0), None)
        spec = PartitionSpec(*(AXIS if i == split else None for i in range(len(kept.shape))))
        return jax.ShapeDtypeStruct(kept.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return _with_errors(state, one, lambda: stored()["opt_state"]["powersgd"]["error"])


def spread(state: TrainState, wanted: TrainState) -> TrainState:
    """A restored state with the shards of the abstract one: (2) and (3) see only the mean of e, which each shard is given."""
    def one(e: Array, leaf: jax.ShapeDtypeStruct) -> Array:
        if e.shape == leaf.shape:
            return e
        return jax.jit(lambda e: jnp.broadcast_to(e.mean(0, keepdims=True), leaf.shape), out_shardings=leaf.sharding)(e)

    return _with_errors(state, one, lambda: wanted.opt_state["powersgd"].error)


def _with_errors(state: TrainState, change: Callable[[Any, Any], Any], other: Callable[[], Any]) -> TrainState:
    """A state with every e changed, beside that of another one; unchanged for other optimisers than `Compressed`."""
    if not isinstance(state.opt_state, dict) or "powersgd" not in state.opt_state:
        return state
    power = state.opt_state["powersgd"]
    error = jax.tree.map(change, power.error, other())
    return state.replace(opt_state={**state.opt_state, "powersgd": power._replace(error=error)})


def saving(params: Params, rank: int) -> float:
    """How many times fewer numbers are sent."""
    return float(np.divide(sent(params), sent(params, rank)))
