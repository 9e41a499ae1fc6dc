"""Digests of the arrays of a state: for each of its parts (params, opt_state, memory, each average)
the sum

    d = sum_i (2 i + 1) word_i  mod 2^32                                                         (1)

over the words of its arrays, of 32 bits or less. Integer sums do not depend on their order, so (1)
is the same on any mesh, and an odd factor times a changed word is never 0 mod 2^32. But it is
linear: an even number of flipped signs cancels. So what is read is checked by a second sum too,

    m = sum_i f(word_i + 2654435769 i)  mod 2^32                                                 (2)

where f is a bijection of 32-bit words that mixes them well (MurmurHash3's last step, A. Appleby):
any change of several words goes unseen once in 2^32 times. Checkpoints of before have (1) alone.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, TrainState

DIGEST_BYTES = 2**28
"""Bytes of arrays that are digested together."""
CHAIN = 1000003
"""The odd factor between two arrays of a part."""
GOLDEN = 2654435769
"""2^32 over the golden ratio, odd: equal words at different places are different terms of (2)."""


def parts(state: TrainState) -> dict[str, Any]:
    """What is digested, by name."""
    parts = {"params": state.params, "opt_state": state.opt_state, "memory": state.memory}
    return parts | {f"ema/{name}": tree for name, tree in state.ema.items()}


def digest(params: Any) -> int:
    """(1) of a tree of arrays that was not saved: the number that `Weights` has of one that was."""
    return record({"params": params})["digests"]["params"]


def record(parts: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What a checkpoint's meta holds of them, and `check` reads: (1), 'digests', and (2), 'mixed',
    of each part; the sums of its arrays are chained, so that their order counts."""
    sums = {}
    for name, tree in parts.items():
        sums[name] = np.zeros(2, np.uint32)
        for group in _groups(jax.tree.leaves(tree)):
            sums[name] = _chained(sums[name], group)
    return {
        key: {name: int(np.asarray(both)[i]) for name, both in sums.items()}
        for i, key in enumerate(("digests", "mixed"))
    }


def _groups(leaves: list[Array]) -> Iterator[list[Array]]:
    """Arrays that are digested together: at most `DIGEST_BYTES`, or a single one.

    Not one by one, which would be a call for each of thousands; not all at once either, for their
    words take about as much memory again.
    """
    group: list[Array] = []
    for leaf in leaves:
        if group and sum(x.nbytes for x in group) + leaf.nbytes > DIGEST_BYTES:
            yield group
            group = []
        group.append(leaf)
    yield group


@jax.jit
def _chained(sums: Array, leaves: list[Array]) -> Array:
    for leaf in leaves:
        sums = sums * jnp.uint32(CHAIN) + _sums(leaf)
    return sums


def _sums(x: Array) -> Array:
    """(1) and (2) of one array, uint32 [2]. Without a reshape, which would gather a sharded array."""
    words = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x  # bools have no bits to cast
    # Bits, not values: -0.0 and 0.0 differ, NaNs count. Numbers of 8 bytes become [..., 2].
    words = jax.lax.bitcast_convert_type(words, f"uint{8 * min(words.dtype.itemsize, 4)}")
    words = words.astype(jnp.uint32)
    index = jnp.uint32(0)
    stride = 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        # The stride is a Python integer, which passes 2^32 in a large array: (1) is mod 2^32.
        index = index + along * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    terms = (2 * index + 1) * words, _mix(words + jnp.uint32(GOLDEN) * index)
    zeros = np.uint32(0), np.uint32(0)
    # Both sums in one pass over the words.
    both = jax.lax.reduce(terms, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), range(words.ndim))
    return jnp.stack(both)


def _mix(words: Array) -> Array:
    """f of (2)."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def check(parts: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Raises ValueError where arrays are not those that were saved."""
    sums = "mixed" if "mixed" in meta else "digests"
    for name, value in record(parts)[sums].items():
        if value != meta[sums][name]:
            raise ValueError(f"the arrays of {name!r} are not those that were saved")
