"""NVIDIA GPUs that are not there, described to XLA's compiler for them.

The compiler (pip install 'diffusion_jax[cuda]') needs a description of the chip and no chip: the sizes of its parts, which are in
NVIDIA's data sheets and in the tables of compute capabilities of the CUDA C++ Programming Guide. Kernels are then chosen by its
cost model, not by trying them out, so that the program is close to the one that a chip would run and not the same.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from diffusion_jax.build import ConfigError
from diffusion_jax.cost.chips import Topology
from diffusion_jax.cost.compiler import Compiled

INSTALL = "pip install 'diffusion_jax[cuda]'"


class Parts(NamedTuple):
    """What the compiler wants to know of a chip beside cost/chips.py.

    Attributes:
      name: as the driver says it.
      capability: of compute, its first number.
      cores: streaming multiprocessors.
      units: of float32 in each.
      shared: bytes of memory in each that its threads share.
      block: the most of these that one block may have.
      cache: bytes of the second level's cache.
      clock: cycles a nanosecond.
    """

    name: str
    capability: int
    cores: int
    units: int
    shared: int
    block: int
    cache: int
    clock: float


PARTS = {
    "a100": Parts("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 41943040, 1.41),
    "h100": Parts("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 52428800, 1.98),
    "h200": Parts("NVIDIA H200", 9, 132, 128, 233472, 232448, 52428800, 1.98),
}
TEMPLATE = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {parts.shared}
  shared_memory_per_block_optin: {parts.block}
  threads_per_core_limit: 2048
  core_count: {parts.cores}
  fpus_per_core: {parts.units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  device_memory_size: {chip.memory:.0f}
  l2_cache_size: {parts.cache}
  clock_rate_ghz: {parts.clock}
  cuda_compute_capability {{ major: {parts.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 }}
runtime_version {{ major: 13 }}
device_description_str: "{parts.name}"
"""
"""A TargetConfigProto of XLA as text."""


def installed() -> bool:
    """Whether the compiler is here."""
    return importlib.util.find_spec("jax_plugins") is not None and importlib.util.find_spec("jax_plugins.xla_cuda13") is not None


def description(machine: Topology) -> str:
    """The chip of a machine, as XLA reads it."""
    return TEMPLATE.format(parts=PARTS[machine.kind], chip=machine.chip)


def devices(machine: Topology) -> Sequence[Any]:
    """The GPUs of a machine, for a mesh: full nodes, or a part of one.

    Raises:
      ConfigError: the compiler is not installed, or a number that fills no nodes.
    """
    each = min(machine.chips, machine.chip.node)
    nodes, rest = divmod(machine.chips, each)
    if rest:
        raise ConfigError(f"{machine.name} are no full nodes of {each} GPUs: take a multiple of {each}")
    if not installed():
        raise ConfigError(f"no compiler for {machine.name}: {INSTALL}")
    shape = f"1x{nodes}x{each}"
    return topologies.get_topology_desc(
        platform="cuda", topology_name=machine.kind, target_config=description(machine), topology=shape
    ).devices


def compiled(lower: Callable[..., jax.stages.Lowered], *args: Any) -> Compiled:
    """The program that `lower(*args)` gives the compiler, and the bytes that it takes of a GPU's memory."""
    program: Any = lower(*args).compile()                # typed as if its text and its memory might be unknown
    needs = program.memory_analysis()
    memory = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes + needs.temp_size_in_bytes
    return Compiled(program.as_text(), memory)
