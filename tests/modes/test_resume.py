"""The real page under kills, on several devices and in several processes: always the run that was never interrupted."""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from pages import ROOT

from diffusion_jax.train.checkpoint import load

pytestmark = pytest.mark.slow
STEPS = 200
COMMON = ("--config", str(ROOT / "configs" / "digits.py:tiny"), "--config.checkpoint.every=20", "--config.sample.every=100000",
          "--config.evaluate.num=0")


def launch(workdir, *overrides, devices=1, steps=STEPS, **environment):
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    clean["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    arguments = [*COMMON, "--workdir", str(workdir), f"--config.steps={steps}", *overrides]
    return subprocess.Popen([sys.executable, "-m", "diffusion_jax.main", *arguments], cwd=ROOT, env=clean | environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    return stderr


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def state(workdir):
    """Everything in the last checkpoint, by orbax's own reader."""
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / "state")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    finish(launch(workdir))
    return workdir


def wait_for_step(workdir, step, process):
    while process.poll() is None and (not logged(workdir) or logged(workdir)[-1]["step"] < step):
        time.sleep(0.02)


def test_three_kills_change_nothing(straight, tmp_path):
    for step in sorted(random.sample(range(5, STEPS - 20), 3)):
        process = launch(tmp_path)
        wait_for_step(tmp_path, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(launch(tmp_path))
    assert logged(tmp_path) == logged(straight)
    jax.tree.map(np.testing.assert_array_equal, state(tmp_path), state(straight))


def test_sigterm_saves_says_how_to_go_on_and_exits_with_0(straight, tmp_path):
    process = launch(tmp_path)
    wait_for_step(tmp_path, 33, process)
    process.send_signal(signal.SIGTERM)
    assert "same command" in finish(process)
    stopped = logged(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / str(stopped)).exists() and stopped < STEPS
    finish(launch(tmp_path))
    assert logged(tmp_path) == logged(straight)
    jax.tree.map(np.testing.assert_array_equal, state(tmp_path), state(straight))


def test_eight_devices_give_the_losses_of_one(straight, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    rules = "--config.sharding=(('(qkv|fc1)/kernel$', ('fsdp', 'tensor')), ('.*', 'fsdp'))"
    finish(launch(tmp_path, *mesh, rules, devices=8, steps=20))
    one, eight = ([line["loss"] for line in logged(workdir)[:20]] for workdir in (straight, tmp_path))
    assert len(eight) == 20
    np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_two_processes_give_the_losses_of_one_and_their_checkpoint_loads_anywhere(straight, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    processes = [launch(tmp_path, "--distributed", steps=20, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]
    for process in processes:
        finish(process)
    one, two = ([line["loss"] for line in logged(workdir)[:20]] for workdir in (straight, tmp_path))
    assert len(two) == 20
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert load(tmp_path, step=20)[2]
