"""Accelerators by their published peaks, and how long a collective takes between them.

A topology is named as in 'v5e:4x4' (chips along each axis of the torus) or 'h100:64'. Cloud TPU's names of accelerators are taken
too; those of v4 and v5p count cores, two on a chip: 'v5litepod-256', or 'v5e-256', is v5e:16x16, 'v5p-128' is v5p:4x4x4.

With n chips in a group, b bytes held by each chip after (all-gather, all-reduce) or before (reduce-scatter) the collective, and w
the bytes a second that leave a chip along the axes of the torus that the group spans,

    all-gather, reduce-scatter, all-to-all   b (n - 1) / n / w                        (1)
    all-reduce                               2 b (n - 1) / n / w                      (2)
    collective-permute                       b / link                                 (3)

An axis that closes to a ring sends both ways at once: it counts two links for a group that spans all of it. A part of a ring, and
an open axis, count a single one.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass

from diffusion_jax.build import ConfigError, unknown


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: dense bf16 multiplications and additions a second.
      memory: bytes of it.
      bandwidth: bytes a second between memory and chip.
      link: bytes a second one way over one link of a torus; over the switch of a node, for GPUs.
      axes: of the torus; 0 for GPUs behind switches.
      ring: an axis closes to a ring where its length is a multiple of this.
      clock: cycles a second; 0 where no compiler of ours estimates cycles.
      cores: that Cloud TPU's names count for each chip.
      node: GPUs behind one switch, 0 for TPUs.
      network: bytes a second one way between nodes, of each GPU.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    axes: int = 0
    ring: int = 1
    clock: float = 0.0
    cores: int = 1
    node: int = 0
    network: float = 0.0


GIB = 2**30
CHIPS = {
    #            dense bf16      memory             HBM                link  cloud.google.com/tpu/docs
    "v4":   Chip(flops=275e12, memory=32 * GIB,   bandwidth=1228e9, link=50e9,   axes=3, ring=4, clock=1.05e9, cores=2),
    "v5e":  Chip(flops=197e12, memory=15.75 * GIB, bandwidth=819e9, link=50e9,   axes=2, ring=16, clock=1.5e9),
    "v5p":  Chip(flops=459e12, memory=95 * GIB,   bandwidth=2765e9, link=100e9,  axes=3, ring=4, clock=1.75e9, cores=2),
    "v6e":  Chip(flops=918e12, memory=31.25 * GIB, bandwidth=1640e9, link=100e9, axes=2, ring=16, clock=1.75e9),
    #                                                                            NVIDIA's data sheets, SXM; NDR InfiniBand
    "a100": Chip(flops=312e12, memory=80e9,  bandwidth=2039e9, link=300e9, node=8, network=25e9),
    "h100": Chip(flops=989e12, memory=80e9,  bandwidth=3350e9, link=450e9, node=8, network=50e9),
    "h200": Chip(flops=989e12, memory=141e9, bandwidth=4800e9, link=450e9, node=8, network=50e9),
}
CLOUD = {"v5litepod": "v5e"}
SQUARES = {4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}


@dataclass(frozen=True)
class Topology:
    """Chips and how they lie.

    Attributes:
      kind: of `CHIPS`.
      shape: chips along each axis; one number for GPUs.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """One of them."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As libtpu knows it: 'v5e:4x4'."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def topology(name: str) -> Topology:
    """The topology of a name, see the top of this file.

    Raises:
      ConfigError: an unknown chip, or a shape that it does not come in.

    Example:
      >>> topology('v5p-128').name
      'v5p:4x4x4'
    """
    found = re.fullmatch(r"([a-z0-9]+)(?::(\d{1,9}(?:x\d{1,9})*)|-(\d{1,9}))", name, re.ASCII)
    if not found:
        raise ConfigError(f"a topology is 'v5e:4x4', 'v5p-128' or 'h100:8', not {name!r}")
    kind, axes, count = found.groups()
    kind = CLOUD.get(kind, kind)
    if kind not in CHIPS:
        raise unknown("chip", kind, CHIPS)
    chip = CHIPS[kind]
    shape = tuple(map(int, axes.split("x"))) if axes else _shape(name, chip, int(count))
    if 0 in shape or len(shape) != max(chip.axes, 1):
        axis = "1 axis" if chip.axes < 2 else f"{chip.axes} axes"
        raise ConfigError(f"a {kind} has {axis}, of 1 chip or more: got {name!r}")
    return Topology(kind, shape)


def _shape(name: str, chip: Chip, count: int) -> tuple[int, ...]:
    """The shape of so many cores."""
    chips = count // chip.cores
    if chip.axes == 2 and chips in SQUARES:
        return SQUARES[chips]
    if chip.axes == 3 and count % chip.cores == 0 and chips >= 8 and chips & (chips - 1) == 0:
        power = chips.bit_length() - 1
        return tuple(2 ** ((power + i) // 3) for i in range(3))
    if chip.axes == 0:
        return (chips,)
    raise ConfigError(f"no shape is known for {name!r}: write its axes, 'v5e:4x8'")


def collective_seconds(topology: Topology, kind: str, size: float, places: list[tuple[int, ...]]) -> float:
    """(1) to (3).

    Args:
      topology: the machine.
      kind: 'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
      size: b, bytes on one chip.
      places: of the chips that take part, on the axes of the topology.
    """
    n = len(places)
    if n < 2:
        return 0.0
    if kind == "collective-permute":
        return size / topology.chip.link
    return (2 if kind == "all-reduce" else 1) * size * (n - 1) / n / _width(topology, places)


def _width(topology: Topology, places: list[tuple[int, ...]]) -> float:
    """w of (1) and (2)."""
    chip = topology.chip
    if not chip.axes:
        nodes = {place[0] // chip.node for place in places}
        return chip.link if len(nodes) == 1 else chip.network
    spanned = {axis: len({place[axis] for place in places}) for axis in range(len(topology.shape))}
    rings = {axis for axis, length in spanned.items() if length == topology.shape[axis] and length % chip.ring == 0}
    return sum(chip.link * (2 if axis in rings else 1) for axis, length in spanned.items() if length > 1)
