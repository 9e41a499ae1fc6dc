"""Saved on 1 device, 8 devices or two processes of 4, restored on each of them: equal parameters, equal next-step loss."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import matrix
import numpy as np
import pytest

from diffusion_jax.train import shard

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PLACES = ("1", "8", "2 x 4")


def two_processes(folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    paths = [str(HERE), str(HERE.parent / "train"), str(HERE.parents[1])]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
                                "PYTHONPATH": os.pathsep.join(paths), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    processes = [subprocess.Popen([sys.executable, matrix.__file__, str(folder), str(i), str(port)], env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)]
    for process in processes:
        out, _ = process.communicate(timeout=900)
        assert process.returncode == 0, out


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "results").mkdir()
    meshes = {"1": shard.make_mesh(devices=jax.devices()[:1]), "8": shard.make_mesh(data=-1, fsdp=2)}
    for place, mesh in meshes.items():
        matrix.run(folder / "saved" / place, mesh, matrix.SAVED)
    two_processes(folder)
    for place, mesh in meshes.items():
        matrix.go_on(folder, place, mesh, list(PLACES))
    return {path.stem: dict(np.load(path)) for path in (folder / "results").glob("*.npz")}


@pytest.mark.parametrize("where", PLACES)
def test_restored_parameters_are_those_saved_and_the_next_loss_is_the_same(results, where):
    found = [results[f"{where} -> {place}"] for place in PLACES]
    assert len(found[0]) == 5 and all(one.keys() == found[0].keys() for one in found)
    for one in found[1:]:
        for name in one.keys() - {"loss"}:
            np.testing.assert_array_equal(one[name], found[0][name])
        np.testing.assert_allclose(one["loss"], found[0]["loss"], rtol=1e-6)


def test_where_it_was_saved_makes_no_difference_to_the_next_loss(results):
    losses = [found["loss"] for found in results.values()]
    assert len(losses) == len(PLACES) ** 2
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
