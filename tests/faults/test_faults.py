"""Every fault ends with nothing lost: the run goes on to the same parameters, or stops with the last good checkpoint intact."""
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import train_toy
from kills import command, equal, last_step, life

from diffusion_jax.build import ConfigError
from diffusion_jax.data import loader
from diffusion_jax.data.image import Decode
from diffusion_jax.train.checkpoint import Checkpoints, available, load

pytestmark = pytest.mark.slow
STEPS = 40


def finish(nursery, process, log, code=0):
    assert nursery.wait(process) == code, log.read_text()[-3000:]
    return log.read_text()


def test_random_kills_change_nothing(nursery, straight, tmp_path):
    rng = random.Random(0)
    for _ in range(3):
        life(nursery, tmp_path / "run", STEPS, rng)
    finish(nursery, nursery.start(command(tmp_path / "run", STEPS), tmp_path / "log.txt"), tmp_path / "log.txt")
    assert equal(straight, tmp_path / "run", STEPS)


# Two processes --------------------------------------------------------------------------------------------------------------


def pair(nursery, workdir, steps=STEPS):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    arguments = [*command(workdir, steps), "--distributed"]
    return [nursery.start(arguments, workdir.parent / f"log{i}.txt", JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]


@pytest.fixture(scope="module")
def both(nursery, tmp_path_factory):
    """The same run by two processes, left alone: sums in another order than one process's."""
    folder = tmp_path_factory.mktemp("pair")
    for i, process in enumerate(pair(nursery, folder / "straight")):
        finish(nursery, process, folder / f"log{i}.txt")
    return folder / "straight"


@pytest.mark.parametrize("seed", range(2))
def test_two_processes_killed_at_random_moments_change_nothing(nursery, both, tmp_path, seed):
    rng, run = random.Random(seed), tmp_path / "run"
    for writing in (False, True):
        processes, since = pair(nursery, run), time.time()
        goal, patience = last_step(run) + rng.randint(2, 8), time.time() + 200
        ready = partial(being_written, run, since) if writing else lambda goal=goal: last_step(run) >= goal
        while not (met := complete(run) and ready()) and time.time() < patience:
            time.sleep(0.002)
        for process in processes:
            os.kill(process, signal.SIGKILL)
        assert [nursery.wait(process) for process in processes] == [-signal.SIGKILL] * 2 and met
    for i, process in enumerate(pair(nursery, run)):
        finish(nursery, process, tmp_path / f"log{i}.txt")
    assert alike(both, run)


def alike(one: Path, other: Path) -> bool:
    """Whether two runs of two processes have the same log, weights and digests of all their state, which neither holds alone."""
    logs = [(run / "metrics.jsonl").read_bytes() for run in (one, other)]
    meta = [json.loads((run / "checkpoints" / str(STEPS) / "meta" / "metadata").read_text()) for run in (one, other)]
    weights = [load(run, "params")[2] for run in (one, other)]
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *weights)
    return logs[0] == logs[1] and meta[0]["digests"] == meta[1]["digests"] and all(jax.tree.leaves(same))


def complete(workdir: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def being_written(workdir: Path, since: float) -> bool:
    """Whether a checkpoint has been begun after a moment, and is not complete."""
    folder = workdir / "checkpoints"
    begun = [path for path in folder.iterdir() if "tmp" in path.name] if folder.exists() else []
    with contextlib.suppress(FileNotFoundError):                            # completed meanwhile
        return any(path.stat().st_mtime > since for path in begun)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_two_processes_stop_together_at_a_signal_and_go_on(nursery, both, tmp_path, number):
    processes = pair(nursery, tmp_path / "run")
    patience = time.time() + 200
    while not (met := last_step(tmp_path / "run") >= 5) and time.time() < patience:
        time.sleep(0.002)
    os.kill(processes[1], number)
    assert met
    for i, process in enumerate(processes):
        code = 130 if i == 1 and number == signal.SIGINT else 0
        assert "same command" in finish(nursery, process, tmp_path / f"log{i}.txt", code)
    assert available(tmp_path / "run")[-1] < STEPS
    for i, process in enumerate(pair(nursery, tmp_path / "run")):
        finish(nursery, process, tmp_path / f"log{i}.txt")
    assert alike(both, tmp_path / "run")


# The disk -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_intact(small_disk, tmp_path):
    with pytest.raises(ConfigError, match="could not be written.*make room"):
        train_toy.train(small_disk / "run", every=1, keep=1000, config={"steps": 1000})
    good = available(small_disk / "run")
    assert good
    shutil.copytree(small_disk / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*tmp*"))
    assert load(tmp_path / "run", "params")[2]
    end = good[-1] + 4
    _, resumed = train_toy.train(tmp_path / "run", config={"steps": end})
    _, straight = train_toy.train(tmp_path / "straight", config={"steps": end})
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "removed"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path, damage, caplog):
    rng = random.Random(damage)
    _, want = train_toy.train(tmp_path / "straight")
    train_toy.train(tmp_path / "run", stop_at=9)
    for file in sorted((tmp_path / "run" / "checkpoints" / "8" / "state").rglob("d/*")):       # some parts of each are never read
        content = bytearray(file.read_bytes())
        if damage == "truncated":
            file.write_bytes(content[: rng.randrange(1, len(content))])
        elif damage == "removed":
            file.unlink()
        else:
            content[len(content) // 2 + rng.randrange(64)] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
    _, got = train_toy.train(tmp_path / "run")
    assert "step 8 does not read" in caplog.text and "going on from step 4" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "8.unreadable").exists()
    jax.tree.map(np.testing.assert_array_equal, got, want)


# The data -------------------------------------------------------------------------------------------------------------------


class Flaky:
    """Records that a disk refuses: number 3 `times` times over."""

    names = None

    def __init__(self, times):
        self.left = times

    def __len__(self):
        return 8

    def __getitem__(self, i):
        if i == 3 and self.left:
            self.left -= 1
            raise OSError(5, "Input/output error")
        return {"image": np.full((4, 4, 1), i, np.uint8)}

    def __repr__(self):
        return "the flaky disk"


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(loader, "RETRIES", (0.0, 0.0, 0.0))


def batches(source):
    return loader.Batches(source, Decode(4, channels=1), batch=8, seed=0, shuffle=False)


@pytest.mark.parametrize("times", [1, 3])
def test_a_record_that_reads_at_last_changes_nothing(no_pause, times):
    want = batches(Flaky(0))[0]["image"]
    np.testing.assert_array_equal(batches(Flaky(times))[0]["image"], want)


def test_a_record_that_never_reads_stops_the_stream_in_one_line(no_pause):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ConfigError, match="record 3 of the flaky disk does not read, tried 4 times.*Input/output error"):
        list(itertools.islice(loader.stream(batches(Flaky(10**9)), 0, sharding), 2))


# The rest -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [2, 6, 9])
def test_nan_stops_the_run_and_saves_nothing_of_it(tmp_path, bad):
    with pytest.raises(ConfigError, match=f"loss is nan at step {bad + 1}, stopped"):
        train_toy.train(tmp_path / "run", every=4, bad=bad)
    assert available(tmp_path / "run") == [step for step in (4, 8) if step <= bad]
    _, got = train_toy.train(tmp_path / "run")
    _, want = train_toy.train(tmp_path / "straight")
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("jump", [-300.0, 300.0])
def test_a_clock_that_jumps_loses_nothing(tmp_path, monkeypatch, jump):
    """A jump beyond orbax's patience stops the run while it saves; the same command then goes on."""
    clock, calls, day = time.time, itertools.count(), np.sign(jump) * 86400
    train_toy.train(tmp_path / "run", stop_at=6)
    for path in (tmp_path / "run").rglob("*"):                              # files from the future or the past
        os.utime(path, (clock() + day, clock() + day))
    before = set(threading.enumerate())
    monkeypatch.setattr(time, "time", lambda: clock() + (jump if next(calls) % 3 else 0))
    with contextlib.suppress(ConfigError):
        train_toy.train(tmp_path / "run")
    monkeypatch.undo()
    for thread in set(threading.enumerate()) - before:                     # those of a run that ended go with its process
        thread.join(10)
    assert available(tmp_path / "run")
    _, got = train_toy.train(tmp_path / "run", config={"steps": 13})
    _, want = train_toy.train(tmp_path / "straight", config={"steps": 13})
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


def test_another_config_is_refused_and_the_run_left_alone(tmp_path):
    train_toy.train(tmp_path, stop_at=8)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="seed: 3 in the folder, 4 asked"):
        train_toy.train(tmp_path, config={"seed": 4})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


RELEASES = sorted((Path(__file__).parent / "releases").glob("*"))


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_checkpoint_of_an_earlier_release_goes_on(tmp_path, release):
    """releases/<version> is a toy run of 12 steps, stopped at step 8, and the parameters that it ended with."""
    shutil.copytree(release / "run", tmp_path / "run")
    with Checkpoints(tmp_path / "run", train_toy.config()) as kept:
        assert kept.latest == 8
    _, got = train_toy.train(tmp_path / "run")
    with np.load(release / "end.npz") as want:
        leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
                  for path, leaf in jax.tree.leaves_with_path(got.params)}
        assert leaves.keys() == set(want.files)
        for name, leaf in leaves.items():
            np.testing.assert_allclose(leaf, want[name], rtol=1e-5, atol=1e-6)
