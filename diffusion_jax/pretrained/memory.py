"""What keeps an import as small as the weights that it makes.

Weights are mapped from their file (pretrained/reader.py). The pages of what was read stay with the process
until it lets go of them (`release`), and an array that JAX takes from NumPy is there twice for a while,
unless it begins where JAX would have put it (`to_device`).
"""
from __future__ import annotations

import contextlib
import contextvars
import mmap
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ALIGNED = 64
"""Bytes: where an array begins that JAX's CPU backend uses without a copy."""
STORED: contextvars.ContextVar[str] = contextvars.ContextVar("STORED", default="")
"""The type of floating point weights within `stored_in`; '' for that of the network's own."""


@contextlib.contextmanager
def stored_in(dtype: str) -> Iterator[None]:
    """Inside, weights of floating point are converted into this type, not into that of the parameters."""
    token = STORED.set(dtype)
    try:
        yield
    finally:
        STORED.reset(token)


def stored_type(dtype: Any) -> np.dtype:
    """The type that a parameter of a type is kept in."""
    is_changed = STORED.get() and jnp.issubdtype(dtype, jnp.floating)
    return jnp.dtype(STORED.get() if is_changed else dtype)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of no values in particular that `to_device` need not copy."""
    count = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    room = np.empty(count + ALIGNED, np.uint8)
    begin = -room.ctypes.data % ALIGNED
    return room[begin : begin + count].view(dtype).reshape(shape)


def typed(value: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy in a type, C-contiguous, for `to_device`; the pages that it came from are released."""
    out = empty(value.shape, dtype)
    np.copyto(out, value, casting="unsafe")
    release(value)
    return out


def to_device(value: np.ndarray) -> jax.Array:
    """An array that nobody changes any more as JAX's. Waits for the copy, if there is one: it holds both."""
    return jax.block_until_ready(jax.device_put(value))


def release(value: np.ndarray) -> None:
    """Lets go of the pages of the mapped file that an array is a part of, if it is.

    They are read again where they are needed.
    """
    base: Any = value
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)
