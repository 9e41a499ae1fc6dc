"""Mode `train`: a page -> checkpoints, metrics, sample grids, and a report at the end.

    python -m diffusion_jax.main --config configs/digits.py --workdir runs/digits

The same command resumes: everything is in the working folder. What a run is, its page says:
--config.<key>=<value> changes it.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.build import ConfigError, build, option
from diffusion_jax.data import pictures
from diffusion_jax.data.fingerprint import fingerprint
from diffusion_jax.data.image import to_uint8
from diffusion_jax.data.loader import Batches, stream
from diffusion_jax.evaluation import copies, metrics, validation
from diffusion_jax.evaluation import options as measurement
from diffusion_jax.evaluation import report as reports
from diffusion_jax.models.clip import unit
from diffusion_jax.modes.options import PAGE_HELP, Page
from diffusion_jax.pipelines import lora as lora_file
from diffusion_jax.pipelines import unclip
from diffusion_jax.pipelines.conditions import conditions, held_out_conditions
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import generate
from diffusion_jax.runs import broken as broken_files
from diffusion_jax.runs import first_stage, lora, page, teacher
from diffusion_jax.runs.apart import check_apart
from diffusion_jax.runs.filled import filled
from diffusion_jax.runs.folder import Model, Run, holds_run, open_run
from diffusion_jax.runs.initial import initial_of
from diffusion_jax.runs.summary import summary
from diffusion_jax.tasks import kinds
from diffusion_jax.train import loop, resume, shard, stop, trackers
from diffusion_jax.train.checkpoint import Checkpoints, available, check_config, data_of
from diffusion_jax.train.ema import Profile
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.log import Trace, Tracker, Writer, stamped
from diffusion_jax.train.posthoc import Snapshots, stds_of
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Params, Raw, TrainState

SAMPLES = 200
"""Measured while training, where a page says how often and not how many."""


@dataclass(frozen=True)
class Options:
    """A page, and what is traced of its run."""

    config: Page | None = option(None, PAGE_HELP)
    profile_steps: str | None = option(None, "Steps of training to trace for TensorBoard: '10:15'")
    track: str = option(
        "", "What gets metrics, samples and the page too, separated by commas: wandb, mlflow"
    )

    def __post_init__(self):
        if self.config is None:
            raise ConfigError("mode train needs --config configs/<page>.py")


class Watch(NamedTuple):
    """What is looked at while a run trains.

    Attributes:
      run: the folder, its page, and a model whose parameters are not yet there.
      recipe: how to sample; None where the task makes nothing.
      raw: conditions of the samples that are shown.
      writer: gets figures and grids.
      held_out: what it is validated on; None for nothing.
    """

    run: Run
    recipe: Recipe | None
    raw: Raw
    writer: Writer
    held_out: validation.Validation | None = None

    def at(self, step: int, state: TrainState) -> Run:
        """The run at a step, under the average that it is judged by."""
        params = state.params if self.run.which == "params" else state.ema[self.run.which]
        params = lora.whole(self.run, params)
        return self.run._replace(step=step, model=replace(self.run.model, params=params))


def run(options: Options, workdir: str) -> None:
    """Trains to config.steps, sampling on the way where the task makes images, then evaluates.

    Args:
      options: a whole run's page, and perhaps steps to trace.
      workdir: the run's folder.

    Raises:
      ConfigError: anything that the user can mend, another process that trains this run too; all
        that can be known before is checked before anything is written and compiles.
    """
    # What can be refused is refused here, before a file is written and anything compiles.
    config = plain(options.config)
    page.check(config)
    traced = options.profile_steps
    done = max(available(workdir), default=0) if Path(workdir).is_dir() else 0
    trace = None if traced is None else Trace(workdir, traced, done, config["steps"])
    names = trackers.names_of(options.track)
    # Held before anything of the folder is looked at, and until the report is written.
    with one_writer(workdir, "trained"):
        if jax.process_count() > 1:
            # The others write nothing before the first holds the folder for all.
            multihost_utils.sync_global_devices("diffusion_jax: one writer")
        start = checked(config, workdir)
        if start.initial is not None and jax.process_index() == 0:
            print(*summary(start.run.config, start.run.task, start.batches.source), sep="\n")
        train(start, trace, trackers.of_names(names, workdir, start.run.config))
        # Where there are several, JAX has listened for SIGTERM to stop them at the same step.
        stop.retake()
        lora_file.write(start.run)
        if start.run.config["evaluate"]["num"]:
            finish(start.run)


class Start(NamedTuple):
    """A run that was looked at as far as it can be before its first step.

    Attributes:
      run: its folder and page, with no weights yet but those that a LoRA changes.
      batches, mesh: its data and devices.
      optimizer, averages: what moves its parameters, and follows them.
      data: what tells the data from others.
      initial: what a new run starts from; None where it goes on.
      first: its first stage, which is not yet copied.
      taught: its teacher, neither.
      base: what its LoRA changes, not yet copied either.
      recipe: how to sample; None where the task makes nothing.
      raw: conditions of the samples that are shown.
      held_out: what it is validated on; None for nothing.
    """

    run: Run
    batches: Batches
    mesh: jax.sharding.Mesh
    optimizer: Any
    averages: Mapping[str, Profile]
    data: Mapping[str, Any]
    initial: Mapping[str, Params] | None
    first: first_stage.Joined
    taught: teacher.Joined
    base: lora.Joined
    recipe: Recipe | None
    raw: Raw
    held_out: validation.Validation | None


def checked(config: Page, workdir: str) -> Start:
    """A run before its first step; nothing is written but which of the pictures read.

    Raises:
      ConfigError: a page whose parts are unknown, missing, or do not go together; data that are not
        those of the run so far.
    """
    # No parts of the run: the same command without them goes on from here.
    changed = config["data"].get("changed", False)
    if not isinstance(changed, bool):
        raise ConfigError(f"config.data.changed is True or False, got {changed!r}")
    broken = config["data"].get("broken", "stop")
    once = ("changed", "broken")
    config = {**config, "data": {k: v for k, v in config["data"].items() if k not in once}}
    check_apart(config["data"], workdir, "--workdir")
    # From here on the page holds its first stage too, so that a checkpoint alone is enough.
    first = first_stage.read(config, workdir)
    # First of all that reads pictures: what a page leaves out is filled from one that may be broken.
    config = filled(broken_files.settled(first.config, broken, workdir))
    taught = teacher.read(config, workdir)
    config = taught.config
    task = task_of(config)
    base = lora.read(config, workdir)
    config = base.config
    # The first average is what a run is judged by, and without one the weights themselves.
    which = next(iter(config["ema"]), "params")
    batches = page.batches_of(config, jax.process_index(), jax.process_count())
    mesh = shard.make_mesh(**config["mesh"])
    model = Model(base.placed(mesh), first.params, task, taught.params)
    run = Run(workdir, 0, which, config, model, classes=batches.source.names)
    lora.trained(run)
    page.fits(task, batches, mesh, config["accumulate"])
    page.check_layout(config, mesh)
    data = fingerprint(batches.source)
    check_config(workdir, config, page.MAY_CHANGE)
    if not changed:
        resume.check_data(data_of(workdir), data, workdir)
    recipe, raw = sampling_of(run)
    metrics.ready(task, config, numbers_of(config), len(batches.source.names or ()))
    averages = {name: build(spec) for name, spec in config["ema"].items()}
    if "snapshots" in config:
        stds_of(averages, **config["snapshots"])
    # A run that goes on has its weights: the folders that it began from may be gone.
    initial = None if holds_run(workdir) else initial_of(config)
    optimizer = build(config["optim"])
    held_out = validation.of_page(config, task, mesh)
    return Start(
        run,
        batches,
        mesh,
        optimizer,
        averages,
        data,
        initial,
        first,
        taught,
        base,
        recipe,
        raw,
        held_out,
    )


def train(start: Start, trace: Trace | None, tracked: Iterable[Tracker] = ()) -> None:
    """Trains a run to its last step, from its newest checkpoint on."""
    run, config = start.run, start.run.config
    with contextlib.ExitStack() as files:
        saved = Checkpoints(
            run.folder,
            config,
            **config["checkpoint"],
            may_change=page.MAY_CHANGE,
            data=start.data,
        )
        checkpoints = files.enter_context(saved)
        start.first.keep()
        start.taught.keep()
        start.base.keep()
        writer = files.enter_context(Writer(run.folder, tracked))
        watch = Watch(run, start.recipe, start.raw, writer, start.held_out)
        snapshots = None
        if "snapshots" in config:
            kept = Snapshots(run.folder, config, start.averages, **config["snapshots"])
            snapshots = files.enter_context(kept)
        steps = steps_of(start, checkpoints, writer)
        # Closed here, not when the interpreter goes down: what it waits for would be gone by then.
        files.enter_context(contextlib.closing(steps))
        # Last, so that the other processes hear of an error before anything here waits for them.
        files.enter_context(stop.together())
        for step, state in steps:
            if trace:
                trace.at(step, state)
            if snapshots:
                snapshots.offer(step, state, last=step == config["steps"])
            look(watch, step, state)


def steps_of(
    start: Start, checkpoints: Checkpoints, writer: Writer
) -> Generator[tuple[int, TrainState], None, None]:
    """The steps of a run, from its newest checkpoint on: (step, state after it)."""
    config = start.run.config
    yield from loop.steps(
        task=lora.trained(start.run),
        optimizer=start.optimizer,
        emas=start.averages,
        batches=functools.partial(stream, start.batches, workers=config.get("workers", 0)),
        checkpoints=checkpoints,
        writer=writer,
        total=config["steps"],
        mesh=start.mesh,
        rules=start.base.rules,
        seed=config["seed"],
        accumulate=config["accumulate"],
        log_every=config["log_every"],
        initial=start.initial,
        frozen=lora.frozen(start.run),
        loss_scale=config.get("loss_scale", 1.0),
        gather=config.get("gather", "step"),
        activations=config.get("activations", ()),
    )


def sampling_of(start: Run) -> tuple[Recipe | None, Raw]:
    """(how a run samples while it trains, under which conditions).

    (None, {}) where its task samples nothing.

    Raises:
      ConfigError: a section `sample` for what makes no images, or none for what does; what
        `Recipe.check` refuses.
    """
    task, config = start.task, start.config
    samples = isinstance(task, kinds.Denoising)
    if samples and "sample" not in config:
        raise ConfigError(f"{task.noun} makes images: it needs config.sample")
    if not samples:
        if "sample" in config:
            raise ConfigError(f"{task.noun} makes no images: leave out config.sample")
        return None, {}
    recipe = Recipe.of(start.recipe())
    recipe.check(task)
    num = config["sample"]["num"]
    # A prior makes embeddings, which nobody can look at: they are compared with those of images.
    if isinstance(task, kinds.Prior):
        clip = start.task.first_stage
        return recipe, unclip.held_out(clip, start.model.first, config["data"], num)
    return recipe, conditions(task, num, raw=held_out_conditions(start, num))


def numbers_of(config: Page) -> list[int]:
    """How many samples, or held-out images, are measured at the end, and while training."""
    section = config["evaluate"]
    while_training = section.get("samples", SAMPLES) if section.get("every") else 0
    return [number for number in (section["num"], while_training) if number]


def look(watch: Watch, step: int, state: TrainState) -> None:
    """Validates, samples and measures, where the page says so for this step."""
    config = watch.run.config
    # Before the others return: each has a part of the parameters and of the held-out pictures.
    if watch.held_out is not None and watch.held_out.due(step):
        validate(watch, watch.held_out, step, state)
    if jax.process_count() > 1:
        return  # the parameters of one process are not all of them; sample from the checkpoint
    if watch.recipe and (step % config["sample"]["every"] == 0 or step == config["steps"]):
        if isinstance(watch.run.task, kinds.Prior):
            show_nearness(watch, watch.recipe, step, state)
        else:
            show(watch, watch.recipe, step, state)
    if config["evaluate"].get("every") and step % config["evaluate"]["every"] == 0:
        measure(watch, step, state)


def validate(watch: Watch, held_out: validation.Validation, step: int, state: TrainState) -> None:
    """Logs the loss on held-out pictures, beside that of training."""
    figures = held_out.figures(watch.at(step, state).model, state.memory)
    watch.writer.scalars(step, figures)
    if jax.process_index() == 0:
        print(stamped(f"validation of step {step}: loss {figures['val_loss']:.4g}"))


def show(watch: Watch, recipe: Recipe, step: int, state: TrainState) -> None:
    """Writes a grid of samples to samples/<step>.png and to TensorBoard."""
    num, seed = watch.run.config["sample"]["num"], watch.run.config["seed"]
    pipe = Pipeline(watch.at(step, state), recipe)
    # The same noise at every step: what differs between two grids is what was learned.
    images = np.concatenate(list(pipe.images(watch.raw, num, seed, num)))
    path = Path(watch.run.folder, "samples", f"{step:08d}.png")
    pictures.save_png(path, pictures.grid(to_uint8(images)))
    watch.writer.images(step, {"samples": jnp.asarray(images)})
    print(stamped(f"samples of step {step}: {path}"))


def show_nearness(watch: Watch, recipe: Recipe, step: int, state: TrainState) -> None:
    """Logs how near a prior's embeddings of held-out texts are to those of images.

    Of the text's own image, and of others' images.
    """
    model = watch.at(step, state).model
    num, seed = watch.run.config["sample"]["num"], watch.run.config["seed"]
    x = np.concatenate(list(generate(model, recipe, watch.raw, num, seed, num)))
    made = unit(model.task.embeddings(model.first, x))
    cosines = np.asarray(made @ unit(watch.raw["clip_image"]).T)  # [num, num]
    near = float(np.mean(np.diag(cosines)))
    # Beside the cosine with others: all embeddings of a CLIP lie in a narrow cone.
    far = float((cosines.sum() - np.trace(cosines)) / (num * num - num))
    watch.writer.scalars(step, {"cosine": near, "cosine_of_others": far})
    nearness = f"cosine {near:.3f} with those of their images"
    print(stamped(f"embeddings of step {step}: {nearness}, {far:.3f} with those of others"))


def measure(watch: Watch, step: int, state: TrainState) -> None:
    """Measures a few samples while training goes on; the figures go where the loss goes."""
    config = watch.run.config
    options = measurement.of_page(config, config["evaluate"].get("samples", SAMPLES))
    measured = metrics.measured(watch.at(step, state), options, training=True)
    warning = copies.noted(watch.run.folder, step, measured)
    if warning:
        print(warning)
    figures = measured.figures
    # How samples are made is the same at every step: as curves these would be flat.
    of_recipe = (*Recipe.__dataclass_fields__, "samples")
    floats = {name: value for name, value in figures.items() if isinstance(value, float)}
    logged = {name: value for name, value in floats.items() if name not in of_recipe}
    watch.writer.scalars(step, logged)


def finish(start: Run) -> None:
    """Measures the last checkpoint and writes the report."""
    # Read back, not taken from the loop: of a run that was at its end already there is no state,
    # and what is measured is what others will open.
    trained = open_run(start.folder, which=start.which)
    options = measurement.of_page(start.config, start.config["evaluate"]["num"])
    measured = metrics.measured(trained, options, training=True)
    reports.write(start.folder, measured)
