"""What a run's page must hold: its sections, what they may be, and the objects that training
builds from them."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.build import ConfigError, build, check_names, number, short, unknown
from diffusion_jax.data import survey
from diffusion_jax.data.loader import Batches
from diffusion_jax.data.source import decoded
from diffusion_jax.nn import partition
from diffusion_jax.parts import KINDS, MOST
from diffusion_jax.train import shard
from diffusion_jax.train.ema import Power
from diffusion_jax.train.step import check_split
from diffusion_jax.types import Task

SECTIONS = {
    "seed": "of everything random",
    "model": "the network",
    "task": "what is trained, and how the network is used",
    "data": "train, test, decode; changed: True where a run is meant to go on with other data; "
    "broken: 'stop' or 'skip' for pictures that do not read (runs/broken.py)",
    "workers": "processes that prepare batches; 0, the default, does it in threads of the main one",
    "batch": "examples per step, over all devices",
    "accumulate": "micro-batches per step",
    "steps": "updates of the whole run",
    "first_stage": "folder of a frozen discrete VAE, or of another first stage, that the task "
    "trains on, or 'lpips=vgg', the installed LPIPS (runs/first_stage.py)",
    "init": "folder of a run or of imported weights, whose average the run starts from, or "
    "{'path of parameters': 'folder:path'}",
    "teacher": "folder of a diffusion model that a consistency model learns from "
    "(runs/teacher.py)",
    "lora": "rank, alpha and layers (regex of parameters' paths) of low-rank factors that are "
    "trained beside the weights of the run that init names; base, their digest, is filled in",
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
    "validate": "every how many steps the loss on held-out pictures is measured, of num draws, "
    "256 by default (evaluation/validation.py)",
}
OPTIONAL = (
    "workers",
    "sample",
    "first_stage",
    "init",
    "teacher",
    "lora",
    "loss_scale",
    "snapshots",
    "gather",
    "activations",
    "validate",
)
PARTS = {
    "data": ("train", "test", "decode", "changed", "broken"),
    "mesh": ("data", "fsdp", "tensor"),
    "checkpoint": ("every", "keep", "keep_every"),
    "snapshots": ("every", "averages", "dtype"),
    "evaluate": ("num", "guidance", "features", "resize", "reference", "every", "samples"),
    "validate": ("every", "num"),
    "lora": ("rank", "alpha", "layers", "base"),
}
NEEDED = {
    "data": ("train", "test", "decode"),
    "sample": ("num", "every"),
    "snapshots": ("every",),
    "validate": ("every",),
}
"""Keys that a section must have in a page that is trained; `evaluate` see below."""
NUMBERS: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**32 - 1),  # jax.random.key looks at 32 bits: beyond, seeds would repeat
    "workers": (0, 1024),
    "batch": (1, MOST),
    "accumulate": (1, MOST),
    "steps": (1, MOST),
    "log_every": (1, MOST),
    "mesh.data": (-1, MOST),
    "mesh.fsdp": (-1, MOST),
    "mesh.tensor": (-1, MOST),
    "checkpoint.every": (1, MOST),
    "checkpoint.keep": (1, MOST),
    "checkpoint.keep_every": (1, MOST),
    "snapshots.every": (1, MOST),
    "sample.num": (1, MOST),
    "sample.every": (1, MOST),
    "sample.steps": (1, 10**6),  # or the text of a respacing
    "evaluate.num": (0, MOST),
    "evaluate.every": (0, MOST),
    "evaluate.samples": (1, MOST),
    "lora.rank": (1, 4096),
    "lora.base": (0, 2**32 - 1),
    "validate.every": (1, MOST),
    "validate.num": (1, 10**5),  # whose pictures are held in memory
}
"""Whole numbers, each with its least and its most."""
LISTS = ("sharding", "activations")
WORDS = {
    "gather": ("step", "use"),
    "snapshots.dtype": ("float32", "float16", "bfloat16"),
    "data.broken": ("stop", "skip"),
}
OBJECTS = {
    "model": "networks",
    "task": "tasks",
    "optim": "optimisers",
    "data.train": "data sets",
    "data.test": "data sets",
    "data.decode": "decoders",
}
"""What is built, and of which kind it is (parts.py); the averages of `ema` are too."""
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
    "validate",
)
"""Sections in which a resumed run may differ from the one that wrote its folder: they do not change
the mathematics.

`steps` moves the end of a run; a schedule that decays over the run has its own `steps` in `optim`.
"""


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a page that cannot be trained: a section or key that is unknown
    (naming the nearest) or missing, a value of another kind or out of bounds, and what `build`
    refuses of its optimiser and its averages."""
    check_stored(config)
    missing = [key for key in SECTIONS if key not in config and key not in OPTIONAL]
    if missing:
        raise ConfigError(f"the config lacks {missing[0]!r} ({SECTIONS[missing[0]]})")
    guided = {"evaluate": ("num", "guidance") if "sample" in config else ("num",)}
    for section, keys in (NEEDED | guided).items():
        lacks = [key for key in keys if section in config and key not in config[section]]
        if lacks:
            raise ConfigError(f"the config lacks '{section}.{lacks[0]}' ({SECTIONS[section]})")
    # Built once more when training starts: what they refuse is to be known before.
    build(config["optim"])
    averages = {name: build(spec) for name, spec in config["ema"].items()}
    powers = [name for name, average in averages.items() if isinstance(average, Power)]
    for name in config.get("snapshots", {}).get("averages") or ():
        if name not in powers:
            raise unknown("power average", name, powers)


def check_stored(config: Any) -> None:
    """Raises ConfigError for what is wrong in a config with a checkpoint, or in a page as far as
    it is there. Nothing is made or imported.

    Imported weights have fewer sections than a page: they need a task and no more.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"a config is a mapping of sections, got {short(config)}")
    for key in config:
        if key not in SECTIONS:
            raise unknown("config key", key, SECTIONS)
    check_names(config)
    for key, value in config.items():
        of_text = ("first_stage", "init", "teacher")
        kinds = (str, Mapping) if key in of_text else (list, tuple) if key in LISTS else Mapping
        mapped = key in (*PARTS, *OBJECTS, "ema", "sample", *of_text)
        if (mapped or key in LISTS) and not isinstance(value, kinds):
            wanted = "a list" if key in LISTS else "a folder" if key in of_text else "a section"
            raise ConfigError(f"config.{key} is {wanted} ({SECTIONS[key]}), got {short(value)}")
    # All that imported weights have of their data is how they are read.
    if "decode" not in config.get("data", {"decode": None}):
        raise ConfigError(f"the config lacks 'data.decode' ({SECTIONS['data']})")
    for section, keys in PARTS.items():
        for key in config.get(section, {}):
            if key not in keys:
                names = [f"{section}.{name}" for name in keys]
                raise unknown("config key", f"{section}.{key}", names)
    _check_values(config)


def _check_values(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for an object of another kind, a number out of bounds, an unknown word."""
    averages = {f"ema.{name}": "averages" for name in config.get("ema", {})}
    for place, kind in (OBJECTS | averages).items():
        spec = _at(config, place)
        if spec is not None:
            _check_kind(place, spec, kind)
    for place, bounds in NUMBERS.items():
        value = _at(config, place)
        if value is None or (place == "sample.steps" and isinstance(value, str)):
            continue
        if not isinstance(value, int):
            raise ConfigError(f"config.{place} is a whole number, got {short(value)}")
        number(f"config.{place}", value, *bounds, integer=True)
    for place, words in WORDS.items():
        word = _at(config, place)
        if word is not None and word not in words:
            raise unknown(f"config.{place}", str(word), words)
    for place in ("loss_scale", "evaluate.guidance", "lora.alpha"):
        value = _at(config, place)
        if isinstance(value, str):  # `number` reads texts too, what uses this does not
            raise ConfigError(f"config.{place} is a number, got {short(value)}")
        if value is not None:
            number(f"config.{place}", value)
    scale = config.get("loss_scale", 1.0)
    if not isinstance(scale, (int, float)) or scale <= 0:
        raise ConfigError(f"config.loss_scale is a number above 0: got {short(scale)}")
    _check_rules(config)


def _at(config: Mapping[str, Any], place: str) -> Any:
    """What stands at 'section' or 'section.key'; None where there is nothing."""
    section, _, key = place.partition(".")
    return config.get(section, {}).get(key) if key else config.get(section)


def _check_kind(place: str, spec: Any, kind: str) -> None:
    """Raises ConfigError where a spec makes something of another kind; a package of the user's own
    may make anything."""
    name = spec.get("name") if isinstance(spec, Mapping) else None
    if not isinstance(name, str) or KINDS.get(name, kind) != kind:
        wanted = f"one of the {kind}, {{'name': '<module>:<Name>', ...}}"
        # The name of an average may be any text.
        raise ConfigError(f"config.{short(place)[1:-1]} is {wanted}, got {short(spec)}")


def _check_rules(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for rules that are no pairs of a regular expression and what it does."""
    for section in LISTS:
        for rule in config.get(section, ()):
            try:
                pattern, _ = rule
                re.compile(pattern)
            except (TypeError, ValueError, re.error) as error:
                what = f"a rule of config.{section} is a pair ('<regex>', ...), got {short(rule)}"
                raise ConfigError(f"{what}: {error}") from None
    layers = config.get("lora", {}).get("layers", "")
    try:
        re.compile(layers)
    except (TypeError, re.error) as error:
        what = f"config.lora.layers is a regular expression, got {short(layers)}"
        raise ConfigError(f"{what}: {error}") from None


def variant(arg: str, *names: str) -> None:
    """Raises ConfigError where a page has no such variant (`configs/page.py:variant`), naming
    the nearest."""
    if arg not in names:
        # '' is the page itself, which one does not name.
        raise unknown("variant of this page", arg, [name for name in names if name])


def fits(task: Task, batches: Batches, mesh: Mesh, accumulate: int) -> None:
    """Raises ConfigError where data, model and devices do not go together, in ways that the
    train step would not say."""
    check_split(task, accumulate)
    names = batches.source.names
    # Before any is decoded: a tokenizer would refuse one caption, and not say how many there are.
    cut = survey.check_captions(batches.source, getattr(batches.decode, "tokenizer", None))
    if cut and jax.process_index() == 0:
        print(cut)
    # One record tells what all have, without a pass over the data.
    record = decoded(batches.source, batches.decode, 0, np.random.default_rng(0))
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
    if "label" in task.needs:
        survey.check_labels(batches.source, task.num_classes)
    # Devices along 'tensor' see the same examples.
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batches.batch % (devices * accumulate):
        raise ConfigError(
            f"batch {batches.batch} is no multiple of accumulate {accumulate} x {devices} devices: "
            "choose one"
        )


def check_layout(config: Mapping[str, Any], mesh: Mesh) -> None:
    """Raises ConfigError for sharding rules that no array of these devices could follow."""
    for _, spec in config["sharding"]:
        shard.placed(mesh, "any", (1, 1, 1, 1), ((".*", spec),))
    with partition.activations(mesh, config.get("activations", ())):
        pass


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
    # One more program to compile, for four steps.
    if "validate" in config:
        del config.validate
    # What a page does not measure may have no measure.
    config.evaluate.num = min(config.evaluate.num, 20)
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
