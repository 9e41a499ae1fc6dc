"""Meshes, and rules over the paths of a whole train state."""
import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec
from train_toy import config

from diffusion_jax.build import ConfigError
from diffusion_jax.train import ema, shard
from diffusion_jax.train.state import create, task_of


def state_shapes():
    task = task_of(config())
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return jax.eval_shape(lambda key: create(task, optimizer, {"main": ema.Constant(0.9)}, key, {}), jax.random.key(0))


def specs(rules, **sizes):
    mesh = shard.make_mesh(**sizes)
    found = jax.tree_util.tree_flatten_with_path(shard.shardings(mesh, state_shapes(), rules))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec for path, sharding in found}


@pytest.mark.parametrize("sizes,shape", [
    ({}, (8, 1, 1)), (dict(fsdp=4), (2, 4, 1)), (dict(fsdp=-1, data=2), (2, 4, 1)), (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    (dict(data=1, fsdp=1, tensor=-1), (1, 1, 8)),
])
def test_make_mesh(sizes, shape):
    mesh = shard.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes", [dict(data=3), dict(fsdp=3), dict(fsdp=-1), dict(data=0), dict(fsdp=16), dict(data=-2)])
def test_wrong_meshes_raise(sizes):
    with pytest.raises(ConfigError, match="mesh"):
        shard.make_mesh(**sizes)


def test_the_batch_is_split_over_data_and_fsdp():
    x = jax.device_put(np.zeros((8, 3, 5)), shard.batch_sharding(shard.make_mesh(data=2, fsdp=2, tensor=2)))
    assert {s.data.shape for s in x.addressable_shards} == {(2, 3, 5)}


def test_moments_and_averages_follow_their_parameter():
    rules = ((r"inner/kernel$", (None, "tensor")), (r"last/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))
    got = specs(rules, data=2, fsdp=2, tensor=2)
    for prefix in ("params", "opt_state/1/0/mu", "opt_state/1/0/nu", "ema/main"):
        assert got[f"{prefix}/inner/kernel"] == PartitionSpec(None, None, "tensor")      # [2 layers, 16, 16]: trailing dimensions
        assert got[f"{prefix}/last/kernel"] == PartitionSpec("fsdp", "tensor")           # [16, 8]
        assert got[f"{prefix}/first/kernel"] == PartitionSpec(None, "fsdp")              # [8, 16]: the largest
        assert got[f"{prefix}/first/bias"] == PartitionSpec("fsdp")
    assert got["step"] == PartitionSpec() and got["opt_state/1/0/count"] == PartitionSpec()


@pytest.mark.parametrize("spec,sizes,want", [
    ("replicate", dict(fsdp=8), (None, None)),
    ("fsdp", dict(fsdp=8), (None, "fsdp")),
    ("fsdp", dict(fsdp=1), (None, None)),
    (("fsdp", None), dict(fsdp=8), ("fsdp", None)),
    ((("data", "fsdp"), None), dict(data=4, fsdp=2), (("data", "fsdp"), None)),
    (["tensor"], dict(data=1, tensor=8), (None, "tensor")),
    (("tensor", None, "fsdp"), dict(fsdp=8), (None, "fsdp")),                # more entries than dimensions: the last ones count
])
def test_specs_of_a_kernel_of_8_by_16(spec, sizes, want):
    assert specs(((r"first/kernel$", spec), (".*", "replicate")), **sizes)["params/first/kernel"] == PartitionSpec(*want)


def test_an_axis_that_does_not_divide_leaves_its_dimension_whole():
    mesh = shard.make_mesh(data=1, fsdp=4, tensor=2)
    leaf = {"w": jax.ShapeDtypeStruct((6, 10), np.float32), "odd": jax.ShapeDtypeStruct((5, 7), np.float32)}
    got = shard.shardings(mesh, leaf, (("w", ("fsdp", "tensor")), (".*", "fsdp")))
    assert got["w"].spec == PartitionSpec(None, "tensor") and got["odd"].spec == PartitionSpec(None, None)


@pytest.mark.parametrize("rules,message", [
    ((("inner/kernle", "fsdp"), (".*", "replicate")), "'inner/kernle' decides nothing"),
    (((".*", "fsdp"), ("inner", "replicate")), "'inner' decides nothing"),
    ((("params", "fsdp"),), "no sharding rule matches 'step'"),
    (((".*", "fspd"),), "did you mean 'fsdp'"),
    (((".*", (None, "tensr")),), "did you mean 'tensor'"),
    ((("*", "fsdp"),), r"'\*' is no regular expression"),
])
def test_rules_that_would_silently_do_nothing_raise(rules, message):
    with pytest.raises(ConfigError, match=message):
        specs(rules)


def test_a_last_catch_all_may_have_nothing_left():
    assert specs((("", "replicate"), (".*", "fsdp")))["step"] == PartitionSpec()


def test_replicate_puts_a_copy_on_every_device():
    mesh = shard.make_mesh(data=2, fsdp=4)
    got = shard.replicate({"a": np.arange(3.0, dtype=np.float32), "b": jax.numpy.ones(2)}, mesh)
    assert got["a"].sharding.is_fully_replicated and len(got["b"].addressable_shards) == 8
    np.testing.assert_array_equal(got["a"], [0, 1, 2])


def test_parameters_are_placed_as_in_a_state_and_stay_there():
    mesh, other = shard.make_mesh(data=2, fsdp=4), shard.make_mesh(data=8)
    params = {"a": {"kernel": np.arange(32.0, dtype=np.float32).reshape(4, 8)}, "b": np.ones(3, np.float32)}
    placed = shard.place(params, mesh, (("^params/a/kernel$", ("fsdp", None)), (".*", "replicate")))
    assert placed["a"]["kernel"].sharding.spec == PartitionSpec("fsdp", None) and placed["b"].sharding.is_fully_replicated
    np.testing.assert_array_equal(placed["a"]["kernel"], params["a"]["kernel"])
    assert shard.replicate(placed, mesh)["a"]["kernel"] is placed["a"]["kernel"]
    assert shard.replicate(placed, other)["a"]["kernel"].sharding.is_fully_replicated


@dataclasses.dataclass(frozen=True)
class Device:
    """A device of a TPU slice, as far as meshes look at it."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "stub"
    core_on_chip: int = 0


def slices(count, each):
    return [Device(i, i // each, i // each, (i % each, 0, 0)) for i in range(count * each)]


def test_only_data_crosses_slices():
    mesh = shard.make_mesh(data=4, fsdp=2, devices=slices(2, 4))
    found = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert mesh.shape == {"data": 4, "fsdp": 2, "tensor": 1}
    assert (found == found[:, :1, :1]).all() and sorted(found[:, 0, 0]) == [0, 0, 1, 1]


def test_fsdp_that_does_not_fit_into_a_slice_is_refused():
    with pytest.raises(ConfigError, match="does not divide among 2 slices"):
        shard.make_mesh(data=1, fsdp=8, devices=slices(2, 4))
