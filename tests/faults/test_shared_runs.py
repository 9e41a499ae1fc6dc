"""Processes that share a run make of it what one process does. Slow: they are processes of their own."""
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from evaluation.test_validation import lines, run_page
from modes.test_fine_tuning import drawn
from pages import ROOT, page

from diffusion_jax.train.checkpoint import weights

PROGRAM = """
import sys
import jax
workdir, base, peers, index, port = *sys.argv[1:3], *map(int, sys.argv[3:])
if peers > 1:
    jax.distributed.initialize(f"localhost:{port}", peers, index, heartbeat_timeout_seconds=20)
from pages import ask
from faults.test_shared_runs import lora_page, validated_page
ask("train", workdir, config=lora_page(base) if base else validated_page())
"""
MESH = dict(data=2, fsdp=2, tensor=1)


def validated_page():
    return run_page(mesh=MESH, sharding=[["table$", "fsdp"], [".*", "replicate"]])


def lora_page(base):
    """Three steps of the factors of two layers, one of which lies in parts on the devices."""
    config = page("digits", init=base, lora=dict(rank=2, alpha=8.0, layers="qkv|mlp"), steps=3, mesh=MESH)
    config.sharding = (("mlp.*kernel", "fsdp"), (".*", "replicate"))
    config.evaluate.num = 0
    config.sample.update(num=4, every=3)
    config.optim.update(lr=0.1, warmup=0)
    return config


def trained(folder, peers, base=""):
    """What the processes said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(index):
        flags = f"--xla_force_host_platform_device_count={4 // peers}"
        paths = os.pathsep.join(map(str, [ROOT / "tests", ROOT]))
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
        command = [sys.executable, "-c", PROGRAM, *map(str, (folder, base, peers, index, port))]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    started = [start(index) for index in range(peers)]
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * peers, said
    return said


@pytest.mark.slow
def test_they_log_one_validation_and_that_of_one_process(tmp_path):
    for folder, peers in (("one", 1), ("two", 2)):
        said = trained(tmp_path / folder, peers)
        assert ["validation of step 6" in text for text in said] == [True, False][:peers]
    one, two = ([line for line in lines(tmp_path / folder) if "val_loss" in line] for folder in ("one", "two"))
    assert [line["step"] for line in two] == [3, 6]
    for line, other in zip(two, one, strict=True):
        assert line == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_they_train_the_lora_of_one_process_and_write_it_once(tmp_path):
    base = drawn(tmp_path / "base")
    for folder, peers in (("one", 1), ("two", 2)):
        trained(tmp_path / folder, peers, base)
    one, two = (weights(tmp_path / folder, "params").params for folder in ("one", "two"))
    assert set(two["model"]["blocks"]) == {"attn", "mlp"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), two, one)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(two["model"]["blocks"]["attn"]["qkv"]["kernel"]["up"])) > 0.01
    first, second = ((tmp_path / folder / "lora.safetensors").stat().st_size for folder in ("one", "two"))
    assert first == second
