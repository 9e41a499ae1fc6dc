"""Mode `train`: config -> checkpoints, metrics, sample grids, and a report at the end.

The same command resumes: everything is in the working folder.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import image
from diffusion_jax.data.loader import stream
from diffusion_jax.modes import config as page
from diffusion_jax.modes import embedder, evaluate, first_stage
from diffusion_jax.pipelines.diffusion import conditions, generate
from diffusion_jax.pipelines.latent import decoded
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train import loop, shard
from diffusion_jax.train.checkpoint import Checkpoints, load
from diffusion_jax.train.log import Trace, Writer
from diffusion_jax.train.posthoc import Snapshots
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Params, Raw, Task, TrainState

SAMPLES = 200
"""Measured while training, where a page says how often and not how many."""


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Trains to config.steps, sampling on the way where the task makes images, then evaluates.

    Args:
      config: a whole run's config.
      workdir: the run's folder.
      options: profile_steps, '10:15'.

    Raises:
      ConfigError: anything that the user can mend; all that can be known before is checked before anything compiles.
    """
    trace = Trace(workdir, options["profile_steps"]) if "profile_steps" in options else None
    for key in options.keys() - {"profile_steps"}:
        raise ConfigError(f"--{key} is for sampling: a training run is described by its config (--config.<key>=<value>)")
    config = plain(config)
    page.check(config)
    config, frozen = first_stage.joined(config, workdir)
    task = task_of(config)
    images = isinstance(task, Diffusion)
    if images != ("sample" in config):
        said = "images: it needs" if images else "no images: leave out"
        raise ConfigError(f"a {type(task).__name__} makes {said} config.sample")
    recipe = page.recipe_of(config, {}) if images else None
    emas = {name: build(spec) for name, spec in config["ema"].items()}
    which = next(iter(emas), "params")
    batches = page.batches_of(config, jax.process_index(), jax.process_count())
    mesh = shard.make_mesh(**config["mesh"])
    page.fits(task, batches, mesh, config["accumulate"])
    if recipe:
        recipe.check(task)
        num = config["sample"]["num"]
        raw = conditions(task, num, given=page.derived_conditions(task, config["data"], num, frozen))
    said = config["evaluate"]
    numbers = said["num"], said.get("samples", SAMPLES) if said.get("every") else 0
    evaluate.ready(task, config, [number for number in numbers if number], len(batches.source.names or ()))
    saved = Checkpoints(workdir, config, **config["checkpoint"], may_change=page.MAY_CHANGE)
    snapshots = Snapshots(workdir, config, emas, **config["snapshots"]) if "snapshots" in config else contextlib.nullcontext()
    initial = initial_of(config.get("init") or {}) if saved.latest is None else None
    with saved as checkpoints, Writer(workdir) as writer, snapshots as kept:
        steps = loop.steps(
            task=task, optimizer=build(config["optim"]), emas=emas,
            batches=functools.partial(stream, batches, workers=config.get("workers", 0)),
            checkpoints=checkpoints, writer=writer, total=config["steps"], mesh=mesh,
            rules=tuple(map(tuple, config["sharding"])), seed=config["seed"], accumulate=config["accumulate"],
            log_every=config["log_every"], initial=initial, frozen=frozen, loss_scale=config.get("loss_scale", 1.0),
            gather=config.get("gather", "step"), activations=config.get("activations", ()),
        )
        for step, state in steps:
            if trace:
                trace.at(step, state)
            if kept:
                kept.offer(step, state, last=step == config["steps"])
            if recipe and (step % config["sample"]["every"] == 0 or step == config["steps"]):
                shown = embedder.show if task.embeds else show
                shown(task, state, which, recipe, raw, config, Path(workdir), step, writer, frozen)
            if config["evaluate"].get("every") and step % config["evaluate"]["every"] == 0:
                measure(task, state, which, config, workdir, step, writer)
    if config["evaluate"]["num"]:
        evaluate.run(config, workdir, {"which": which} | measuring(config))


def initial_of(spec: str | Mapping[str, str]) -> dict[str, Params]:
    """What `state.create` starts from: 'folder' for all parameters, or {'path': 'folder:path in it'} for those of some parts.

    Raises:
      ConfigError: what `load` refuses; no such path.
    """
    found = {}
    for place, where in ({"": spec} if isinstance(spec, str) else spec).items():
        folder, _, path = where.partition(":")
        part = load(folder)[2]
        for key in path.split("/") if path else ():
            if not isinstance(part, Mapping) or key not in part:
                raise ConfigError(f"config.init: {folder} has no parameters {path!r}")
            part = part[key]
        found[place] = part
    return found


def measuring(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of mode `evaluate` in a config: how to sample, how many, and in whose features."""
    recipe = page.recipe_options(config) if "sample" in config else {}
    recipe.pop("classifier_scale", None)                               # no classifier guides what is measured here
    return recipe | {name: value for name, value in config["evaluate"].items() if value and name not in ("every", "samples")}


def measure(
    task: Task, state: TrainState, which: str, config: Mapping[str, Any], workdir: str, step: int, writer: Writer,
) -> None:
    """Measures a few samples while training goes on; the figures go where the loss goes."""
    if jax.process_count() > 1:
        return                          # as for `show`; measure the checkpoint
    params = state.params if which == "params" else state.ema[which]
    said = {"run": str(Path(workdir).resolve()), "which": which, "step": step}
    options = measuring(config) | {"num": config["evaluate"].get("samples", SAMPLES)}
    report, _ = evaluate.of_model(evaluate.Model(config, task, params, workdir, said), options)
    skip = (*Recipe.__dataclass_fields__, "samples")
    writer.scalars(step, {name: value for name, value in report.items() if isinstance(value, float) and name not in skip})


def show(
    task: Diffusion, state: TrainState, which: str, recipe: Recipe, raw: Raw, config: Mapping[str, Any], workdir: Path, step: int,
    writer: Writer, frozen: Params = None,
) -> None:
    """Writes a grid of samples to samples/<step>.png and to TensorBoard."""
    if jax.process_count() > 1:
        return                          # the parameters of one process are not all of them; sample from the checkpoint
    num = config["sample"]["num"]
    params = state.params if which == "params" else state.ema[which]
    images = np.concatenate(list(decoded(task, frozen, generate(task, params, recipe, raw, num, config["seed"], num))))
    path = workdir / "samples" / f"{step:08d}.png"
    image.save_png(path, image.grid(image.to_uint8(images)))
    writer.images(step, {"samples": images})
    print(f"samples of step {step}: {path}")
