"""The order of the data, its independence of processes and restarts, and the stream onto devices."""
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import Decode
from diffusion_jax.data.loader import Batches, stream


@dataclass(frozen=True)
class Numbered:
    """Record i is a ramp of brightness plus i, labelled i."""

    size: int = 10
    bad: int | None = None
    names: tuple[str, ...] | None = None

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if i == self.bad:
            raise ConfigError(f"pets/{i}.png: cannot read this image")
        ramp = np.add.outer(np.arange(12, dtype=np.uint8), np.arange(12, dtype=np.uint8))[..., None]
        return {"image": ramp + np.uint8(i), "label": i, "caption": f"no {i}"}


AUGMENT = Decode(8, "random", flip=True, channels=1)
PLAIN = Decode(12, channels=1)


@pytest.fixture
def sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


READS = """
import multiprocessing, time
import jax
from diffusion_jax.data.digits import Digits
from diffusion_jax.data.image import Decode
from diffusion_jax.data.loader import Batches, stream

if __name__ == "__main__":
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = stream(Batches(Digits("train"), Decode(8, channels=1), 8, 0), 0, where, workers=2)
    next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def alive(pid):
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def labels(batches, steps):
    return np.concatenate([batches[step]["label"] for step in steps])


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_batch_is_arrays_and_captions():
    batch = Batches(Numbered(), AUGMENT, batch=4, seed=0)[3]
    assert batch["image"].shape == (4, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    assert batch["caption"] == [f"no {i}" for i in batch["label"]]


@pytest.mark.parametrize("batch", [1, 4, 10, 30])
def test_each_epoch_holds_every_example_once_in_a_new_order(batch):
    order = labels(Batches(Numbered(), PLAIN, batch, seed=3), range(60 // batch)).reshape(6, 10)
    np.testing.assert_array_equal(np.sort(order, 1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in order}) == 6


def test_the_order_depends_on_the_seed_only():
    orders = {seed: tuple(labels(Batches(Numbered(50), PLAIN, 5, seed), range(10))) for seed in (0, 1, 2, 2**40, -1)}
    assert len(set(orders.values())) == 5
    assert orders[1] == tuple(labels(Batches(Numbered(50), Decode(8), 10, 1), range(5)))


def test_orders_are_even():
    first = np.array([Batches(Numbered(4), PLAIN, 4, seed)[0]["label"] for seed in range(600)])
    of_place = np.stack([np.bincount(first[:, i], minlength=4) for i in range(4)])
    assert abs(of_place - 150).max() < 45  # 4 sigma of a binomial(600, 1/4)


def test_a_restart_gives_what_the_straight_run_gives():
    straight = Batches(Numbered(), AUGMENT, batch=4, seed=7)
    run = [straight[step] for step in range(12)]
    for step in (11, 3, 7):
        assert equal(Batches(Numbered(), AUGMENT, batch=4, seed=7)[step], run[step])


def test_augmentation_differs_between_epochs_and_seeds():
    epochs = Batches(Numbered(1), AUGMENT, batch=1, seed=0)
    assert len({epochs[step]["image"].tobytes() for step in range(20)}) > 10
    assert len({Batches(Numbered(1), AUGMENT, batch=1, seed=seed)[0]["image"].tobytes() for seed in range(20)}) > 10


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_processes(count):
    whole = Batches(Numbered(), AUGMENT, batch=8, seed=1)
    parts = [Batches(Numbered(), AUGMENT, 8, 1, process_index=i, process_count=count) for i in range(count)]
    for step in (0, 1, 5):
        got = [part[step] for part in parts]
        assert all(len(part["label"]) == 8 // count for part in got)
        assert equal({key: np.concatenate([part[key] for part in got]) for key in got[0]}, whole[step])


def test_without_shuffle_the_order_is_the_order():
    np.testing.assert_array_equal(labels(Batches(Numbered(), PLAIN, 4, 0, shuffle=False), range(5)), np.arange(20) % 10)


@pytest.mark.parametrize(("options", "message"), [
    ({"batch": 6, "process_count": 4}, "does not divide"),
    ({"batch": 0}, "does not divide"),
    ({"process_index": 2, "process_count": 2}, "does not exist"),
    ({"source": Numbered(0)}, "no records"),
])
def test_batches_refuse(options, message):
    with pytest.raises(ConfigError, match=message):
        Batches(**{"source": Numbered(), "decode": PLAIN, "batch": 4, "seed": 0} | options)


def test_digits_cost_little():
    batches = Batches(Digits(), Decode(8, channels=1), batch=128, seed=0)
    seconds = []
    for step in range(20):
        begin = time.perf_counter()
        batches[step]
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 5e-3


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])    # which are processes
def test_stream_follows_the_batches(sharding, workers):
    batches = Batches(Numbered(), AUGMENT, batch=16, seed=2)
    got = stream(batches, 5, sharding, workers=workers)
    for want in range(5, 12):
        step, batch = next(got)
        assert step == want and set(batch) == {"image", "label"}
        assert all(array.sharding.is_equivalent_to(sharding, array.ndim) for array in batch.values())
        assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32
        np.testing.assert_allclose(batch["image"], batches[step]["image"] / 127.5 - 1, atol=1e-6)
        np.testing.assert_array_equal(batch["label"], batches[step]["label"])
    got.close()


def test_a_signal_to_all_processes_of_a_run_leaves_its_workers_reading(sharding):
    got = stream(Batches(Numbered(), PLAIN, 8, 0), 0, sharding, workers=1)
    next(got)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert [next(got)[0] for _ in range(12)] == list(range(1, 13))
    got.close()
    assert not worker.is_alive()


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here(sharding):
    with pytest.raises(ConfigError, match="^pets/7.png: cannot read this image"):
        next(stream(Batches(Numbered(bad=7), PLAIN, 8, 0, shuffle=False), 0, sharding, workers=1))


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", READS], stdout=subprocess.PIPE, text=True)
    workers = [int(number) for number in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


@dataclass(frozen=True)
class Holding(Numbered):
    """A source with what cannot be sent to another process."""

    held: object = None


def test_a_source_that_no_other_process_can_have_is_refused(sharding):
    with pytest.raises(ConfigError, match="Holding cannot be given to other processes .*lock.*: set config.workers=0") as error:
        next(stream(Batches(Holding(held=threading.Lock()), PLAIN, 8, 0), 0, sharding, workers=1))
    assert "\n" not in str(error.value)
    assert next(stream(Batches(Holding(held=threading.Lock()), PLAIN, 8, 0), 0, sharding))[0] == 0


@dataclass(frozen=True)
class Rows:
    """Records as they are."""

    rows: tuple
    names: tuple[str, ...] | None = None

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]

    def place(self, i):
        return f"pets/{i}.png"


class AsIs:
    """What a decoder of the user's own may do: nothing."""

    random = False

    def __call__(self, record, rng=None):
        return record


class Together(AsIs):
    """One that makes a batch at once."""

    def batch(self, pairs, size):
        rows = [record for record, _ in pairs]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def row(shape=(2, 2, 1), fill=0.0, **more):
    return {"image": np.full(shape, fill, np.float32), **more}


@pytest.mark.parametrize(("second", "names", "says"), [
    (row((3, 2, 1)), None, "pets/1.png: is image float32 [3, 2, 1], where pets/0.png is image float32 [2, 2, 1]"),
    ({"image": np.zeros((2, 2, 1), np.uint8)}, None, "pets/1.png: is image uint8 [2, 2, 1], where"),
    (row(label=np.int32(1)), None, "pets/1.png: is image float32 [2, 2, 1], label int32 [], where"),
    ({}, None, "pets/1.png: is , where"),
    (row(fill=np.nan), None, "pets/1.png: has numbers that are not finite"),
    (row(fill=np.inf), None, "pets/1.png: has numbers that are not finite"),
    (row(fill=-np.inf), None, "pets/1.png: has numbers that are not finite"),
    (row(label=np.int32(-3)), None, "pets/1.png: label -3 is none of 0 ... 2147483647"),
    (row(label=np.int32(1000)), ("a", "b"), "pets/1.png: label 1000 is none of the 2 classes"),
], ids=str)
def test_records_that_do_not_fit_are_named(second, names, says):
    first = row(label=np.int32(0)) if says.count("label") == 1 and "none" in says else row()
    for decode in (AsIs(), Together()):
        if decode.__class__ is Together and ("where" in says):
            continue
        with pytest.raises(ConfigError) as error:
            Batches(Rows((first, second), names), decode, 2, 0, shuffle=False)[0]
        assert str(error.value).startswith(says) and "\n" not in str(error.value)


def test_numbers_that_are_large_but_finite_are_taken():
    large = row(fill=3e38)
    assert Batches(Rows((large, large)), AsIs(), 2, 0)[0]["image"].max() > 1e38


def test_what_a_decoder_refuses_has_the_name_of_its_record():
    batches = Batches(Rows(({"image": np.zeros((2, 2, 1), np.uint8)}, {"image": None})), Decode(2), 2, 0, shuffle=False)
    with pytest.raises(ConfigError, match=r"^pets/1.png: an image is uint8"):
        batches[0]


@pytest.mark.parametrize("batch", [1.5, True, float("nan"), None])
def test_a_batch_is_a_number_of_records(batch):
    with pytest.raises(ConfigError, match="batch is"):
        Batches(Numbered(), PLAIN, batch, 0)


@pytest.mark.parametrize("finish", ["close", "drop", "error"])
def test_stopping_early_does_not_hang(sharding, finish):
    before = threading.active_count()
    got = stream(Batches(Numbered(bad=7 if finish == "error" else None), PLAIN, 8, 0, shuffle=False), 0, sharding)
    if finish == "error":
        with pytest.raises(ConfigError) as error:
            next(got)
        assert str(error.value) == "pets/7.png: cannot read this image"
        del error
    else:
        next(got)
    if finish == "close":
        got.close()
    del got
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
