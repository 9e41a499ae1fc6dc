"""The real page under kills, on several devices and in several processes: always the run that was never interrupted."""
import base64
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


def finish(process, code=0):
    _, stderr = process.communicate(timeout=500)
    assert process.returncode == code, stderr
    return stderr


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def state(workdir):
    """Everything in the last checkpoint, by orbax's own reader."""
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / "state")


def same(workdir, straight):
    """Whether two finished runs are equal bit for bit: what they logged, parameters, averages, the optimiser's state."""
    assert (workdir / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert len(logged(straight)) == STEPS
    ours, theirs = state(workdir), state(straight)
    assert {"step", "params", "opt_state", "ema"} <= ours.keys()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def equal_losses(workdir, straight, steps):
    """Whether a run of `steps` steps logged what the first steps of `straight` did, but for rounding."""
    ours, theirs = logged(workdir), logged(straight)[:steps]
    assert [line["step"] for line in ours] == list(range(1, steps + 1))
    for name, rtol in (("loss", 1e-5), ("param_norm", 1e-5), ("grad_norm", 1e-4)):
        np.testing.assert_allclose([line[name] for line in ours], [line[name] for line in theirs], rtol=rtol)


def shardings(workdir, step):
    """Path of every array in a checkpoint -> the axes that its dimensions were split over."""
    recorded = json.loads((workdir / "checkpoints" / str(step) / "state" / "_sharding").read_text())
    return {base64.b64decode(name).decode(): json.loads(value)["partition_spec"] for name, value in recorded.items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    finish(launch(workdir))
    return workdir


def wait_for_step(workdir, step, process):
    while process.poll() is None and (not logged(workdir) or logged(workdir)[-1]["step"] < step):
        time.sleep(0.005)


def test_three_kills_change_nothing(straight, tmp_path):
    for step in sorted(random.sample(range(5, STEPS - 50), 3)):
        process = launch(tmp_path)
        wait_for_step(tmp_path, step, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and step <= logged(tmp_path)[-1]["step"] < STEPS
    finish(launch(tmp_path))
    same(tmp_path, straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_says_how_to_go_on_and_exits(straight, tmp_path, number, code):
    process = launch(tmp_path)
    wait_for_step(tmp_path, 33, process)
    process.send_signal(number)
    says = finish(process, code)
    assert "same command" in says and "Traceback" not in says
    stopped = logged(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / str(stopped)).exists() and stopped < STEPS
    finish(launch(tmp_path))
    same(tmp_path, straight)


def test_eight_devices_give_the_losses_of_one(straight, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    rules = "--config.sharding=(('(qkv|fc1)/kernel$', ('fsdp', 'tensor')), ('.*', 'fsdp'))"
    finish(launch(tmp_path, *mesh, rules, devices=8, steps=20))
    equal_losses(tmp_path, straight, 20)
    split = shardings(tmp_path, 20)
    for part in ("params", "opt_state.1.mu", "ema.ema"):
        kernel = next(axes for name, axes in split.items() if name.startswith(part) and name.endswith("attn.qkv.kernel"))
        assert kernel[-2:] == ["fsdp", "tensor"]
        assert "fsdp" in split[f"{part}.cond.table"]


def test_two_processes_give_the_losses_of_one_which_can_go_on(straight, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    cluster = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    processes = [launch(tmp_path, "--distributed", steps=20, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)]
    for process in processes:
        finish(process)
    equal_losses(tmp_path, straight, 20)
    assert load(tmp_path)[2]
    finish(launch(tmp_path, steps=40))                                     # one process goes on
    equal_losses(tmp_path, straight, 40)
