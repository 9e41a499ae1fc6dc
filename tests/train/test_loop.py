"""The loop: resumed equals uninterrupted bit for bit, and nothing bad is ever saved."""
import gc
import json
import os
import signal
import time

import jax
import numpy as np
import pytest
import train_toy
from train_toy import arguments, config, train

from diffusion_jax.build import ConfigError
from diffusion_jax.train import loop, posthoc, shard
from diffusion_jax.train.checkpoint import Checkpoints, available, load
from diffusion_jax.train.log import Writer
from diffusion_jax.train.posthoc import Snapshots

# What orbax leaves half read when a file is damaged.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def collect():
    yield
    gc.collect()


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, last state) of a run of 12 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)[1]


@pytest.mark.parametrize("stops", [
    (5,), *(pytest.param(stops, marks=pytest.mark.slow) for stops in ((7, 11), (4,), (1,), (11, 12)))])
def test_resumed_equals_uninterrupted(whole, tmp_path, stops):
    for stop in stops:
        assert train(tmp_path, stop_at=stop)[0] == stop
    assert_equal(train(tmp_path)[1], whole[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert available(tmp_path) == [4, 8, 12]
    for which in ("params", "slow", "power"):
        assert_equal(load(tmp_path, which)[2], load(whole[0], which)[2])


@pytest.mark.slow
def test_resumed_equals_uninterrupted_on_a_mesh_and_runs_move_between_meshes(whole, tmp_path):
    rules = ((r"inner/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))
    meshed = dict(mesh=shard.make_mesh(data=2, fsdp=2, tensor=2), rules=rules)
    want = train(tmp_path / "whole", **meshed)[1]
    for folder, options in (("parts", meshed), ("moved", {})):
        train(tmp_path / folder, stop_at=7, **options)
    assert_equal(train(tmp_path / "parts", **meshed)[1], want)
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for got in (want, train(tmp_path / "moved", **meshed)[1]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got.params, whole[1].params)


def test_the_first_loss_follows_from_the_seed(whole):
    task, key = train_toy.Toy(train_toy.Net()), jax.random.key(config()["seed"])
    params = task.init(jax.random.fold_in(key, loop.INIT), {})
    loss, _ = task.loss(params, None, train_toy.batch_of(0, 16), jax.random.fold_in(key, 0), True)
    np.testing.assert_allclose(losses(whole[0])[0], loss, rtol=1e-6)


def test_it_learns(whole):
    found = losses(whole[0])
    assert len(found) == 12 and sum(found[-4:]) < 0.85 * sum(found[:4])


def test_a_longer_run_goes_on_and_a_finished_one_does_nothing(whole, tmp_path):
    train(tmp_path, config={"steps": 6})
    assert train(tmp_path)[0] == 12
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert train(tmp_path) == (0, None)


def test_a_damaged_newest_checkpoint_costs_only_time(whole, tmp_path):
    train(tmp_path, stop_at=9)
    for path in (tmp_path / "checkpoints" / "8" / "state").glob("ocdbt.*/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    assert_equal(train(tmp_path)[1], whole[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert available(tmp_path) == [4, 8, 12] and (tmp_path / "checkpoints" / "8.unreadable").is_dir()


@pytest.mark.parametrize("bad,message,left", [
    (6, r"loss is nan at step 7, stopped; the last good checkpoint is step 4 in", [4]),
    (7, r"loss is nan at step 8, stopped; the last good checkpoint is step 4 in", [4]),         # a checkpoint is due just there
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (11, r"loss is nan at step 12, stopped; the last good checkpoint is step 8 in", [4, 8]),    # the last step
        (1, r"loss is nan at step 2, stopped; there is no checkpoint yet", []))),
])
def test_a_loss_that_is_not_finite_stops_and_is_not_saved(whole, tmp_path, bad, message, left):
    with pytest.raises(ConfigError, match=message) as error:
        train(tmp_path, bad=bad)
    assert "\n" not in str(error.value) and available(tmp_path) == left
    assert losses(tmp_path) == losses(whole[0])[:bad]
    if bad == 6:
        assert_equal(train(tmp_path)[1], whole[1])        # the data mended


@pytest.mark.parametrize(("number", "name", "code"), [
    (signal.SIGTERM, "SIGTERM", 0), (signal.SIGINT, "Ctrl-C", 130),
    pytest.param(signal.SIGHUP, "SIGHUP", 0, marks=pytest.mark.slow)], ids=lambda value: str(value))
def test_at_a_signal_it_saves_exits_and_says_how_to_go_on(whole, tmp_path, caplog, number, name, code):
    before, seen = signal.getsignal(number), []
    run = arguments(config(), shard.make_mesh(devices=jax.devices()[:1]))
    saved = Checkpoints(tmp_path, config(), every=4, may_change=("steps",))
    with saved as checkpoints, Writer(tmp_path) as writer, pytest.raises(SystemExit) as stop:
        for step, _ in loop.steps(**run, checkpoints=checkpoints, writer=writer):
            seen.append(step)
            if step == 6:
                os.kill(os.getpid(), number)
    assert stop.value.code == code and seen == [1, 2, 3, 4, 5, 6, 7] and available(tmp_path) == [4, 7]
    assert signal.getsignal(number) == before
    (line,) = [record.getMessage() for record in caplog.records if "stopped by" in record.getMessage()]
    assert f"stopped by {name} at step 7 of 12" in line and "run the same command to go on" in line
    assert_equal(train(tmp_path)[1], whole[1])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_preempted_where_a_snapshot_is_due_it_ends_with_the_same_snapshots(whole, tmp_path):
    run, at = arguments(config(), shard.make_mesh(devices=jax.devices()[:1])), {}

    def go(stop=None):
        saved, kept = Checkpoints(tmp_path, config(), every=4), Snapshots(tmp_path, config(), run["emas"], every=6)
        with saved as checkpoints, Writer(tmp_path) as writer, kept as snapshots:
            for step, state in loop.steps(**run, checkpoints=checkpoints, writer=writer):
                at[step] = available(tmp_path)
                snapshots.offer(step, state)
                if step == stop:
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        go(stop=5)
    assert available(tmp_path) == [4, 6] and [path.name for path in (tmp_path / "snapshots").iterdir()] == ["6"]
    go()
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["12", "6"]
    assert 6 not in at[6] and 12 not in at[12]                # a step is handed out before it is saved, the last one too
    (got,) = posthoc.reconstruct(tmp_path, [0.1])[2]
    assert_equal(got, jax.tree.map(np.float32, whole[1].ema["power"]))


def test_metrics_are_fetched_one_step_late_except_at_a_checkpoint(tmp_path):
    with Checkpoints(tmp_path, config(), every=4) as checkpoints, Writer(tmp_path) as writer:
        mesh = shard.make_mesh(devices=jax.devices()[:1])
        for step, _ in loop.steps(**arguments(config(steps=6), mesh), checkpoints=checkpoints, writer=writer):
            written = len(losses(tmp_path)) if step > 1 else 0
            assert written == (step if step in (4, 6) else step - 1)


def test_only_every_nth_step_is_logged(whole, tmp_path):
    train(tmp_path, log_every=5)
    assert losses(tmp_path) == [losses(whole[0])[4], losses(whole[0])[9]]


def test_the_console_shows_the_parameters_and_the_way(tmp_path, capsys):
    train(tmp_path, config={"steps": 2})
    out = capsys.readouterr().out
    assert "inner/kernel" in out and "Total: 784" in out and "starting, 2 steps in all" in out and "step 2/2  loss" in out


@pytest.mark.slow
def test_data_that_ends_or_skips(tmp_path):
    with pytest.raises(ConfigError, match="the data ended before step 3"):
        train(tmp_path / "a", end=3)
    with pytest.raises(RuntimeError, match="gave batch 1 where batch 0 was due"):
        train(tmp_path / "b", batches=lambda start, sharding: train_toy.stream(start + 1, sharding))


@pytest.mark.slow
def test_the_speed_includes_waiting_for_the_data(tmp_path, capsys):
    def slow(start, sharding):
        for item in train_toy.stream(start, sharding):
            time.sleep(0.1)
            yield item

    train(tmp_path, batches=slow, config={"steps": 6})
    shown = capsys.readouterr().out.split(" images/s")[:-1]                # a save lies between
    speeds = [float(line.split()[-1]) for line in shown if not line.endswith("?")]
    assert len(speeds) >= 3 and max(speeds) < 16 / 0.1
