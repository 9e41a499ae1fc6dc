"""Two processes that share a set of images find the figures of one. Slow: they are processes of their own."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PROGRAM = """
import json, sys
from pathlib import Path
import jax
folder, peers, index, port = sys.argv[1], *map(int, sys.argv[2:])
if peers > 1:
    jax.distributed.initialize(f"localhost:{port}", peers, index)
import test_extract as t
from diffusion_jax.metrics import extract, figures
real = extract.extract(t.NETWORK, t.pictures(t.PIXELS[::-1] // 2), Path(folder, "real"), 8)
fake = extract.extract(t.NETWORK, t.pictures(), Path(folder, "fake"), 8)
reference = figures.Reference("real", {"features": real.moments("features")}, real)
print(json.dumps(figures.figures("stub", fake, reference) | {"labels": fake.labels.tolist()}))
fake.forget()
"""


def start(folder, peers, index=0, port=0):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu",
                                "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(peers), str(index), str(port)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path / "one", 1), *(start(tmp_path / "two", 2, index, port) for index in range(2))]
    found = []
    for process in processes:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        found.append(json.loads(out.splitlines()[-1]))             # the transport prints too
    assert found[1] == found[2]
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert (tmp_path / "two" / "real").exists() and not (tmp_path / "two" / "fake").exists()
