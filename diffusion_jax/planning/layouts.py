"""Layouts of a train step over chips, compared without a compiler: what follows from its jaxpr.

With n = data x fsdp x tensor chips, P the bytes of the weights, S of all that is stored (weights,
moments, averages), A those that the backward pass keeps for a whole batch, F the operations of a
step with what it recomputes:

    memory  S / fsdp + gradients + gathered weights + A / n + copies of weights       (1)
    time    max(F / n / peak, gathers and scatters + sums of gradients over data)     (2)

Gathered at once (gather='step') weights and gradients are P each, layer by layer ('use') the
largest layer and P / fsdp. (1) leaves out what a compiler needs beside A, (2) memory traffic: they
choose what to compile, and are all there is for GPUs.
"""
from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from diffusion_jax.build import ConfigError, build
from diffusion_jax.cost import flops
from diffusion_jax.cost.chips import Chip, Topology, collective_seconds
from diffusion_jax.planning.frozen import frozen_of, with_first_stage
from diffusion_jax.runs.filled import filled
from diffusion_jax.runs.folder import FIRST
from diffusion_jax.tasks.autoencoder import Perceptual
from diffusion_jax.train import shard
from diffusion_jax.train.state import create, task_of
from diffusion_jax.types import Array, Params, Raw, Task, TrainState

FSDP: shard.Rules = ((".*", "fsdp"),)
ROOM = 0.94
"""Of a chip's memory that (1) may fill."""
TENSOR = (1, 2, 4, 8)
"""How many chips may share a product."""
STORED = {"parameters": "params", "optimiser": "opt_state", "averages": "ema"}
"""What a plan calls the parts of a train state."""
CLIP_LENGTH = 77
"""Tokens of a text where neither the network nor the tokenizer says."""


class Layout(NamedTuple):
    """Chips along each axis of the mesh, and when weights are gathered."""

    data: int
    fsdp: int
    tensor: int
    gather: str = "step"

    @property
    def sides(self) -> tuple[int, int, int]:
        """Of the mesh."""
        return self.data, self.fsdp, self.tensor

    def __str__(self) -> str:
        gather = f", gather={self.gather}" if self.fsdp > 1 else ""
        return f"{self.data} x {self.fsdp} x {self.tensor}{gather}"


@dataclass(frozen=True)
class Work:
    """A config's train step, by shapes.

    Attributes:
      config: the whole run's config, plain.
      task: what it trains.
      batch: shapes of a global batch.
      frozen: shapes of what is not trained.
      state: shapes of the train state.
      model_flops: operations of a step that recomputes nothing, by layer.
      flops: operations of a step as it is.
      saved: bytes that its backward pass keeps for the whole batch.
      copies: bytes that it keeps whatever the batch, beside the weights: weights stacked for a
        loop, split as they are.
    """

    config: Mapping[str, Any]
    task: Task
    batch: Raw
    frozen: Params
    state: TrainState
    model_flops: Counter[str]
    flops: float
    saved: float
    copies: float

    def of_batch(self, batch: int) -> Work:
        """The step of another batch."""
        before = self.config["batch"]
        config = {**self.config, "batch": batch}
        return replace(
            self,
            config=config,
            batch=batch_of(config, self.task),
            model_flops=_times(self.model_flops, batch, before),
            flops=self.flops * batch / before,
            saved=self.saved * batch / before,
        )

    @property
    def rules(self) -> shard.Rules:
        """The config's rules of sharding, or fsdp where it replicates."""
        # A page that replicates was written for few chips; on many, fsdp is the least one would do.
        rules = tuple(map(tuple, self.config["sharding"]))
        return rules if any(spec != "replicate" for _, spec in rules) else FSDP

    @property
    def tensor_parallel(self) -> bool:
        """Whether a rule splits products."""
        return any("tensor" in str(spec) for _, spec in self.rules)


def work_of(config: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Work:
    """Traces the train step of a config; compiles and reads nothing but the first stage's config,
    and of the data what a page leaves out (runs/filled.py).

    Args:
      config: the page.
      first: the page of its first stage, in place of the folder that `config` names.

    Raises:
      ConfigError: a first stage that is no autoencoder, CLIP or LPIPS, or a CLIP that is not
        there; a LoRA; what `build` refuses.
    """
    for part in ("lora", "teacher"):
        if config.get(part):
            raise ConfigError(f"plans are of whole weights and one model: leave config.{part} out")
    config = filled(with_first_stage(config, first))
    task = task_of(config)
    batch = batch_of(config, task)
    frozen = frozen_of(task, _rows(batch, 1))
    averages = {name: build(spec) for name, spec in config["ema"].items()}
    init = functools.partial(create, task, build(config["optim"]), averages)
    state = jax.eval_shape(init, _key(), batch)

    # Of one example more, times the batch: what is done once for all, a null text, hardly counts.
    def each_more(counted: Task) -> Counter[str]:
        step, rows = _gradient(counted), (_rows(batch, number) for number in (1, 2))
        one, two = (flops.count(step, state.params, frozen, part) for part in rows)
        return two - one

    of_model = each_more(_without_remat(config, task))
    of_step = each_more(task)

    # What grows with the batch is kept for each example; the rest are copies of the weights.
    saved = [_saved(task, state.params, frozen, _rows(batch, number)) for number in (1, 2)]
    each = saved[1] - saved[0]
    return Work(
        config=config,
        task=task,
        batch=batch,
        frozen=frozen,
        state=state,
        model_flops=_times(of_model, config["batch"]),
        flops=sum(of_step.values()) * config["batch"],
        saved=each * config["batch"],
        copies=max(saved[0] - each, 0.0),
    )


def batch_of(config: Mapping[str, Any], task: Any) -> Raw:
    """Shapes of a config's global batch: images, labels and tokens.

    Latents or codes stand in place of images where their first stage is not there.

    Raises:
      ConfigError: the network reads what a CLIP makes, which is not there.
    """

    def of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config["batch"], *shape), dtype)

    batch = {}
    first = getattr(task, FIRST, None)
    if first is None and hasattr(task.model, "image_codes"):
        batch["codes"] = of(task.model.grid**2)
    else:
        reader = task if first is None or isinstance(first, Perceptual) else first
        batch["image"] = of(*reader.shape, dtype=jnp.float32)
    if "label" in task.needs or task.num_classes:
        batch["label"] = of()
    if {"tokens", "caption"} & set(task.needs):
        batch["tokens"] = of(_text_length(config, task))
    lacking = sorted({"clip_image", "clip_text"} & set(task.needs))
    if lacking:
        raise ConfigError(f"the network reads {' and '.join(lacking)}, which a CLIP makes: name its "
                          "folder in config.first_stage")
    return batch


def _text_length(config: Mapping[str, Any], task: Any) -> int:
    """How many tokens a text has: as the network says, or the tokenizer, or CLIP's."""
    tokenizer = config["data"]["decode"].get("tokenizer", {})
    of_network = getattr(task.model, "text_length", None)
    return of_network or tokenizer.get("length") or tokenizer.get("context") or CLIP_LENGTH


def candidates(work: Work, chips: int) -> Iterator[Layout]:
    """Every layout of so many chips that divides the batch; tensor only where rules use it."""
    rows = work.config["batch"] // work.config["accumulate"]
    for tensor in TENSOR if work.tensor_parallel else (1,):
        shares = chips // tensor  # of the batch
        if chips % tensor or rows % shares:
            continue
        for fsdp in (2**power for power in range(shares.bit_length())):
            if shares % fsdp:
                break
            yield Layout(shares // fsdp, fsdp, tensor)
            if fsdp > 1:
                yield Layout(shares // fsdp, fsdp, tensor, "use")


@dataclass(frozen=True)
class Estimate:
    """(1) and (2) of a layout, in bytes and seconds; `parts` are those of the memory."""

    layout: Layout
    parts: Mapping[str, float]
    compute: float
    traffic: float

    @property
    def memory(self) -> float:
        """(1)."""
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """(2)."""
        return max(self.compute, self.traffic)

    def fits(self, chip: Chip) -> bool:
        """Whether (1) leaves room in a chip's memory."""
        return self.memory <= ROOM * chip.memory


def ranked(work: Work, machine: Topology, layouts: Iterable[Layout]) -> list[Estimate]:
    """Estimates of layouts, the best first: the fastest that fit, then those of least memory."""

    # Of those that do not fit, the smallest has the best chance, for (1) is an estimate.
    def order(estimate: Estimate) -> tuple[bool, float, float]:
        fits = estimate.fits(machine.chip)
        return not fits, estimate.seconds if fits else estimate.memory, estimate.traffic

    return sorted((estimate_of(work, layout, machine) for layout in layouts), key=order)


def estimate_of(work: Work, layout: Layout, machine: Topology) -> Estimate:
    """What a layout needs on each chip."""
    mesh = AbstractMesh(layout.sides, shard.AXES, axis_types=(AxisType.Auto,) * 3)
    memory = _memory(work, layout, stored(work, mesh), machine.chips)
    compute = work.flops / machine.chips / machine.chip.flops
    return Estimate(layout, memory, compute, _traffic(work, layout, memory["parameters"], machine))


def _memory(work: Work, layout: Layout, state: dict[str, float], chips: int) -> dict[str, float]:
    """(1), part by part; `state` are bytes of the train state on a chip."""
    weights = size(work.state.params) / layout.tensor
    late = layout.gather == "use"
    gathered = 0.0
    if layout.fsdp > 1:
        gathered = 2 * _largest_layer(work) / layout.tensor if late else weights
    return state | {
        "gathered": gathered,
        "gradients": state["parameters"] if late else weights,
        "activations": work.saved / work.config["accumulate"] / chips,
        # With their gradients.
        "copies": 2 * work.copies / layout.tensor / (layout.fsdp if late else 1),
    }


def _largest_layer(work: Work) -> float:
    """Bytes of the largest array that is gathered at once: its share of one layer in a loop."""
    # Blocks in a loop are stacked in one array, of which a step of the loop gathers a row.
    leaves = jax.tree.leaves(work.state.params)
    layers = max((leaf.shape[0] for leaf in leaves if leaf.ndim > 2), default=1)
    largest = max(size(leaf) for leaf in leaves)
    return largest / (layers if work.config["model"].get("scan") else 1)


def _traffic(work: Work, layout: Layout, parameters: float, machine: Topology) -> float:
    """Seconds of the collectives in (2); `parameters` are bytes of them on a chip."""
    seconds = functools.partial(_seconds, machine, layout)
    accumulate = work.config["accumulate"]
    weights = size(work.state.params) / layout.tensor
    gathers = 2 * accumulate if layout.gather == "use" else 1  # forwards and backwards
    total = gathers * seconds("all-gather", weights, "fsdp")
    total += accumulate * seconds("reduce-scatter", weights, "fsdp")
    total += seconds("all-reduce", parameters, "data")
    if layout.tensor > 1:
        # Four sums a block, two each way (1909.08053), each taken for a quarter of what it keeps.
        total += 4 * seconds("all-reduce", work.saved / machine.chips / 4, "tensor")
    return total


def stored(work: Work, mesh: Mesh | AbstractMesh) -> dict[str, float]:
    """Bytes of the train state on one device, part by part."""
    return {
        name: on_chip(getattr(work.state, part), mesh, part, work.rules)
        for name, part in STORED.items()
    }


def on_chip(shapes: Any, mesh: Mesh | AbstractMesh, path: str, rules: shard.Rules) -> float:
    """Bytes of a part of the state on one device; rules that decide nothing in it are left out."""
    total = 0.0
    for keys, leaf in jax.tree_util.tree_leaves_with_path({path: shapes}):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        sharding = shard.placed(mesh, name, leaf.shape, rules)
        total += math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def size(tree: Any) -> float:
    """Bytes of a pytree of shapes."""
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def _seconds(machine: Topology, layout: Layout, kind: str, held: float, axis: str) -> float:
    """Of a collective along an axis of the mesh, whose chips lie in row-major order."""
    number = shard.AXES.index(axis)
    chips = np.arange(machine.chips).reshape(layout.sides)
    group = np.moveaxis(chips, number, 0).reshape(layout.sides[number], -1)[:, 0]
    coordinates = [tuple(int(i) for i in np.unravel_index(chip, machine.shape)) for chip in group]
    return collective_seconds(machine, kind, held, coordinates)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _rows(batch: Raw, number: int) -> Raw:
    """Shapes of a batch of so many examples."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype), batch)


def _times(counts: Counter[str], factor: int, divisor: int = 1) -> Counter[str]:
    return Counter({layer: number * factor // divisor for layer, number in counts.items()})


def _without_remat(config: Mapping[str, Any], task: Task) -> Task:
    """The task of a network that recomputes nothing."""
    if "model" not in config:
        return task
    model = {key: value for key, value in config["model"].items() if key != "remat"}
    return task_of({**config, "model": model})


def _loss(task: Task, params: Params, frozen: Params, batch: Raw) -> Array:
    """Of a step, which gives a task its memory beside what is frozen."""
    if task.memory():
        frozen = {**(frozen or {}), "memory": dict(task.memory())}
    return task.loss(params, frozen, batch, jax.random.key(0), True)[0]


def _gradient(task: Task) -> Callable[[Params, Params, Raw], Any]:
    """The part of a train step that has products."""

    def step(params: Params, frozen: Params, batch: Raw) -> Any:
        return jax.value_and_grad(lambda p: _loss(task, p, frozen, batch))(params)

    return step


def _saved(task: Task, params: Params, frozen: Params, batch: Raw) -> float:
    """Bytes that the backward pass of a batch keeps, without the weights themselves."""

    def forward(params: Params, frozen: Params, batch: Raw) -> Any:
        return jax.vjp(lambda p: _loss(task, p, frozen, batch), params)[1]

    residuals = jax.eval_shape(forward, params, frozen, batch)
    weights = Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
    arrays = Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(residuals))
    # The weights are among the residuals, and are counted as weights.
    beside = (arrays - weights).elements()
    return float(sum(math.prod(shape) * dtype.itemsize for shape, dtype in beside))
