"""What a run's config must hold, and the objects that every mode builds from it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data.image import Decode, to_unit
from diffusion_jax.data.loader import Batches
from diffusion_jax.data.source import Source
from diffusion_jax.modes import embedder
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.types import Params, Raw, Task

SECTIONS = {
    "seed": "of everything random",
    "model": "the network",
    "task": "what is trained, and how the network is used",
    "data": "train, test, decode",
    "workers": "processes that prepare batches; 0, the default, does it in threads of the main one",
    "batch": "examples per step, over all devices",
    "accumulate": "micro-batches per step",
    "steps": "updates of the whole run",
    "first_stage": "folder of a frozen discrete VAE, or of another first stage, that the task trains on (modes/first_stage.py)",
    "init": "folder of a run or of imported weights, whose average the run starts from, or {'path of parameters': 'folder:path'}",
    "loss_scale": "factor of the loss while gradients are taken; only for float16 networks",
    "optim": "the optimiser",
    "ema": "averages of the parameters, by name",
    "snapshots": "every, averages, dtype: of the power averages, for mode posthoc_ema",
    "mesh": "devices along data, fsdp and tensor",
    "sharding": "ordered rules (regex of a parameter's path, how to place it)",
    "gather": "when weights stored split are gathered: 'step' all at once, 'use' layer by layer",
    "activations": "ordered rules (regex of an activation's name, how to split it), nn/partition.py",
    "checkpoint": "every, keep, keep_every",
    "log_every": "steps between logged metrics",
    "sample": "how to sample, and how many images how often while training; only for what makes images",
    "evaluate": "images to measure when training ends, num 0 for not at all; for what makes images at which guidance, in whose "
                "features against what (modes/measure.py), and how many samples every how many steps while training",
}
OPTIONAL = ("workers", "sample", "first_stage", "init", "loss_scale", "snapshots", "gather", "activations")
PARTS = {
    "data": ("train", "test", "decode"),
    "mesh": ("data", "fsdp", "tensor"),
    "checkpoint": ("every", "keep", "keep_every"),
    "snapshots": ("every", "averages", "dtype"),
    "evaluate": ("num", "guidance", "features", "resize", "reference", "every", "samples"),
}
COUNTS = ("batch", "accumulate", "steps", "log_every", "sample.num", "sample.every", "snapshots.every",
          "evaluate.samples")
MAY_CHANGE = ("steps", "workers", "checkpoint", "snapshots", "log_every", "sample", "evaluate", "mesh", "sharding", "gather",
              "activations")
"""Sections in which a resumed run may differ from the one that wrote its folder: they do not change the mathematics.

`steps` moves the end of a run; a schedule that decays over the run has its own `steps` in `optim`.
"""


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a section or key that is unknown (naming the nearest) or missing, or a count below 1."""
    for key in config:
        if key not in SECTIONS:
            raise unknown("config key", key, SECTIONS)
    missing = [key for key in SECTIONS if key not in config and key not in OPTIONAL]
    if missing:
        raise ConfigError(f"the config lacks {missing[0]!r} ({SECTIONS[missing[0]]})")
    for section, known in PARTS.items():
        for key in config.get(section, {}):
            if key not in known:
                raise unknown("config key", f"{section}.{key}", [f"{section}.{name}" for name in known])
        wanted = {"data": known, "evaluate": ("num", "guidance") if "sample" in config else ("num",)}.get(section, ())
        missing = [key for key in wanted if key not in config.get(section, {})]
        if missing:
            raise ConfigError(f"the config lacks '{section}.{missing[0]}' ({SECTIONS[section]})")
    for name in COUNTS:
        section, _, key = name.rpartition(".")
        if section in OPTIONAL and section not in config:
            continue
        if section == "evaluate" and key not in config[section]:
            continue
        value = (config[section] if section else config).get(key)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"config.{name} is a number, at least 1: got {value!r}")
    if not isinstance(workers := config.get("workers", 0), int) or workers < 0:
        raise ConfigError(f"config.workers is a number of processes, 0 for none: got {workers!r}")
    if not isinstance(scale := config.get("loss_scale", 1.0), (int, float)) or scale <= 0:
        raise ConfigError(f"config.loss_scale is a number above 0: got {scale!r}")
    if "sample" in config:
        recipe_of(config, {})


def variant(arg: str, *known: str) -> None:
    """Raises ConfigError where a page has no such variant (`configs/page.py:variant`), naming the nearest."""
    if arg not in known:
        raise unknown("variant of this page", arg, [name for name in known if name])


def fits(task: Task, batches: Batches, mesh: Mesh, accumulate: int) -> None:
    """Raises ConfigError where data, model and devices do not go together, in ways that the train step would not say."""
    record, names = batches.decode(batches.source[0], np.random.default_rng(0)), batches.source.names
    for key in task.needs:
        if key not in record:
            raise ConfigError(f"the model's condition needs {key!r}, but {batches.source} has only: {', '.join(sorted(record))}")
    if task.num_classes and names and len(names) > task.num_classes:
        raise ConfigError(f"the data has {len(names)} classes, the model {task.num_classes}: raise num_classes")
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batches.batch % (devices * accumulate):
        raise ConfigError(f"batch {batches.batch} is no multiple of accumulate {accumulate} x {devices} devices: choose one")


def recipe_of(config: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
    """The config's way of sampling with the command line's options over it."""
    return Recipe.of(recipe_options(config) | dict(options))


def recipe_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Recipe` in the config's section `sample`."""
    return {key: value for key, value in config["sample"].items() if key not in ("num", "every")}


def data_of(stored: Mapping[str, Any], instead: str) -> Mapping[str, Any]:
    """The section `data` of a checkpoint's config.

    Args:
      stored: the config.
      instead: what to do without data, for the error.

    Raises:
      ConfigError: there is none, or no more of it than how prompts are read, as with imported weights.
    """
    data = stored.get("data", {})
    if "train" not in data:
        raise ConfigError(f"this model came without data: {instead}")
    return data


def tiny(config: Any, model: Mapping[str, Any], cond: Mapping[str, Any]) -> Any:
    """A page at a size that trains in seconds on a CPU: its own task and options over four steps of the 8x8 digits.

    Args:
      config: the page, changed in place and returned.
      model, cond: what of the network and the conditioner to change.
    """
    config.model.update(model)
    config.task.get("cond", {}).update(cond)
    config.task.shape = (8, 8, 1)
    digits = "diffusion_jax.data.digits:Digits"
    config.data = dict(
        train=dict(name=digits, split="train"), test=dict(name=digits, split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.update(batch=16, steps=4, log_every=1)
    config.checkpoint.update(every=2, keep=3)
    if "snapshots" in config:
        config.snapshots.every = 2
    config.evaluate.num = 20
    if "sample" in config:
        config.sample.update(num=20, every=4, steps=5, times="uniform")
        config.evaluate.guidance = 1.0
    return config


def batches_of(config: Mapping[str, Any], process_index: int, process_count: int) -> Batches:
    """The training batches of this process."""
    data = config["data"]
    return Batches(build(data["train"]), build(data["decode"]), config["batch"], config["seed"], process_index, process_count)


def whole(source: Source, decode: Decode, num: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 [N, H, W, C] and labels [N], None where there are none: all of a data set, or `num` spread over it.

    Spread, because many data sets are sorted by class.
    """
    count = len(source) if num is None else min(num, len(source))
    records = [decode(source[i * len(source) // count], np.random.default_rng(0)) for i in range(count)]
    labels = np.array([record["label"] for record in records]) if "label" in records[0] else None
    return np.stack([record["image"] for record in records]), labels


def derived_conditions(task: Diffusion, data: Mapping[str, Any], num: int, frozen: Params = None) -> Raw:
    """Conditions of `num` held-out images where the task makes some of an image, as an upsampler does, or reads their captions.

    Args:
      task: the model.
      data: the config's section.
      num: how many; the images come again where the data set has fewer.
      frozen: the run's frozen parts, of which a CLIP sees the images.

    Raises:
      ConfigError: there is such a condition and no data to make it of.
    """
    if "test" not in data and (isinstance(task.first_stage, Embedder) or "tokens" in task.cond.keys or task.cond.derived):
        raise ConfigError("this model came without data to make its conditions of: give them to --mode sample, with --out x.npz, "
                          "and measure those --images")
    if isinstance(task.first_stage, Embedder):
        return embedder.seen(task.first_stage, frozen["first_stage"], data, num)
    texts = captions(data, num) if "tokens" in task.cond.keys else {}
    if not task.cond.derived:
        return texts
    images, labels = whole(build(data["test"]), build(data["decode"]), num)
    raw = task.cond.prepare({"image": jax.numpy.asarray(to_unit(images))}, jax.random.key(0), level=0.0)
    found = {name: np.asarray(raw[name]) for name in task.cond.derived} | ({} if labels is None else {"label": labels})
    return texts | {name: value[np.arange(num) % len(images)] for name, value in found.items()}


def captions(data: Mapping[str, Any], num: int) -> Raw:
    """The tokens of `num` held-out captions, spread over the data like the images of `whole`.

    Raises:
      ConfigError: the data has no captions, or its section no tokenizer.
    """
    source, decode = build(data["test"]), build(data["decode"])
    if decode.tokenizer is None or "caption" not in source[0]:
        raise ConfigError("this model reads captions: give data that has them, and data.decode.tokenizer")
    count = min(num, len(source))
    tokens = np.stack([decode.tokenizer(source[i * len(source) // count]["caption"]) for i in range(count)])
    return {"tokens": tokens[np.arange(num) % count]}
