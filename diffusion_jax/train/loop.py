"""The training loop: a generator of (step, state), so that what happens besides training is written where it is read.

    for step, state in loop.steps(task=task, ..., total=400_000):
        if step % 10_000 == 0:
            writer.images(step, {"samples": sample(state.ema["ema"])})

Whatever happens, a restart goes on from the last checkpoint and gives, bit for bit, the run that was never interrupted: state_k
is a function of (config, k), because keys are fold_in(key(seed), k) and batches come by step. Each iteration does, in this order,

    1. launch step k               (the device now has work)
    2. fetch the metrics of k - 1  (so the host never waits for the step it has just launched), stop if they are not finite, log
    3. at a checkpoint or preemption: fetch those of k too, stop if they are not finite, log
    4. yield (k, state)            (before it is saved: a run that resumes has what its caller made of the steps before)
    5. at a checkpoint: save; at a preemption: save, exit with code 0
"""
from __future__ import annotations

import dataclasses
import functools
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, Sharding

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import partition
from diffusion_jax.train import shard, stop
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.ema import Profile
from diffusion_jax.train.log import Console, Writer, stamped
from diffusion_jax.train.powersgd import AXIS, RULES, Compressed
from diffusion_jax.train.state import create
from diffusion_jax.train.step import make_step
from diffusion_jax.types import Array, Params, Raw, Task, TrainState

Factory = Callable[[int, Sharding], Iterator[tuple[int, Raw]]]
"""(first step, sharding of the batch axis) -> endless (step, batch of global arrays): `partial(data.loader.stream, batches)`."""

INIT = 2**31 - 1                     # folded into the seed for the initial parameters: no step has this number
FINITE = ("loss", "grad_norm", "update_norm")


def steps(*, task: Task, optimizer: optax.GradientTransformation | Compressed, emas: Mapping[str, Profile], batches: Factory,
          checkpoints: Checkpoints, writer: Writer, total: int, mesh: Mesh, rules: shard.Rules = shard.REPLICATE,
          frozen: Params = None, initial: Mapping[str, Params] | None = None, seed: int = 0, accumulate: int = 1,
          loss_scale: float = 1.0, log_every: int = 100, gather: str = "step",
          activations: partition.Rules = ()) -> Iterator[tuple[int, TrainState]]:
    """Trains from the newest checkpoint, or from the start, to step `total`; yields (step, state) after each step.

    The state is donated to the next step: use it before asking for the next, keep none of its arrays. A step is saved after it
    was yielded: who leaves the loop there leaves it unsaved. When `total` is reached already, yields nothing.

    Args:
      task, optimizer, emas, seed, accumulate, loss_scale, gather, activations: see `step.make_step`.
      batches: factory of the data stream.
      checkpoints: where to resume from and save to; the caller closes it.
      writer: gets the metrics; the caller closes it, and may write to it between steps.
      total: updates in the whole run.
      mesh, rules: see `shard`.
      frozen: parameters that are used but not trained, copied to every device unless they lie on this mesh already.
      initial: what a new run starts from, see `state.create`.
      log_every: updates between logged metrics. These are one step's own, not averages, so that resuming cannot change them.

    Raises:
      ConfigError: a loss or gradient that is not finite (nothing is saved from that step on); data that ends early; whatever
        `shard.shardings`, `Checkpoints.restore_latest` and `step.make_step` refuse.
      stop.Saved: once the state is saved, after a signal (stop.py) or a cluster's notice of preemption.
    """
    if isinstance(optimizer, Compressed):
        optimizer, rules = dataclasses.replace(optimizer, shards=mesh.shape[AXIS]), (*RULES, *rules)
    state, stream, size, shardings = _begin(task, optimizer, emas, batches, checkpoints, mesh, rules, seed, initial)
    start = int(state.step)
    writer.resume(start)
    console = Console(start, total, size)
    console.say(_overview(state.params, start, total))
    run = _Run(checkpoints, writer, console, log_every)
    frozen = shard.replicate(frozen, mesh)
    of_frozen = jax.tree.map(lambda x: x.sharding, frozen)
    train = make_step(task, optimizer, emas, mesh, shardings, accumulate, seed, loss_scale, gather, activations, of_frozen)
    try:
        with _Preemption() as preemption:
            for step in range(start + 1, total + 1):
                state, metrics = train(state, frozen, _next(stream, step - 1))
                run.finish()
                run.launched(step, metrics)
                stopping = preemption.reached(step)
                due = stopping or step == total or checkpoints.due(step)
                if due:
                    run.finish()
                with console.pause():
                    yield step, state
                    if due:
                        checkpoints.save(state, examples=step * size)
                if stopping:
                    checkpoints.wait()
                    logging.warning("stopped by %s at step %d of %d, saved in %s: run the same command to go on",
                                    stop.NAMES[stopping], step, total, checkpoints.folder)
                    raise stop.Saved(stopping)
    finally:
        _close(stream)
        console.close()
        checkpoints.wait()


def _begin(task: Task, optimizer: optax.GradientTransformation | Compressed, emas: Mapping[str, Profile], batches: Factory,
           checkpoints: Checkpoints, mesh: Mesh, rules: shard.Rules, seed: int,
           initial: Mapping[str, Params] | None) -> tuple[TrainState, Iterator, int, Any]:
    """(state, data from its step on, size of a batch, shardings of the state): restored, or made anew, on the mesh."""
    split = shard.batch_sharding(mesh)
    start = checkpoints.latest or 0
    stream = batches(start, split)
    batch = _next(stream, start)
    make = functools.partial(create, task, optimizer, emas)
    key = jax.random.fold_in(jax.random.key(seed), INIT)
    initial = jax.tree.map(np.asarray, initial)          # from the host, alike in all processes
    shapes = jax.eval_shape(make, key, batch, initial)
    shardings = shard.shardings(mesh, shapes, rules)
    abstract = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings)
    state = checkpoints.restore_latest(abstract)
    if state is None:
        state = jax.jit(make, out_shardings=shardings)(key, batch, initial)
    _close(stream)                   # its first batch is spent, and the newest checkpoint may not have been the one that read
    return state, batches(int(state.step), split), jax.tree.leaves(batch)[0].shape[0], shardings


class _Run:
    """Metrics of the last launched step, fetched, checked and logged one step late."""

    def __init__(self, checkpoints: Checkpoints, writer: Writer, console: Console, log_every: int):
        self._checkpoints, self._writer, self._console, self._log_every = checkpoints, writer, console, log_every
        self._pending: tuple[int, dict[str, Array]] | None = None

    def launched(self, step: int, metrics: dict[str, Array]) -> None:
        """Remembers the metrics of a step that may still be running."""
        self._console.launched(step)
        self._pending = (step, metrics)

    def finish(self) -> None:
        """Waits for the remembered step, if there is one.

        Raises:
          ConfigError: its loss, gradient or update is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        logged = step % self._log_every == 0
        values = jax.device_get(metrics if logged else {name: metrics[name] for name in FINITE})
        for name in FINITE:
            if not math.isfinite(values[name]):
                raise self._stop(step, name, float(values[name]))
        if logged:
            self._writer.scalars(step, values)
        speed = self._console.finished(step, float(values["loss"]) if logged else None)
        if speed is not None:
            self._writer.speeds(step, {"images_per_second": speed})

    def _stop(self, step: int, name: str, value: float) -> ConfigError:
        self._checkpoints.wait()
        last = self._checkpoints.latest
        good = f"the last good checkpoint is step {last} in {self._checkpoints.folder}" if last else "there is no checkpoint yet"
        return ConfigError(f"{name} is {value} at step {step}, stopped; {good}: try a lower lr, clipping or float32")


class _Preemption(stop.Later):
    """Whether to stop at this step: JAX's notice where it is distributed, else a signal. A context manager."""

    def __init__(self) -> None:
        self._distributed = jax.distributed.is_initialized()       # then JAX itself listens for SIGTERM
        super().__init__(self._distributed)

    def reached(self, step: int) -> int | None:
        """The signal to stop for, at the same step on all processes; to be called at every step."""
        if not self._distributed:
            return self.number
        from jax.experimental import multihost_utils

        if not multihost_utils.reached_preemption_sync_point(step):
            return None
        return self.number or signal.SIGTERM               # the notice may have come to another process


def _next(stream: Iterator[tuple[int, Raw]], step: int) -> Raw:
    """The batch of a step.

    Raises:
      ConfigError: the data has ended.
      RuntimeError: the stream gave the batch of another step.
    """
    item = next(stream, None)
    if item is None:
        raise ConfigError(f"the data ended before step {step}: a stream of batches is endless, repeat it")
    if item[0] != step:
        raise RuntimeError(f"the stream gave batch {item[0]} where batch {step} was due")
    return item[1]


def _close(stream: Any) -> None:
    """Stops the stream's threads, where it is a generator."""
    if hasattr(stream, "close"):
        stream.close()


def _overview(params: Params, start: int, total: int) -> str:
    """The table of parameters, and where the run begins."""
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    begins = f"resuming from step {start}" if start else "starting"
    return f"{table}\n{stamped(f'{begins}, {total} steps in all')}"
