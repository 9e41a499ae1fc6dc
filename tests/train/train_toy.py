"""A task and a data stream small enough to train in milliseconds, for this folder's tests and the processes that they start.

It poses as the module diffusion_jax.toy and as parts of pages, because a config may name nothing else of the package.
"""
from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.parts import KINDS
from diffusion_jax.train import ema, loop, optim, shard
from diffusion_jax.train.checkpoint import Checkpoints
from diffusion_jax.train.log import Writer
from diffusion_jax.train.state import task_of

MODULE = "diffusion_jax.toy"
INPUTS = 8


@dataclasses.dataclass(frozen=True)
class Net:
    """x [B, 8] -> [B, 8] through `depth` layers, whose parameters have a leading layer dimension as `nn.scan` makes them."""

    width: int = 16
    depth: int = 2

    def init(self, key):
        shapes = [(INPUTS, self.width), (self.depth, self.width, self.width), (self.width, INPUTS)]
        ends = np.cumsum([np.prod(shape) for shape in shapes])
        drawn = jax.random.uniform(key, (ends[-1],), minval=-0.4, maxval=0.4)       # one draw compiles faster than three
        first, inner, last = (part.reshape(shape) for part, shape in zip(jnp.split(drawn, ends[:-1]), shapes, strict=True))
        return {"first": {"kernel": first, "bias": jnp.zeros(self.width)}, "inner": {"kernel": inner}, "last": {"kernel": last}}

    def __call__(self, params, x):
        x = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
        x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["inner"]["kernel"])
        return x @ params["last"]["kernel"]


@dataclasses.dataclass(frozen=True)
class Toy:
    """Mean squared error under input noise; noise = 0 uses no key."""

    model: Net
    noise: float = 0.1

    def init(self, key, batch):
        return self.model.init(key)

    def loss(self, params, frozen, batch, key, train):
        x = batch["image"]
        if self.noise:
            x = x + self.noise * jax.random.uniform(key, x.shape, minval=-1)
        error = self.model(params, x) - batch["target"]
        return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}

    def memory(self):
        return {}

    def project(self, params):
        return params


for _type in (Net, Toy):
    _type.__module__ = MODULE
sys.modules[MODULE] = sys.modules[__name__]
KINDS |= {f"{MODULE}:Net": "networks", f"{MODULE}:Toy": "tasks"}


def config(**changes: Any) -> dict[str, Any]:
    """A run's config, changed at its top level."""
    return {"model": {"name": f"{MODULE}:Net", "width": 16, "depth": 2}, "task": {"name": f"{MODULE}:Toy", "noise": 0.1},
            "seed": 3, "steps": 12} | changes


def batch_of(step: int, size: int) -> dict[str, np.ndarray]:
    """Batch number `step`."""
    x = np.random.default_rng((7, step)).normal(size=(size, INPUTS)).astype(np.float32)
    return {"image": x, "target": np.sin(2 * x) + x[:, ::-1]}


def stream(start: int, sharding: jax.sharding.Sharding, size: int = 16, bad: int | None = None,
           end: int | None = None) -> Iterator[tuple[int, dict[str, jax.Array]]]:
    """Endless batches; NaN in number `bad`; none from number `end` on."""
    step = start
    while step != end:
        arrays = batch_of(step, size)
        if step == bad:
            arrays["image"][0, 0] = np.nan
        yield step, {key: jax.make_array_from_callback(x.shape, sharding, x.__getitem__) for key, x in arrays.items()}
        step += 1


def arguments(config: dict[str, Any], mesh: jax.sharding.Mesh, size: int = 16, bad: int | None = None, end: int | None = None,
              **changes: Any) -> dict[str, Any]:
    """Everything that `loop.steps` wants besides the checkpoints and the writer."""
    return {"task": task_of(config), "optimizer": optim.optimizer("adamw", lr=1e-2, clip=1.0, weight_decay=0.01),
            "emas": {"slow": ema.Constant(0.9), "power": ema.Power(0.1)},
            "batches": functools.partial(stream, size=size, bad=bad, end=end),
            "total": config["steps"], "mesh": mesh, "seed": config["seed"], "log_every": 1} | changes


def train(workdir: Any, stop_at: int | None = None, every: int = 4, keep: int = 3, keep_every: int | None = None,
          devices: int = 1, **changes: Any) -> tuple[int, dict[str, Any] | None]:
    """Runs to the end or leaves the loop at step `stop_at`, which is not saved; (last step, its state on the host)."""
    run = config(**changes.pop("config", {}))
    mesh = changes.pop("mesh", None) or shard.make_mesh(devices=jax.devices()[:devices])
    last, host = 0, None
    saved = Checkpoints(workdir, run, every=every, keep=keep, keep_every=keep_every, may_change=("steps",))
    with saved as checkpoints, Writer(workdir) as writer:
        for last, state in loop.steps(**arguments(run, mesh, **changes), checkpoints=checkpoints, writer=writer):
            if last in (stop_at, run["steps"]):
                host = jax.tree.map(lambda x: np.asarray(x).copy(), state)
            if last == stop_at:
                break
    return last, host
