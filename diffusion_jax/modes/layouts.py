"""Layouts of a train step over chips, compared without a compiler: memory, traffic and time that follow from its jaxpr.

With n = data x fsdp x tensor chips, P the bytes of the weights, S of all that is stored (weights, moments, averages), A those
that the backward pass keeps for a whole batch, F the operations of a step with what it recomputes:

    memory  S / fsdp + gradients + gathered weights + A / n + copies of weights       (1)
    time    max(F / n / peak, gathers and scatters + sums of gradients over data)     (2)

Gathered at once (gather='step') weights and gradients are P each, layer by layer ('use') the largest layer and P / fsdp. (1)
leaves out what a compiler needs beside A, (2) memory traffic: they choose what to compile, and are all there is for GPUs.
"""
from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from diffusion_jax.build import ConfigError, build
from diffusion_jax.cost import flops
from diffusion_jax.cost.chips import Topology, collective_seconds
from diffusion_jax.train import shard
from diffusion_jax.train.checkpoint import available, config_of
from diffusion_jax.train.state import create, task_of
from diffusion_jax.types import Params, Raw, Task, TrainState

FSDP: shard.Rules = ((".*", "fsdp"),)
ROOM = 0.94                                                   # of a chip's memory that (1) may fill


class Layout(NamedTuple):
    """Chips along each axis of the mesh, and when weights are gathered."""

    data: int
    fsdp: int
    tensor: int
    gather: str = "step"

    def __str__(self) -> str:
        return f"{self.data} x {self.fsdp} x {self.tensor}" + (f", gather={self.gather}" if self.fsdp > 1 else "")


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
      copies: bytes that it keeps whatever the batch, beside the weights: weights stacked for a loop, split as they are.
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
        old = self.config["batch"]
        config = {**self.config, "batch": batch}
        model = Counter({layer: n * batch // old for layer, n in self.model_flops.items()})
        return replace(self, config=config, batch=batch_of(config, self.task), model_flops=model, flops=self.flops * batch / old,
                       saved=self.saved * batch / old)

    @property
    def rules(self) -> shard.Rules:
        """The config's rules of sharding, or fsdp where it replicates."""
        rules = tuple(map(tuple, self.config["sharding"]))
        return rules if any(spec != "replicate" for _, spec in rules) else FSDP

    @property
    def tensor_parallel(self) -> bool:
        """Whether a rule splits products."""
        return any("tensor" in str(spec) for _, spec in self.rules)


def work_of(config: Mapping[str, Any]) -> Work:
    """Traces the train step of a config; compiles and reads nothing but the first stage's config."""
    config, frozen = _with_first_stage(config)
    task = task_of(config)
    batch = batch_of(config, task)
    emas = {name: build(spec) for name, spec in config["ema"].items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(functools.partial(create, task, build(config["optim"]), emas), key, batch)
    one = _rows(batch, 1)
    bare = task_of({**config, "model": {k: v for k, v in config["model"].items() if k != "remat"}}) if "model" in config else task
    model = Counter({layer: n * config["batch"] for layer, n in flops.count(_step(bare), state.params, frozen, one).items()})
    real = sum(flops.count(_step(task), state.params, frozen, one).values()) * config["batch"]
    alone, pair = (_saved(task, state.params, frozen, _rows(batch, n)) for n in (1, 2))
    each = pair - alone
    return Work(config, task, batch, frozen, state, model, real, each * config["batch"], max(alone - each, 0.0))


def batch_of(config: Mapping[str, Any], task: Any) -> Raw:
    """Shapes of a config's global batch: images, or latents or codes where the first stage is not there; labels and tokens."""
    def of(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config["batch"], *shape), dtype)

    batch, first = {}, getattr(task, "first_stage", None)
    if hasattr(task.model, "image_codes") and first is None:
        batch["codes"] = of(task.model.grid**2)
    else:
        batch["image"] = of(*(task.shape if first is None else first.shape), dtype=jnp.float32)
    if "label" in task.needs or task.num_classes:
        batch["label"] = of()
    if {"tokens", "caption"} & set(task.needs):
        tokenizer = config["data"]["decode"].get("tokenizer", {})
        found = (getattr(task.model, "text_length", None), tokenizer.get("length"), tokenizer.get("context"), 77)
        batch["tokens"] = of(next(n for n in found if n))
    return batch


def candidates(work: Work, chips: int) -> Iterator[Layout]:
    """Every layout of so many chips that the batch divides among, tensor up to 8 where the config has rules for it."""
    rows = work.config["batch"] // work.config["accumulate"]
    for tensor in (1, 2, 4, 8) if work.tensor_parallel else (1,):
        for fsdp in (f for f in range(1, chips // tensor + 1) if chips % (f * tensor) == 0 and f & (f - 1) == 0):
            if rows % (chips // tensor) == 0:
                for gather in ("step", "use") if fsdp > 1 else ("step",):
                    yield Layout(chips // fsdp // tensor, fsdp, tensor, gather)


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


def estimate(work: Work, layout: Layout, topology: Topology) -> Estimate:
    """What a layout needs on each chip."""
    mesh = AbstractMesh((layout.data, layout.fsdp, layout.tensor), shard.AXES, axis_types=(AxisType.Auto,) * 3)
    stored = {name: on_chip(getattr(work.state, field), mesh, field, work.rules)
              for name, field in (("parameters", "params"), ("optimiser", "opt_state"), ("averages", "ema"))}
    weights, accumulate = size(work.state.params) / layout.tensor, work.config["accumulate"]
    largest = max(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(work.state.params)) / layout.tensor
    scanned = max((x.shape[0] for x in jax.tree.leaves(work.state.params) if x.ndim > 2), default=1)
    split = layout.fsdp > 1
    whole = weights if layout.gather == "step" else 2 * largest / (scanned if work.config["model"].get("scan") else 1)
    parts = stored | {
        "gathered": whole if split else 0.0,
        "gradients": weights if layout.gather == "step" else stored["parameters"],
        "activations": work.saved / accumulate / topology.chips,
        "copies": 2 * work.copies / layout.tensor / (layout.fsdp if layout.gather == "use" else 1),      # and their gradients
    }
    times = 2 * accumulate if layout.gather == "use" else 1
    seconds = functools.partial(_seconds, topology, layout)
    gather = times * seconds("all-gather", weights, "fsdp") + accumulate * seconds("reduce-scatter", weights, "fsdp")
    reduce = seconds("all-reduce", stored["parameters"], "data")
    tensor = 4 * seconds("all-reduce", work.saved / topology.chips / 4, "tensor") if layout.tensor > 1 else 0.0
    return Estimate(layout, parts, work.flops / topology.chips / topology.chip.flops, gather + reduce + tensor)


def on_chip(shapes: Any, mesh: Mesh | AbstractMesh, path: str, rules: shard.Rules) -> float:
    """Bytes of a part of the state on one device; rules that decide nothing in it are left out."""
    total = 0.0
    for name, leaf in jax.tree_util.tree_leaves_with_path({path: shapes}):
        where = shard.placed(mesh, jax.tree_util.keystr(name, simple=True, separator="/"), leaf.shape, rules)
        total += math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return total


def size(tree: Any) -> float:
    """Bytes of a pytree of shapes."""
    return float(sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def _seconds(topology: Topology, layout: Layout, kind: str, held: float, axis: str) -> float:
    """Of a collective along an axis of the mesh, its first group's chips lying in row-major order."""
    ids = np.arange(topology.chips).reshape(layout[:3])
    group = np.moveaxis(ids, shard.AXES.index(axis), 0).reshape(layout[shard.AXES.index(axis)], -1)[:, 0]
    places = [tuple(int(i) for i in np.unravel_index(chip, topology.shape)) for chip in group]
    return collective_seconds(topology, kind, held, places)


def _rows(batch: Raw, number: int) -> Raw:
    """Shapes of a batch of so many examples."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((number, *x.shape[1:]), x.dtype), batch)


def _step(task: Task) -> Any:
    """The part of a train step that has products."""
    def step(params: Params, frozen: Params, batch: Raw) -> Any:
        known = {**(frozen or {}), "memory": dict(task.memory())} if task.memory() else frozen
        return jax.value_and_grad(lambda p: task.loss(p, known, batch, jax.random.key(0), True)[0])(params)

    return step


def _saved(task: Task, params: Params, frozen: Params, batch: Raw) -> float:
    """Bytes that the backward pass of a batch keeps, without the weights themselves."""
    known = {**(frozen or {}), "memory": dict(task.memory())} if task.memory() else frozen

    def forward(params: Params, batch: Raw) -> Any:
        return jax.vjp(lambda p: task.loss(p, known, batch, jax.random.key(0), True)[0], params)[1]

    weights = Counter((x.shape, x.dtype) for x in jax.tree.leaves(params))
    kept = Counter((x.shape, x.dtype) for x in jax.tree.leaves(jax.eval_shape(forward, params, batch)))
    return float(sum(n * math.prod(shape) * dtype.itemsize for (shape, dtype), n in (kept - weights).items()))


def _with_first_stage(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Params]:
    """The config with its first stage's task, and the shapes of its weights; without, where its folder is not there.

    Raises:
      ConfigError: a first stage that is no autoencoder.
    """
    if "first_stage" not in config:
        return config, None
    named = config["first_stage"]
    folder, changes = (named, {}) if isinstance(named, str) else (named["folder"], {**named})
    if not Path(folder).is_dir() or not available(folder):
        return {key: value for key, value in config.items() if key != "first_stage"}, None
    stored = config_of(folder)
    stored["task"] |= {key: value for key, value in changes.items() if key != "folder"}
    first = task_of(stored)
    if not hasattr(first, "shape"):
        raise ConfigError(f"plans know autoencoders as first stages, not the {type(first).__name__} in {folder}")
    images = {"image": jax.ShapeDtypeStruct((1, *first.shape), jnp.float32)}
    params = jax.eval_shape(first.init, jax.eval_shape(lambda: jax.random.key(0)), images)
    spec = stored["task"] | ({"model": stored["model"]} if "model" in stored else {})
    return {**config, "task": {**config["task"], "first_stage": spec}}, {"first_stage": params}
