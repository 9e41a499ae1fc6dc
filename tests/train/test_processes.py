"""Runs in processes of their own: killed, preempted, and two of them together. Slow."""
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from train_toy import config

from diffusion_jax.train.checkpoint import available, load

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
STEPS, EVERY = 60, 7
PROGRAM = f"""
import sys, time
import jax
workdir, pause, devices, peers, index, port = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:])
if peers > 1:
    jax.distributed.initialize(f"localhost:{{port}}", peers, index, heartbeat_timeout_seconds=20)
import train_toy
from diffusion_jax.train import loop, shard
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.log import Writer
config = train_toy.config(steps={STEPS})
mesh = shard.make_mesh(data=-1, fsdp=2)
assert mesh.size == devices * peers == jax.device_count(), jax.devices()
with Checkpoints(workdir, config, every={EVERY}) as checkpoints, Writer(workdir) as writer:
    run = train_toy.arguments(config, mesh, rules=((".*", "fsdp"),))
    for step, state in loop.steps(**run, checkpoints=checkpoints, writer=writer):
        print("at", step, flush=True)
        time.sleep(pause)
print("done", flush=True)
"""


def start(workdir, pause=0.0, devices=4, peers=1, index=0, port=0):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
                                "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    command = [sys.executable, "-c", PROGRAM, str(workdir), str(pause), str(devices), str(peers), str(index), str(port)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process, step):
    """Reads until a step is reported; what was printed so far."""
    out = ""
    for line in process.stdout:
        out += line
        if (found := re.match(r"at (\d+)$", line)) and int(found[1]) >= step:
            return out
    raise AssertionError(out)


def finish(process, code=0):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    return out


def together(workdir, **options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(workdir, devices=2, peers=2, index=index, port=port, **options) for index in range(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert "done" in finish(start(folder))
    return folder


def assert_same_run(got, want):
    assert (got / "metrics.jsonl").read_bytes() == (want / "metrics.jsonl").read_bytes()
    assert load(got, "params")[0].to_dict() == config(steps=STEPS)
    for which in ("params", "slow", "power"):
        jax.tree.map(np.testing.assert_array_equal, load(got, which)[2], load(want, which)[2])


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_the_same(whole, tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(3):
        process = start(tmp_path, pause=0.02)
        wait_for(process, max(available(tmp_path), default=0) + rng.randint(1, 16))
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        finish(process, -signal.SIGKILL)
    assert "done" in finish(start(tmp_path))
    assert_same_run(tmp_path, whole)


def test_terminated_it_saves_and_exits_with_code_0(whole, tmp_path):
    process = start(tmp_path, pause=0.05)
    wait_for(process, 9)
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "run the same command to go on" in out and "done" not in out
    (step,) = map(int, re.findall(r"stopped by SIGTERM at step (\d+)", out))
    assert 10 <= step < STEPS and available(tmp_path)[-1] == step
    assert "done" in finish(start(tmp_path))
    assert_same_run(tmp_path, whole)


def assert_close_run(got, want):
    assert len((got / "metrics.jsonl").read_text().splitlines()) == STEPS
    for which in ("params", "slow", "power"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), load(got, which)[2], load(want, which)[2])


def test_two_processes_equal_one(whole, tmp_path):
    for process in together(tmp_path):
        assert "done" in finish(process)
    assert_close_run(tmp_path, whole)


def test_two_processes_stop_together_when_one_is_terminated_and_one_goes_on_alone(whole, tmp_path):
    processes = together(tmp_path, pause=0.05)
    wait_for(processes[0], 5)
    processes[1].send_signal(signal.SIGTERM)
    stopped = {re.findall(r"stopped by SIGTERM at step (\d+)", finish(process))[0] for process in processes}
    assert len(stopped) == 1 and available(tmp_path)[-1] == int(stopped.pop()) < STEPS
    assert "done" in finish(start(tmp_path))              # another number of processes
    assert_close_run(tmp_path, whole)
