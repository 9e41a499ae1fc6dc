"""Digests against sums of Python's integers, and what they must see."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.train import digest as d
from diffusion_jax.train import shard
from diffusion_jax.types import TrainState

RNG = np.random.default_rng(0)


def test_digests_see_one_bit_an_exchange_and_no_mesh():
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    bits = x.view(np.uint32).ravel().astype(np.uint64)
    want = int((bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1)).sum() % 2**32)

    assert d.digest(x) == want
    mesh = shard.make_mesh(data=2, fsdp=2, tensor=2)
    for spec in ((), ("fsdp", "tensor"), (None, ("data", "tensor"))):
        assert d.digest(jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))) == want
    swapped, flipped = x[::-1].copy(), x.copy()
    flipped.view(np.uint32)[3, 7] ^= 1 << 31
    others = (swapped, flipped, x.astype(jnp.bfloat16), x > 0, (x, x), ())
    assert len({want, *map(d.digest, others)}) == 7


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bool", "float64"])
def test_is_a_sum_over_words_of_at_most_32_bits(dtype):
    x = RNG.integers(-9, 9, (3, 5)).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        got = d.digest({"a": x})
    words = x.view(f"uint{8 * min(x.dtype.itemsize, 4)}").ravel()
    assert got == sum((2 * i + 1) * int(word) for i, word in enumerate(words)) % 2**32


def test_a_changed_word_changes_the_sum_wherever_it_is():
    """Also where twice its index, or the change, is a high power of two."""
    x = RNG.integers(0, 2**32, 2**9, dtype=np.uint32)
    want = d.digest(x)
    for i in (0, 1, 2**8, 2**9 - 1):
        for change in (1, 2**16, 2**31, 2**32 - 1):
            other = x.copy()
            other[i] = (int(other[i]) + change) % 2**32
            assert d.digest(other) != want


def test_arrays_are_chained_in_order_whatever_is_taken_together(monkeypatch):
    arrays = [np.full((2, 2), i, np.float32) for i in range(1, 6)]
    want = d.digest(arrays)
    chained = 0
    for array in arrays:
        chained = (chained * 1000003 + d.digest(array)) % 2**32
    assert want == chained != d.digest(arrays[::-1])
    for limit in (1, 33):                                                      # one at a time, and two
        monkeypatch.setattr(d, "DIGEST_BYTES", limit)
        assert d.digest(arrays) == want


def test_a_state_is_digested_part_by_part_and_a_part_that_was_changed_is_named():
    state = TrainState(jnp.int32(3), {"a": jnp.ones(2)}, (), {"slow": {"a": jnp.zeros(2)}}, {"count": jnp.ones(())})
    parts = d.parts(state)
    assert list(parts) == ["params", "opt_state", "memory", "ema/slow"]
    meta = {"digests": d.record(parts)["digests"]}
    d.check(parts, meta)
    with pytest.raises(ValueError, match="'ema/slow' are not those that were saved"):
        d.check(parts | {"ema/slow": {"a": jnp.array([0.0, -0.0])}}, meta)     # not even the sign of a zero


def mixed(x):
    """(2) by Python's integers."""
    total = 0
    for i, word in enumerate(np.asarray(x).view(np.uint32).ravel().tolist()):
        word = (word + 2654435769 * i) % 2**32
        word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
        word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
        total += word ^ word >> 16
    return total % 2**32


X = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)


def signs(*places):
    other = X.copy()
    other.ravel()[list(places)] *= -1
    return other


def exchanged(i, j):
    other = X.copy()
    other.ravel()[[i, j]] = other.ravel()[[j, i]]
    return other


@pytest.mark.parametrize("other", [
    signs(3), signs(3, 4), signs(0, 127), signs(1, 5, 9, 13), signs(*range(128)), -X, X[::-1], exchanged(0, 64), np.zeros_like(X),
    X.view(np.int32) + np.int32(1)], ids=range(10))
def test_the_second_sum_sees_what_cancels_in_the_first(other):
    assert d.record({"a": other})["mixed"] != d.record({"a": X})["mixed"] == {"a": mixed(X)}
    assert d.record({"a": other})["mixed"] == {"a": mixed(np.ascontiguousarray(other))}
    with pytest.raises(ValueError, match="'a' are not those"):
        d.check({"a": other}, d.record({"a": X}))


def test_the_second_sum_is_of_no_mesh_and_of_the_order_of_arrays():
    mesh = shard.make_mesh(data=2, fsdp=2, tensor=2)
    split = jax.device_put(X, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    assert d.record({"a": split}) == d.record({"a": X})
    assert d.record({"a": [X, -X]})["mixed"] != d.record({"a": [-X, X]})["mixed"]


def test_a_checkpoint_of_before_is_checked_by_what_it_has():
    old = {"digests": d.record({"a": X})["digests"]}
    d.check({"a": X}, old)
    with pytest.raises(ValueError):
        d.check({"a": signs(3)}, old)
    d.check({"a": signs(3, 4)}, old)                                           # which it cannot see
