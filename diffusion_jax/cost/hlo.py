"""What a compiled program does, read from its optimised HLO text: operations, bytes, collectives, and the time of each.

XLA's own summary (`compiled.cost_analysis()`) takes the body of a loop once. Here a loop's body counts with its trips, and each
instruction by itself takes

    max(operations / peak, bytes / bandwidth)                                         (1)

but for copies and slices that are fetched ahead of their use (copy-start, async-start), which run beside other work: their bytes
count, and a program takes no less than all its bytes over the bandwidth.

Operations are those of products and convolutions, where a convolution's padding multiplies nothing. In (1), but not in the sums,
contracted sizes and output channels are rounded up to the 128 rows and columns of a matrix unit: a head of 72 channels costs as
much as one of 128. A convolution contracts its window too, and takes its places for channels where these fill the unit worse, as
in the gradient of a kernel. Bytes are the operands and results that lie in the chip's main memory; a fusion that reads a slice of
an operand reads the slice. Kernels of Pallas are not seen into: those of flash attention are known by name and take the time of
their products (`FLASH`), others are counted and are in none of the sums.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from diffusion_jax.cost.hlo_text import Instruction, dims_of, in_memory, parse, size_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
        "opt-barrier", "custom-call")
KERNEL = 'custom_call_target="tpu_custom_call"'
FLASH = {"flash_attention": 2, "flash_mha_bwd_dkv": 4, "flash_mha_bwd_dq": 3}
"""JAX's kernels of attention by the beginnings of their names -> products [T, d] x [d, S] of each head."""
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
UNIT = 128


class Collective(NamedTuple):
    """One collective.

    Attributes:
      kind: of `COLLECTIVES`.
      size: bytes on one device, the larger of what goes in and what comes out.
      group: devices of the first group, by their place in the mesh.
      times: how often it runs.
      hidden: whether other work runs meanwhile.
      channel: its number in the program.
    """

    kind: str
    size: float
    group: tuple[int, ...]
    times: int
    hidden: bool
    channel: str = ""


@dataclass
class Cost:
    """The sums over a program, on one device.

    Attributes:
      flops: operations of its products and convolutions, without those in kernels.
      bytes: read and written.
      seconds: sum of (1), or all bytes over the bandwidth where that is more.
      collectives: each one.
      estimated: seconds by XLA's own estimate, which it writes beside machine code; where it has none, as in kernels, by (1).
      kernels: calls of unknown Pallas kernels, which are in none of the other sums.
    """

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    estimated: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: int = 0


class Program:
    """An HLO module.

    Args:
      text: `compiled.as_text()`.
      peak: operations a second.
      bandwidth: bytes a second.
      clock: cycles a second.
    """

    def __init__(self, text: str, peak: float, bandwidth: float, clock: float = 1e9):
        self._peak, self._bandwidth, self._clock = peak, bandwidth, clock
        self._computations, self._entry = parse(text)
        self._by_name = {name: {i.name: i for i in body} for name, body in self._computations.items()}

    def cost(self) -> Cost:
        """Of one run."""
        total = Cost()
        self._add(self._entry, 1, total)
        total.collectives = _once(total.collectives)
        total.seconds = max(total.seconds, total.bytes / self._bandwidth)
        return total

    def _add(self, computation: str, times: int, total: Cost, beside: bool = False) -> None:
        """Adds a computation's instructions, run `times` times; `beside` other work they take no time."""
        for i in self._computations[computation]:
            kind = i.opcode.removesuffix("-start")
            if i.opcode.endswith("-done") or i.opcode.endswith("-update"):
                continue
            if i.opcode == "while":
                body, condition = (re.search(rf"{part}=%?([\w.\-]+)", i.attributes)[1] for part in ("body", "condition"))
                self._add(body, times * self._trips(i, condition), total, beside)
            elif i.opcode == "conditional":
                self._add(max(_branches(i), key=lambda name: self._flops(name, 1)[0]), times, total, beside)
            elif i.opcode in ("call", "async-start"):
                self._add(CALLED.search(i.attributes)[1], times, total, beside or i.opcode == "async-start")
            elif kind in COLLECTIVES:
                total.collectives.append(self._collective(computation, i, times))
            elif KERNEL in i.attributes:
                self._kernel(computation, i, times, total)
            elif i.opcode not in FREE:
                self._work(computation, i, times, total, beside or i.opcode.endswith("-start"))

    def _kernel(self, computation: str, i: Instruction, times: int, total: Cost) -> None:
        """A kernel of Pallas: of attention, q [B, heads, T, d] and k [B, heads, S, d] come first, d filled up."""
        products = next((n for name, n in FLASH.items() if i.name.startswith(name)), None)
        if products is None:
            total.kernels += times
            return
        given = self._shapes(computation, i)
        flops = products * 2.0 * math.prod(dims_of(given[0])) * dims_of(given[1])[2]
        moved = in_memory(i.shape) + sum(map(in_memory, given))
        self._spend(i, times * max(flops / self._peak, moved / self._bandwidth), times, total)
        total.bytes += times * moved

    def _work(self, computation: str, i: Instruction, times: int, total: Cost, beside: bool) -> None:
        """An instruction that computes."""
        if i.opcode == "fusion":
            called = CALLED.search(i.attributes)[1]
            flops, padded = self._flops(called, 1)
            moved = self._fusion_bytes(computation, i, called)
            inside = (self._collective(called, j, times) for j in self._computations[called]
                      if j.opcode.removesuffix("-start") in COLLECTIVES)
            total.collectives.extend(c._replace(hidden=True) for c in inside)
        else:
            flops, padded = self._one(computation, i)
            given = self._shapes(computation, i)
            moved = in_memory(i.shape) + sum(map(in_memory, given))
            if i.opcode == "copy-start":                                            # its shape holds what it copies
                moved = in_memory(i.shape)
            elif i.opcode in ("dynamic-slice", "gather", "slice"):
                moved = in_memory(i.shape) + (size_of(i.shape) if in_memory(given[0]) else 0.0)
            elif i.opcode == "dynamic-update-slice":
                moved = 2 * in_memory(given[1])
        total.flops += times * flops
        total.bytes += times * moved
        if not beside:
            self._spend(i, times * max(padded / self._peak, moved / self._bandwidth), times, total)

    def _spend(self, i: Instruction, seconds: float, times: int, total: Cost) -> None:
        """Adds the time of an instruction."""
        cycles = CYCLES.search(i.attributes)
        total.seconds += seconds
        total.estimated += times * int(cycles[1]) / self._clock if cycles else seconds

    def _shapes(self, computation: str, i: Instruction) -> list[str]:
        known = self._by_name[computation]
        return [known[name].shape for name in i.operands if name in known]

    def _flops(self, computation: str, times: int) -> tuple[float, float]:
        """(operations, rounded up) of a computation and what it calls."""
        exact = padded = 0.0
        for i in self._computations[computation]:
            if i.opcode == "while":
                condition = re.search(r"condition=%?([\w.\-]+)", i.attributes)[1]
                parts = [self._flops(re.search(r"body=%?([\w.\-]+)", i.attributes)[1], self._trips(i, condition))]
            elif i.opcode in ("fusion", "call", "async-start"):
                parts = [self._flops(CALLED.search(i.attributes)[1], 1)]
            elif i.opcode == "conditional":
                parts = [max(self._flops(name, 1) for name in _branches(i))]
            else:
                parts = [self._one(computation, i)]
            exact, padded = exact + sum(p[0] for p in parts), padded + sum(p[1] for p in parts)
        return times * exact, times * padded

    def _one(self, computation: str, i: Instruction) -> tuple[float, float]:
        if i.opcode == "dot":
            return _dot(i, self._shapes(computation, i))
        if i.opcode == "convolution":
            return _convolution(i, self._shapes(computation, i))
        return 0.0, 0.0

    def _fusion_bytes(self, computation: str, i: Instruction, called: str) -> float:
        """Bytes that a fusion reads and writes."""
        shapes, body = self._shapes(computation, i), self._computations[called]
        total = sum(min(self._read(called, number), 1.0) * in_memory(shape) for number, shape in enumerate(shapes))
        root = next(j for j in body if j.root)
        outputs = [self._by_name[called][name] for name in root.operands] if root.opcode == "tuple" else [root]
        return total + sum(self._written(called, j) for j in outputs)

    def _written(self, called: str, j: Instruction) -> float:
        """Bytes that a fusion writes of one of its outputs: of a slice put into an operand only the slice."""
        known, shape = self._by_name[called], j.shape
        while j.opcode in ("bitcast", "copy") and j.operands:
            j = known[j.operands[0]]
        if j.opcode == "dynamic-update-slice":
            return size_of(known[j.operands[1]].shape) if in_memory(shape) else 0.0
        return 0.0 if j.opcode == "parameter" or j.opcode.removesuffix("-start") in COLLECTIVES else in_memory(shape)

    def _read(self, called: str, number: int) -> float:
        """The part of its operand `number` that a fusion reads: slices of it, or all."""
        body = self._computations[called]
        name = next(j.name for j in body if j.opcode == "parameter" and int(j.operands[0]) == number)
        same, part = {name}, 0.0
        for j in body:
            places = [place for place, operand in enumerate(j.operands) if operand in same]
            if not places:
                continue
            if j.opcode == "bitcast":
                same.add(j.name)
            elif j.opcode in ("dynamic-slice", "slice", "gather") and places == [0]:
                part += size_of(j.shape) / max(size_of(self._by_name[called][j.operands[0]].shape), 1)
            elif j.opcode == "fusion":
                part += sum(self._read(CALLED.search(j.attributes)[1], place) for place in places)
            elif not (j.opcode == "dynamic-update-slice" and places == [0]) and not _passes(j):
                return 1.0
        return part

    def _trips(self, i: Instruction, condition: str) -> int:
        """How often a loop's body runs: as XLA says, or the constant that its condition compares with."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes)
        if found:
            return int(found[1])
        known, compare = self._by_name[condition], next(j for j in self._computations[condition] if j.root)
        limits = [known[name] for name in compare.operands if name in known and known[name].opcode == "constant"]
        counters = [known[name] for name in compare.operands if name in known and known[name].opcode == "get-tuple-element"]
        if not limits or not counters or not limits[0].operands[0].isdigit():
            return 1
        index = int(re.search(r"index=(\d+)", counters[0].attributes)[1])
        return -(-int(limits[0].operands[0]) // self._stride(re.search(r"body=%?([\w.\-]+)", i.attributes)[1], index))

    def _stride(self, body: str, index: int) -> int:
        """What a loop's body adds to element `index` of its state; XLA unrolls some loops by two."""
        known, root = self._by_name[body], next(j for j in self._computations[body] if j.root)
        update = known.get(root.operands[index]) if index < len(root.operands) else None
        steps = [known[name] for name in update.operands if name in known] if update and update.opcode == "add" else []
        return next((int(j.operands[0]) for j in steps if j.opcode == "constant" and j.operands[0].isdigit()), 1)

    def _collective(self, computation: str, i: Instruction, times: int) -> Collective:
        into = sum(size_of(s) for s in self._shapes(computation, i))
        out = size_of(i.shape) - (into if i.opcode.endswith("-start") and i.shape.startswith("(") else 0)
        kind = i.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=(\d+)", i.attributes)
        return Collective(kind, max(into, out), _group(i.attributes), times, i.opcode.endswith("-start"),
                          channel[1] if channel else f"{computation}/{i.name}")


def _passes(j: Instruction) -> bool:
    """Whether an instruction in a fusion hands its operands on, or to a collective that runs beside it."""
    return j.opcode == "tuple" or j.opcode.removesuffix("-start") in COLLECTIVES


def _once(collectives: list[Collective]) -> list[Collective]:
    """One entry for each channel: what runs beside a chain of fusions stands in each of them, in inner loops too."""
    found: dict[str, Collective] = {}
    for c in collectives:
        known = found.setdefault(c.channel, c)
        found[c.channel] = known._replace(times=min(known.times, c.times), hidden=known.hidden or c.hidden)
    return list(found.values())


def _branches(i: Instruction) -> list[str]:
    named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.attributes)
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    return named or [name.strip().lstrip("%") for name in listed[1].split(",")]


def _round(size: int) -> int:
    return -(-size // UNIT) * UNIT


def _filled(size: int) -> float:
    """How much longer a matrix unit takes for a side that does not fill it."""
    return _round(size) / size


def _dot(i: Instruction, shapes: list[str]) -> tuple[float, float]:
    left, right = dims_of(shapes[0]), dims_of(shapes[1])

    def named(what: str) -> list[int]:
        found = re.search(rf"{what}_dims=\{{([\d,]*)\}}", i.attributes)
        return [int(d) for d in found[1].split(",") if d] if found else []

    k = math.prod(left[d] for d in named("lhs_contracting"))
    columns = math.prod(size for d, size in enumerate(right) if d not in (*named("rhs_contracting"), *named("rhs_batch")))
    rows = math.prod(left) // k
    return 2.0 * rows * k * columns, 2.0 * rows * _round(k) * _round(columns)


def _convolution(i: Instruction, shapes: list[str]) -> tuple[float, float]:
    left, right, out = dims_of(shapes[0]), dims_of(shapes[1]), dims_of(i.shape)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    lhs, rhs, res = labels[1], labels[2], labels[3]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", i.attributes) or [None, ""])[1]))
    groups, batches = (int(found[1]) if (found := re.search(rf"{name}_group_count=(\d+)", i.attributes)) else 1
                       for name in ("feature", "batch"))
    features, channels = left[lhs.index("f")] // groups, out[res.index("f")]
    rows = left[lhs.index("b")] // batches
    pairs, places, window_size = 1, rows, 1
    for n, label in enumerate(sorted(c for c in rhs if c.isdigit())):
        size, side = right[rhs.index(label)], out[res.index(label)]
        met = _pairs(left[lhs.index(label)], size, side, window, n)
        pairs *= met
        if met != side or size == 1:                              # else each output meets one of several: a batch of products
            places, window_size = places * side, window_size * size
    exact = 2.0 * pairs * rows * features * channels
    columns = _filled(channels) if window_size == 1 else min(_filled(channels), _filled(places))
    return exact, exact * _filled(features * window_size) * columns


def _pairs(size: int, kernel: int, out: int, window: dict[str, str], n: int) -> int:
    """How many pairs of an output and a place of the kernel meet an input, along one dimension."""
    def option(name: str, default: str) -> str:
        return window[name].split("x")[n] if name in window else default

    stride, dilate, dilated = int(option("stride", "1")), int(option("rhs_dilate", "1")), int(option("lhs_dilate", "1"))
    low = int(option("pad", "0_0").split("_")[0])
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * dilate - low
    return int(((place >= 0) & (place % dilated == 0) & (place < (size - 1) * dilated + 1)).sum())


def _group(attributes: str) -> tuple[int, ...]:
    """The first group of devices."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        dims = [int(d) for d in found[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose([int(d) for d in found[4].split(",")]) if found[4] else ids
        return tuple(int(d) for d in ids.reshape(int(found[1]), int(found[2]))[0])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes):
        axes = [(name, int(length)) for name, length in re.findall(r"'(\w+)'=(\d+)", found[1])]
        ids = np.arange(math.prod(length for _, length in axes))
        if order := re.match(r"\[([\d,]+)\]T\(([\d,]+)\)", found[2] or ""):
            ids = ids.reshape([int(d) for d in order[1].split(",")]).transpose([int(d) for d in order[2].split(",")])
        ids = ids.reshape([length for _, length in axes])
        index = tuple(slice(None) if f"'{name}'" in found[3] else 0 for name, _ in axes)
        return tuple(int(d) for d in np.ravel(ids[index]))
    if found := re.search(r"(?:replica_groups=\{|source_target_pairs=\{)\{([\d,]+)\}", attributes):
        return tuple(int(d) for d in found[1].split(","))
    return ()
