"""Processes that share a run validate it together. Slow: they are processes of their own."""
import os
import socket
import subprocess
import sys

import pytest
from evaluation.test_validation import lines
from pages import ROOT

PROGRAM = """
import sys
import jax
workdir, peers, index, port = sys.argv[1], *map(int, sys.argv[2:])
if peers > 1:
    jax.distributed.initialize(f"localhost:{port}", peers, index, heartbeat_timeout_seconds=20)
from pages import ask
from evaluation.test_validation import run_page
config = run_page(mesh=dict(data=2, fsdp=2, tensor=1), sharding=[["table$", "fsdp"], [".*", "replicate"]])
ask("train", workdir, config=config)
"""


@pytest.mark.slow
def test_processes_that_share_a_run_log_one_figure_and_that_of_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def start(folder, peers, index):
        flags = f"--xla_force_host_platform_device_count={4 // peers}"
        paths = os.pathsep.join(map(str, [ROOT / "tests", ROOT]))
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / folder), str(peers), str(index), str(port)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for folder, peers in (("one", 1), ("two", 2)):
        started = [start(folder, peers, index) for index in range(peers)]
        said = [process.communicate(timeout=240)[0] for process in started]
        assert [process.returncode for process in started] == [0] * peers, said
        assert ["validation of step 6" in text for text in said] == [True, False][:peers]
    one, two = ([line for line in lines(tmp_path / folder) if "val_loss" in line] for folder in ("one", "two"))
    assert [line["step"] for line in two] == [3, 6]
    for line, other in zip(two, one, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
