"""What a run's page must hold: its sections, what they may be, and the objects that training
builds from them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data.loader import Batches
from diffusion_jax.types import Task

SECTIONS = {
    "seed": "of everything random",
    "model": "the network",
    "task": "what is trained, and how the network is used",
    "data": "train, test, decode",
    "workers": "processes that prepare batches; 0, the default, does it in threads of the main one",
    "batch": "examples per step, over all devices",
    "accumulate": "micro-batches per step",
    "steps": "updates of the whole run",
    "first_stage": "folder of a frozen discrete VAE, or of another first stage, that the task "
    "trains on (runs/first_stage.py)",
    "init": "folder of a run or of imported weights, whose average the run starts from, or "
    "{'path of parameters': 'folder:path'}",
    "loss_scale": "factor of the loss while gradients are taken; only for float16 networks",
    "optim": "the optimiser",
    "ema": "averages of the parameters, by name",
    "snapshots": "every, averages, dtype: of the power averages, for mode posthoc_ema",
    "mesh": "devices along data, fsdp and tensor",
    "sharding": "ordered rules (regex of a parameter's path, how to place it)",
    "gather": "when weights stored split are gathered: 'step' all at once, 'use' layer by layer",
    "activations": "ordered rules (regex of an activation's name, how to split it), "
    "nn/partition.py",
    "checkpoint": "every, keep, keep_every",
    "log_every": "steps between logged metrics",
    "sample": "how to sample, and how many images how often while training; only for what makes "
    "images",
    "evaluate": "images to measure when training ends, num 0 for not at all; for what makes images "
    "at which guidance, in whose "
    "features against what (evaluation/features.py), and how many samples every how many steps "
    "while training",
}
OPTIONAL = (
    "workers",
    "sample",
    "first_stage",
    "init",
    "loss_scale",
    "snapshots",
    "gather",
    "activations",
)
PARTS = {
    "data": ("train", "test", "decode"),
    "mesh": ("data", "fsdp", "tensor"),
    "checkpoint": ("every", "keep", "keep_every"),
    "snapshots": ("every", "averages", "dtype"),
    "evaluate": ("num", "guidance", "features", "resize", "reference", "every", "samples"),
}
COUNTS = (  # each a whole number, 1 or more
    "batch",
    "accumulate",
    "steps",
    "log_every",
    "sample.num",
    "sample.every",
    "snapshots.every",
    "evaluate.samples",
)
MAY_CHANGE = (
    "steps",
    "workers",
    "checkpoint",
    "snapshots",
    "log_every",
    "sample",
    "evaluate",
    "mesh",
    "sharding",
    "gather",
    "activations",
)
"""Sections in which a resumed run may differ from the one that wrote its folder: they do not change
the mathematics.

`steps` moves the end of a run; a schedule that decays over the run has its own `steps` in `optim`.
"""


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a section or key that is unknown (naming the nearest) or missing,
    or a count below 1."""
    for key in config:
        if key not in SECTIONS:
            raise unknown("config key", key, SECTIONS)
    missing = [key for key in SECTIONS if key not in config and key not in OPTIONAL]
    if missing:
        raise ConfigError(f"the config lacks {missing[0]!r} ({SECTIONS[missing[0]]})")
    for section, keys in PARTS.items():
        _check_keys(config, section, keys)
    for name in COUNTS:
        _check_count(config, name)
    workers = config.get("workers", 0)
    if not isinstance(workers, int) or workers < 0:
        raise ConfigError(f"config.workers is a number of processes, 0 for none: got {workers!r}")
    scale = config.get("loss_scale", 1.0)
    if not isinstance(scale, (int, float)) or scale <= 0:
        raise ConfigError(f"config.loss_scale is a number above 0: got {scale!r}")


def _check_keys(config: Mapping[str, Any], section: str, keys: tuple[str, ...]) -> None:
    """Raises ConfigError for a key of a section that is not among `keys`, or one that it must
    have."""
    # Unknown before missing: a key that is misspelt is both, and its name is what helps.
    for key in config.get(section, {}):
        if key not in keys:
            raise unknown("config key", f"{section}.{key}", [f"{section}.{name}" for name in keys])
    needed: tuple[str, ...] = ()
    if section == "data":
        needed = keys
    if section == "evaluate":
        needed = ("num", "guidance") if "sample" in config else ("num",)
    missing = [key for key in needed if key not in config.get(section, {})]
    if missing:
        raise ConfigError(f"the config lacks '{section}.{missing[0]}' ({SECTIONS[section]})")


def _check_count(config: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError where 'key' or 'section.key' is no number from 1 on; optional ones may
    be left out."""
    section, _, key = name.rpartition(".")
    if section in OPTIONAL and section not in config:
        return
    if section == "evaluate" and key not in config[section]:
        return
    value = (config[section] if section else config).get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"config.{name} is a number, at least 1: got {value!r}")


def variant(arg: str, *names: str) -> None:
    """Raises ConfigError where a page has no such variant (`configs/page.py:variant`), naming
    the nearest."""
    if arg not in names:
        # '' is the page itself, which one does not name.
        raise unknown("variant of this page", arg, [name for name in names if name])


def fits(task: Task, batches: Batches, mesh: Mesh, accumulate: int) -> None:
    """Raises ConfigError where data, model and devices do not go together, in ways that the
    train step would not say."""
    # One record tells what all have, without a pass over the data.
    record = batches.decode(batches.source[0], np.random.default_rng(0))
    names = batches.source.names
    for key in task.needs:
        if key not in record:
            raise ConfigError(
                f"the model's condition needs {key!r}, but {batches.source} has only: "
                f"{', '.join(sorted(record))}"
            )
    # Nothing else would say so: under jit an index out of range does not raise.
    if task.num_classes and names and len(names) > task.num_classes:
        raise ConfigError(
            f"the data has {len(names)} classes, the model {task.num_classes}: raise num_classes"
        )
    # Devices along 'tensor' see the same examples.
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batches.batch % (devices * accumulate):
        raise ConfigError(
            f"batch {batches.batch} is no multiple of accumulate {accumulate} x {devices} devices: "
            "choose one"
        )


def recipe_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a page samples: its section `sample` without how many images how often, fields of
    `pipelines.recipe.Recipe`."""
    return {
        key: value for key, value in config.get("sample", {}).items() if key not in ("num", "every")
    }


def data_of(config: Mapping[str, Any], instead: str) -> Mapping[str, Any]:
    """The section `data` of a checkpoint's config.

    Args:
      config: the config.
      instead: what to do without data, for the error.

    Raises:
      ConfigError: there is none, or no more of it than how prompts are read, as with imported
        weights.
    """
    data = config.get("data", {})
    # Imported weights have data.decode alone, for their tokenizer.
    if "train" not in data:
        raise ConfigError(f"this model came without data: {instead}")
    return data


def tiny(config: Any, model: Mapping[str, Any], cond: Mapping[str, Any]) -> Any:
    """A page at a size that trains in seconds on a CPU: its own task and options over four steps of
    the 8x8 digits.

    Args:
      config: the page, changed in place and returned.
      model, cond: what of the network and the conditioner to change.
    """
    config.model.update(model)
    config.task.get("cond", {}).update(cond)
    config.task.shape = (8, 8, 1)
    # Images that come with scikit-learn: nothing to download.
    digits = "diffusion_jax.data.digits:Digits"
    config.data = dict(
        train=dict(name=digits, split="train"),
        test=dict(name=digits, split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.update(batch=16, steps=4, log_every=1)
    config.checkpoint.update(every=2, keep=3)
    if "snapshots" in config:
        config.snapshots.every = 2
    config.evaluate.num = 20
    if "sample" in config:
        # Uniform times go with every process, a page's own grid perhaps not with so few steps.
        config.sample.update(num=20, every=4, steps=5, times="uniform")
        config.evaluate.guidance = 1.0
    return config


def batches_of(config: Mapping[str, Any], process_index: int, process_count: int) -> Batches:
    """The training batches of this process."""
    data = config["data"]
    return Batches(
        build(data["train"]),
        build(data["decode"]),
        config["batch"],
        config["seed"],
        process_index,
        process_count,
    )
