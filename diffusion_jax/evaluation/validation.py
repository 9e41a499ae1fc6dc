"""The loss on held-out pictures while a run trains: of the same draws at every step, for ever.

Draw i of N, of a model that denoises, is of picture i mod M of the M held-out ones, and has

    eps_i = normal(fold_in(key, i)),   t_i = Q((p(i) + 1/2) / N)                                (1)

with Q the quantiles of the times of training and p a permutation that never changes. So the N times
are stratified, a picture that comes again has another time and other noise, and a draw depends on
nothing but its number and N: neither on the batch that it is in nor on the devices. Then

    val_loss            = 1/N sum_i loss_i                                                      (2)
    val_loss[0.2-0.4]   = the mean of those with 0.2 <= (p(i) + 1/2) / N < 0.4; 0 is clean      (3)

Where times are drawn by what a run remembers of its losses, which changes while it trains, Q is
uniform: importance weights make the expectation of training's loss that of uniform times too.

Any other task has its own `loss` with keys that never change, on batches of the run's own size,
each picture once; what it logs beside is logged here as well, `val_accuracy` for example.

All is of the average that a run is judged by, whose samples are shown and which others will open:
of weights that still move, what rises and falls from step to step would hide what is learned.
Nothing is dropped, mirrored, cropped at random or augmented, and a latent is the posterior's mean.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import to_unit
from diffusion_jax.data.rows import filled
from diffusion_jax.diffusion.times import Uniform
from diffusion_jax.nn import partition
from diffusion_jax.pipelines.sampling import per_image
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import Model
from diffusion_jax.tasks import kinds
from diffusion_jax.train import shard
from diffusion_jax.train.gather import at_use
from diffusion_jax.train.step import joined, split, with_memory
from diffusion_jax.types import Array, Memory, Params, Raw, WholeBatch

NUM = 256
"""Draws, where a page does not say how many."""
BINS = 5
"""Parts of (3), of equally many draws."""
SEED = 0
"""Of all draws, whatever the run's own is: the losses of two runs are of the same draws."""
POOL = 2**18
"""Times that the quantiles Q are taken from; their error is a quarter of a stratum of 256."""
LEAST = 16
"""Of them for each stratum, where there are many."""
RISE = 0.05
"""A rise at the end that is worth a sentence, as a share of all that the loss has varied."""


class Layout(NamedTuple):
    """How a run's arrays lie on its devices; static where one compiles.

    Attributes:
      mesh: the devices.
      shardings: of the parameters, leaf by leaf.
      gather: when weights that are stored split are gathered, 'step' or 'use' (train/step.py).
      activations: rules of nn/partition.py.
      parts: in which a batch is worked on, one after the other.
    """

    mesh: Mesh
    shardings: tuple[NamedSharding, ...]
    gather: str
    activations: tuple
    parts: int

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """For the time in which a program is traced."""
        mesh = self.mesh
        with (
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
            partition.activations(mesh, self.activations),
        ):
            yield

    def opened(self, params: Params) -> Params:
        """Parameters as a loss uses them, gathered as in training."""
        tree = jax.tree.structure(params)
        shardings = jax.tree.unflatten(tree, self.shardings)
        if self.gather == "use":
            return at_use(params, shardings)
        return jax.lax.with_sharding_constraint(params, jax.tree.map(shard.gathered, shardings))


@dataclass(frozen=True, eq=False)
class Validation:
    """What a run is validated on, and how.

    Attributes:
      every: steps between two.
      last: the step of a run that has one whatever `every` is.
      num: draws, or pictures where a task draws nothing of its own.
      batch: the run's examples per step.
      config: the run's page, for its devices.
      mesh: its devices.
      rows: the held-out pictures as they were decoded, M of each key.
    """

    every: int
    last: int
    num: int
    batch: int
    config: Mapping[str, Any]
    mesh: Mesh
    rows: Mapping[str, np.ndarray]

    def due(self, step: int) -> bool:
        """Whether a step has one."""
        return step % self.every == 0 or step == self.last

    def figures(self, model: Model, memory: Memory) -> dict[str, float]:
        """The losses (2) and (3), or what the task's own loss is and logs; of several processes all
        must call it, and all get the same.

        Args:
          model: with the parameters to validate on their devices, and its first stage anywhere.
          memory: what the run remembers, `TrainState.memory`.
        """
        # For this call only: training has its own copy on the devices.
        model = replace(
            model,
            first=shard.replicate(model.first, self.mesh),
            teacher=shard.replicate(model.teacher, self.mesh),
        )
        if isinstance(model.task, kinds.AtTimes):
            return self._of_draws(model)
        return self._of_batches(model, memory)

    def _of_draws(self, model: Model) -> dict[str, float]:
        levels = permutation(self.num)
        times = times_of(model.task, self.num)[levels]
        pictures = np.arange(self.num) % len(self.rows["image"])
        layout = self._layout(model, 1)
        size = self._size(layout, self.num)
        losses = []
        for first in range(0, self.num, size):
            index = filled(first, size, self.num)
            raw = {name: value[pictures[index]] for name, value in self.rows.items()}
            arrays = _placed((raw, index, times[index]), self.mesh)
            loss = np.asarray(_losses(model, layout, *arrays))
            losses.append(loss[: self.num - first])  # without those that filled the batch
        return by_level(np.concatenate(losses), levels)

    def _of_batches(self, model: Model, memory: Memory) -> dict[str, float]:
        # Only a loss of a whole batch needs all of it at once.
        accumulate = self.config["accumulate"]
        whole = isinstance(model.task, WholeBatch)
        layout = self._layout(model, accumulate if whole else 1)
        count = min(self.num, len(self.rows["image"]))
        size = self._size(layout, count)
        batches = max(1, count // size)
        # Spread over all; where there are fewer than devices they come again.
        index = np.arange(batches * size) * count // (batches * size)
        metrics = []
        for number, rows in enumerate(index.reshape(batches, size)):
            raw = _placed({name: value[rows] for name, value in self.rows.items()}, self.mesh)
            made = _metrics(model, layout, memory, raw, np.uint32(number))
            metrics.append({name: float(value) for name, value in made.items()})
        names = metrics[0]
        return {f"val_{name}": float(np.mean([one[name] for one in metrics])) for name in names}

    def _layout(self, model: Model, parts: int) -> Layout:
        config = self.config
        shardings = tuple(x.sharding for x in jax.tree.leaves(model.params))
        rules = _hashable(config.get("activations", ()))
        return Layout(self.mesh, shardings, config.get("gather", "step"), rules, parts)

    def _size(self, layout: Layout, count: int) -> int:
        """Of a batch, of `count` rows in all: what the devices hold at once in training, or less
        where there are fewer rows."""
        unit = self.mesh.shape["data"] * self.mesh.shape["fsdp"] * layout.parts
        most = self.batch * layout.parts // self.config["accumulate"]
        if most >= count:
            most = count // unit * unit
        return max(unit, most)


def of_page(config: Mapping[str, Any], task: Any, mesh: Mesh) -> Validation | None:
    """What a page says of its validation; None where it says nothing.

    Raises:
      ConfigError: held-out data that are not there, do not decode, or lack what the task reads.
    """
    section = config.get("validate")
    if not section:
        return None
    num = section.get("num", NUM)
    rows = list(held_out.records(config["data"], "test", num))
    lacks = [key for key in task.needs if key not in rows[0]]
    if lacks:
        raise ConfigError(
            f"config.validate: the model needs {lacks[0]!r}, which data.test lacks: give data that "
            "have it, or leave the section out"
        )
    arrays = {
        name: np.stack([row[name] for row in rows])
        for name, value in rows[0].items()
        if not isinstance(value, str)
    }
    # In a jitted program a label of no class would be NaN, or another class.
    if "label" in task.needs and task.num_classes <= int(np.max(arrays["label"])):
        most = int(np.max(arrays["label"]))
        raise ConfigError(
            f"config.validate: data.test has label {most}, the model {task.num_classes} classes: "
            "give the test split of the same data"
        )
    return Validation(section["every"], config["steps"], num, config["batch"], config, mesh, arrays)


# Draws --------------------------------------------------------------------------------------------


def times_of(task: kinds.AtTimes, num: int) -> np.ndarray:
    """Q of (1) at the middles of `num` equal parts: [num] times, the cleanest first."""
    # Of a memory's times the weighted losses are those of uniform times.
    times = Uniform() if task.memory() else task.times
    each = max(LEAST, POOL // num)
    key = jax.random.fold_in(jax.random.key(SEED), 1)
    pool, _ = times.draw(task.process, {}, key, each * num)
    return np.sort(np.asarray(pool))[each // 2 :: each]


def permutation(num: int) -> np.ndarray:
    """p of (1): which part of the times each draw has, int [num]."""
    key = jax.random.fold_in(jax.random.key(SEED), 2)
    return np.asarray(jax.random.permutation(key, num))


def by_level(losses: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    """(2) and (3) of losses [N] at the parts `levels` of the times, [N]."""
    losses = np.asarray(losses, np.float64)
    figures = {"val_loss": float(np.mean(losses))}
    # By whole numbers: draw j of N lies in part j BINS // N.
    bins = levels * BINS // len(levels)
    for number in range(BINS):
        chosen = losses[bins == number]
        if len(chosen):
            name = f"val_loss[{number / BINS:.1f}-{(number + 1) / BINS:.1f}]"
            figures[name] = float(np.mean(chosen))
    return figures


@functools.partial(jax.jit, static_argnames=("layout",))
def _losses(model: Model, layout: Layout, raw: Raw, index: Array, t: Array) -> Array:
    """The loss of each draw, [b]: draws `index` [b] of pictures [b, ...] at times t [b]."""
    task = model.task
    key = jax.random.key(SEED)
    noise = per_image(index)
    with layout.in_force():
        raw = task.prepare(_in_range(raw), model.frozen, None)
        # At a level, 0, as in sampling: without one conditions are augmented as in training.
        raw = task.cond.prepare(raw, jax.random.fold_in(key, 3), noise, 0.0)
        eps = noise(key, raw["image"].shape)
        terms = task.terms(layout.opened(model.params), raw, t, eps)
        return jax.lax.with_sharding_constraint(terms["loss"], shard.replicated(layout.mesh))


@functools.partial(jax.jit, static_argnames=("layout",))
def _metrics(
    model: Model, layout: Layout, memory: Memory, raw: Raw, number: Array
) -> dict[str, Array]:
    """Loss, and what the task logs, of batch `number`."""
    task = model.task
    key = jax.random.fold_in(jax.random.key(SEED), number)
    frozen = with_memory(model.frozen, memory)
    raw = _in_range(raw)
    with layout.in_force():
        params = layout.opened(model.params)
        if layout.parts == 1:
            loss, metrics = task.loss(params, frozen, raw, key, False)
        else:
            outputs = _outputs(model, layout, params, frozen, raw, key)
            loss, metrics = task.overall(params, frozen, outputs, False)
        made = {"loss": loss, **metrics}
        return jax.lax.with_sharding_constraint(made, shard.replicated(layout.mesh))


def _outputs(
    model: Model, layout: Layout, params: Params, frozen: Params, raw: Raw, key: Array
) -> Params:
    """What the loss of a whole batch reads of its examples, made in parts."""
    micro = jax.tree.map(lambda x: split(x, layout.parts, layout.mesh), raw)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(layout.parts))

    def of_part(item: tuple[Raw, Array]) -> Params:
        return model.task.outputs(params, frozen, *item, False)

    made = jax.lax.map(of_part, (micro, keys))
    return jax.tree.map(lambda x: joined(x, layout.mesh), made)


def _in_range(raw: Raw) -> Raw:
    """Pictures of bytes as numbers in [-1, 1]; latents as they are."""
    image = raw["image"]
    return {**raw, "image": to_unit(image) if image.dtype == jnp.uint8 else image}


def _placed(tree: Any, mesh: Mesh) -> Any:
    """Arrays [b, ...] of the host, alike in all processes, split over the devices."""
    sharding = shard.batch_sharding(mesh)

    def put(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def _hashable(rules: Any) -> Any:
    """Lists in lists as tuples."""
    return tuple(map(_hashable, rules)) if isinstance(rules, (list, tuple)) else rules


# What a run's curve says --------------------------------------------------------------------------


def summary(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a report says of the validation of a run; nothing where there was none.

    Args:
      lines: those of metrics.jsonl, each with its 'step'.

    Returns:
      The loss at the end, the smallest and its step, 'losses' both curves, and 'warnings' a
      sentence where it has risen since.
    """
    curve = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    if not curve:
        return {}
    step, least = min(curve, key=lambda point: (point[1], point[0]))
    end, last = curve[-1]
    figures: dict[str, Any] = {
        "validation loss": last,
        "smallest validation loss": least,
        "step of the smallest": int(step),
        "losses": {
            name: [[int(line["step"]), line[name]] for line in lines if name in line]
            for name in ("loss", "val_loss")
        },
    }
    highest = max(loss for _, loss in curve)
    if last - least > RISE * (highest - least):
        figures["warnings"] = [
            f"the validation loss has risen since step {int(step)}, from {least:.4g} to {last:.4g} "
            f"at step {int(end)}: what is learned since then is of the training pictures alone"
        ]
    return figures
