"""How trees of arrays are written into checkpoints, and read from them."""
from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

SAVE_CONCURRENT_GB = 1
"""How much is on its way to the disk at a time: what saving takes beside the arrays themselves. At least one array is, however
large (`Checkpoints.save`)."""
SLICE_BYTES = 2**20
"""From this size of a part on, devices that hold the same array write a part of it each. To cut an array on a device is a program
of its own for each shape, which takes longer than to write a small one."""


def arrays_handler(concurrent_gb: int = SAVE_CONCURRENT_GB) -> Any:
    """What writes and reads a tree of arrays in a checkpoint, of which so many GB are written at a time."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import type_handlers

    registry = type_handlers.create_type_handler_registry(
        (jax.Array, type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE_BYTES)),
        (np.ndarray, type_handlers.NumpyHandler()),
        (np.number, type_handlers.ScalarHandler()),
    )
    return ocp.PyTreeCheckpointHandler(save_concurrent_gb=concurrent_gb, type_handler_registry=registry)


def arrays_wanted(abstract: Any, **options: Any) -> Any:
    """The argument to read a tree of ShapeDtypeStructs with shardings, of any mesh."""
    import orbax.checkpoint as ocp

    wanted = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=wanted, **options)


def largest(state: Any) -> int:
    """Bytes of the largest array of a tree on one device."""
    return max((math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)), default=0)
