"""Checkpoints: exact, on any mesh, sparse, and never believed when damaged."""
import functools
import gc
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from train_toy import Net, Toy, config

from diffusion_jax.build import ConfigError
from diffusion_jax.train import ema, optim, shard
from diffusion_jax.train.arrays import largest
from diffusion_jax.train.checkpoint import Checkpoints, available, load, weights
from diffusion_jax.train.state import create
from diffusion_jax.types import TrainState

EMAS = {"slow": ema.Constant(0.9), "fast": ema.Constant(0.5)}
RULES = ((r"inner/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))

# What orbax leaves half read when a file is damaged.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def collect():
    yield
    gc.collect()


@functools.cache
def fresh(width=16):
    """A state whose parts all differ, on the host."""
    make = jax.jit(functools.partial(create, Toy(Net(width)), optim.optimizer("adam"), EMAS))
    state = jax.device_get(make(jax.random.key(0), {}))
    numbers = iter(range(1, 1000))
    return jax.tree.map(lambda x: x + np.asarray(next(numbers) / 3, x.dtype), state)


def put(state, mesh, rules=shard.REPLICATE):
    return jax.device_put(state, shard.shardings(mesh, state, rules))


def abstract(mesh, rules=shard.REPLICATE):
    shardings = shard.shardings(mesh, fresh(), rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), fresh(), shardings)


def at(state, step):
    return state.replace(step=jnp.int32(step))


def one():
    return shard.make_mesh(devices=jax.devices()[:1])


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run's folder with the steps 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with Checkpoints(folder, config(), every=10) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(at(put(fresh(), one()), step), examples=16 * step)
    return folder


@pytest.fixture
def run(template, tmp_path):
    """A copy to be maltreated."""
    return shutil.copytree(template, tmp_path / "run")


def data_files(run, step):
    """The files that hold a checkpoint's larger arrays."""
    files = (run / "checkpoints" / str(step) / "state").glob("ocdbt.*/d/*")
    return [path for path in files if path.stat().st_size > 2000]


def truncate(run, step):
    for path in data_files(run, step):
        path.write_bytes(path.read_bytes()[:500])


def flip_bits(run, step):
    """Here and there, so that every larger array has one."""
    for path in data_files(run, step):
        data = bytearray(path.read_bytes())
        for i in range(100, len(data), 200):
            data[i] ^= 4
        path.write_bytes(data)


def remove_arrays(run, step):
    for path in data_files(run, step):
        path.unlink()


def empty_meta(run, step):
    (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("")


@pytest.mark.parametrize("sizes", [
    dict(data=2, fsdp=2, tensor=2),
    *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in (dict(data=1, fsdp=8), dict(data=4, fsdp=2)))])
def test_restored_on_other_meshes_bit_for_bit(tmp_path, sizes):
    mesh = shard.make_mesh(**sizes)
    with Checkpoints(tmp_path, config()) as checkpoints:
        assert checkpoints.restore_latest(abstract(mesh)) is None and checkpoints.latest is None
        checkpoints.save(put(fresh(), mesh, RULES))
        checkpoints.wait()
        half = shard.make_mesh(fsdp=2, devices=jax.devices()[:4])
        for other, rules in ((one(), shard.REPLICATE), (mesh, RULES), (half, RULES)):
            want = abstract(other, rules)
            got = checkpoints.restore_latest(want)
            assert_equal(got, fresh())
            jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim) or pytest.fail(f"{x.sharding}"), got, want)


def test_the_record_beside_the_state(run):
    meta = json.loads((run / "checkpoints" / "20" / "meta" / "metadata").read_text())
    assert meta["step"] == 20 and meta["examples"] == 320 and meta["versions"]["jax"] == jax.__version__
    assert json.loads((run / "checkpoints" / "20" / "config" / "metadata").read_text()) == config()


@pytest.mark.parametrize("keep,keep_every,left", [(1, None, [12]), (3, None, [8, 10, 12]), (2, 4, [4, 8, 10, 12])])
def test_the_last_ones_and_every_kth_stay(tmp_path, keep, keep_every, left):
    state = TrainState(step=jnp.int32(0), params={"a": jnp.ones(2)}, opt_state=(), ema={})
    with Checkpoints(tmp_path, config(), every=2, keep=keep, keep_every=keep_every) as checkpoints:
        for step in range(1, 13):
            if checkpoints.due(step):
                checkpoints.save(at(state, step))
        checkpoints.wait()
        assert checkpoints.latest == 12
    assert available(tmp_path) == left


@pytest.mark.parametrize("damage", [truncate, flip_bits, remove_arrays, empty_meta])
def test_a_damaged_newest_is_set_aside_for_the_one_before(run, damage, caplog):
    damage(run, 30)
    with Checkpoints(run, config(), every=10) as checkpoints, caplog.at_level(logging.WARNING, "absl"):
        got = checkpoints.restore_latest(abstract(one()))
        assert_equal(got, at(fresh(), 20))
        assert checkpoints.latest == 20
        said = [record.getMessage() for record in caplog.records if "does not read" in record.getMessage()]
        assert len(said) == 1 and "step 30" in said[0] and "going on from step 20" in said[0] and "\n" not in said[0]
        checkpoints.save(at(got, 30))                     # its place is free
    assert available(run) == [10, 20, 30] and (run / "checkpoints" / "30.unreadable").is_dir()


def test_two_damaged_ones(run):
    for step in (20, 30):
        truncate(run, step)
    with Checkpoints(run, config()) as checkpoints:
        assert_equal(checkpoints.restore_latest(abstract(one())), at(fresh(), 10))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["10", "20.unreadable", "30.unreadable"]


def test_when_none_reads_nothing_is_touched(run):
    for step in (10, 20, 30):
        flip_bits(run, step)
    with Checkpoints(run, config()) as checkpoints, pytest.raises(ConfigError, match=r"none of the checkpoints .*10, 20, 30"):
        checkpoints.restore_latest(abstract(one()))
    assert available(run) == [10, 20, 30]


def test_a_state_of_another_shape_does_not_read(run):
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard.replicated(one())), fresh(width=8))
    with Checkpoints(run, config()) as checkpoints, pytest.raises(ConfigError, match="none of the checkpoints"):
        checkpoints.restore_latest(other)


@pytest.mark.parametrize("asked,message", [
    (config(task={"name": "diffusion_jax.toy:Toy", "noise": 0.2}), r"task.noise: 0.1 in the folder, 0.2 asked\)"),
    (config(seed=1, extra=2), r"extra: absent in the folder, 2 asked; seed: 3 in the folder, 1 asked"),
    (config(a=1, b=1, c=1, d=1), r"a: absent .*; b: absent .*; c: absent .* and 1 more"),
])
def test_another_config_is_refused(run, asked, message):
    with pytest.raises(ConfigError, match=message) as error:
        Checkpoints(run, asked, may_change=("steps",))
    assert "\n" not in str(error.value)


def test_what_may_change_may_change(run):
    Checkpoints(run, ml_collections.ConfigDict(config(steps=99)), may_change=("steps",)).close()
    with pytest.raises(ConfigError, match="steps: 12 in the folder, 99 asked"):
        Checkpoints(run, config(steps=99))


@pytest.mark.parametrize("options", [dict(every=0), dict(keep=0), dict(every=4, keep_every=6), dict(keep_every=0)])
def test_impossible_numbers_raise(tmp_path, options):
    with pytest.raises(ConfigError, match="every"):
        Checkpoints(tmp_path, config(), **options)
    assert not (tmp_path / "checkpoints").exists()


def test_a_step_is_saved_once(run):
    with Checkpoints(run, config()) as checkpoints, pytest.raises(ConfigError, match="step 30 already"):
        checkpoints.save(at(fresh(), 30))


@pytest.mark.parametrize("which,weights", [
    ("params", lambda s: s.params), ("slow", lambda s: s.ema["slow"]), ("fast", lambda s: s.ema["fast"])])
def test_load_gives_the_weights_that_were_asked_for(template, which, weights):
    found, task, params = load(template, which)
    assert isinstance(found, ml_collections.ConfigDict) and found.to_dict() == config() and task == Toy(Net())
    assert_equal(params, weights(fresh()))
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {jax.sharding.SingleDeviceSharding(jax.devices()[0])}


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/20"])
def test_load_takes_any_folder_of_a_run_and_any_step(run, inside):
    assert_equal(load(run / inside, "slow", step=10)[2], fresh().ema["slow"])
    assert_equal(load(run / inside, "slow")[2], fresh().ema["slow"])


def test_load_onto_a_mesh(run):
    everywhere = NamedSharding(shard.make_mesh(), PartitionSpec())
    assert {leaf.sharding for leaf in jax.tree.leaves(load(run, "params", sharding=everywhere)[2])} == {everywhere}


def test_weights_without_a_run_can_be_stored_and_loaded(tmp_path):
    params = fresh().params
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.save(TrainState(step=jnp.int32(0), params=params, opt_state=(), ema={}))
    assert_equal(load(tmp_path, "params")[2], params)
    assert_equal(load(tmp_path)[2], params)                                # 'ema', where there is no average
    with pytest.raises(ConfigError, match="unknown weights"):
        load(tmp_path, "fast")


def test_ema_means_the_only_average(tmp_path):
    state = fresh().replace(ema={"main": fresh().ema["fast"]})
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.save(state)
    assert_equal(load(tmp_path)[2], fresh().ema["fast"])


def test_load_reads_only_the_chosen_weights(tmp_path):
    import tensorstore

    rng = np.random.default_rng(0)
    big = {"a": rng.normal(size=(300, 300)).astype(np.float32)}
    params = {"a": rng.normal(size=(60, 60)).astype(np.float32)}
    state = TrainState(step=jnp.int32(1), params=params, opt_state=(big, big), ema={})
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.save(state)

    def bytes_read():
        metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(value["value"] for metric in metrics for value in metric["values"])

    before = bytes_read()
    assert_equal(load(tmp_path, "params")[2], state.params)
    assert 60 * 60 * 3 < bytes_read() - before < 60 * 60 * 4 * 3         # of 734,400


@pytest.mark.parametrize("arguments,message", [
    (dict(which="slwo"), "did you mean 'slow'"), (dict(), "which='ema' names the only average, .* has: params, fast, slow"),
    (dict(which="slow", step=15), "no checkpoint of step 15; it has: 10, 20, 30"),
])
def test_what_is_not_there_is_named(run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        load(run, **arguments)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no checkpoint; it has: nothing"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"no checkpoint; it has: notes.txt"):
        load(tmp_path)
    assert available(tmp_path) == []


@pytest.mark.parametrize("damage", [truncate, flip_bits, remove_arrays, empty_meta])
def test_load_refuses_a_damaged_checkpoint_and_names_the_others(run, damage):
    damage(run, 30)
    with pytest.raises(ConfigError, match="step 30 .* does not read .*other steps: 10, 20"):
        load(run, "params")


def test_a_config_from_elsewhere_runs_nothing_foreign(run):
    path = run / "checkpoints" / "30" / "config" / "metadata"
    path.write_text(json.dumps(config(task={"name": "os:system", "command": "true"})))
    with pytest.raises(ConfigError, match="'os:system' is of Python itself"):
        load(run, "params")


def test_the_largest_array_is_that_of_one_device():
    mesh = shard.make_mesh(data=1, fsdp=8)
    split = jax.device_put(jnp.zeros((16, 4)), NamedSharding(mesh, PartitionSpec("fsdp")))
    assert largest({"split": split, "whole": jnp.zeros(5), "host": np.zeros(100)}) == 4 * 8
    assert largest({}) == 0


@pytest.mark.slow
def test_an_array_of_more_than_a_gigabyte_is_saved(tmp_path):
    big = jnp.zeros((2**14, 2**14 + 1)).at[-1, -1].set(7)
    with Checkpoints(tmp_path, config(), every=1) as checkpoints:
        checkpoints.save(TrainState(step=jnp.int32(1), params={"big": big}, opt_state=(), ema={}))
    np.testing.assert_array_equal(weights(tmp_path).params["big"][-1, -2:], [0, 7])
