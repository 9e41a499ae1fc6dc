"""GPUs that are not there: their description, and where JAX's CUDA plugin is installed, programs for them."""
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.build import ConfigError
from diffusion_jax.cost import gpu, hlo
from diffusion_jax.cost.chips import CHIPS, topology

BATCH, WIDTH = 160, 1024


def test_each_gpu_is_described():
    assert set(gpu.PARTS) == {name for name, chip in CHIPS.items() if not chip.axes}


@pytest.mark.parametrize("kind", gpu.PARTS)
def test_the_parts_of_a_chip_make_its_published_peak(kind):
    """Outside of tensor cores: 19.5 TFLOP/s of float32 on an A100, 66.9 on an H100 and an H200 by NVIDIA's data sheets."""
    parts = gpu.PARTS[kind]
    assert 2 * parts.cores * parts.units * parts.clock / 1e3 == pytest.approx({"a100": 19.5}.get(kind, 66.9), rel=1e-3)
    assert re.search(r"memory_bandwidth: (\d+)", gpu.description(topology(f"{kind}:8")))[1] == f"{CHIPS[kind].bandwidth:.0f}"


def test_a_part_of_a_second_node_is_refused():
    with pytest.raises(ConfigError, match="no full nodes of 8 GPUs"):
        gpu.devices(topology("h100:12"))


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(gpu, "installed", lambda: False)
    with pytest.raises(ConfigError, match=r"no compiler for h100:8: pip install 'diffusion_jax\[cuda\]'"):
        gpu.devices(topology("h100:8"))


def gradient(weights, x):
    """Of a layer's weights: two products of the whole batch."""
    return jax.grad(lambda weights: jnp.mean(jnp.tanh(x @ weights) ** 2))(weights)


@pytest.mark.skipif(not gpu.installed(), reason=f"no compiler for GPUs: {gpu.INSTALL}")
@pytest.mark.parametrize(("name", "processes"), [("h200:16", 2), ("a100:4", 1)])
def test_a_program_for_gpus_has_the_operations_memory_and_sums_of_its_formula(name, processes):
    devices = gpu.devices(topology(name))
    assert len({device.process_index for device in devices}) == processes
    mesh = Mesh(np.array(devices), ("x",))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
    step = jax.jit(gradient, in_shardings=(whole, rows), out_shardings=whole)
    shapes = [jax.ShapeDtypeStruct((n, WIDTH), jnp.bfloat16) for n in (WIDTH, BATCH)]
    program = gpu.compiled(lambda: step.lower(*shapes))
    share = BATCH // len(devices)
    cost = hlo.Program(program.text, 989e12, 4.8e12).cost()
    assert cost.flops == 2 * 2 * share * WIDTH**2
    (reduced,) = cost.collectives
    assert (reduced.kind, reduced.size, reduced.group) == ("all-reduce", 2 * WIDTH**2, tuple(range(len(devices))))
    assert program.memory >= 2 * (2 * WIDTH**2 + share * WIDTH)      # weights, their gradient, the share of the batch
