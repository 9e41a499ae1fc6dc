"""What a run's config must hold, and the objects that every mode builds from it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data.loader import Batches
from diffusion_jax.pipelines.recipe import Recipe

SECTIONS = {
    "seed": "of everything random",
    "model": "the network",
    "task": "what is trained, and how the network is used",
    "data": "train, test, decode",
    "batch": "examples per step, over all devices",
    "accumulate": "micro-batches per step",
    "steps": "updates of the whole run",
    "optim": "the optimiser",
    "ema": "averages of the parameters, by name",
    "mesh": "devices along data, fsdp and tensor",
    "sharding": "ordered rules (regex of a parameter's path, how to place it)",
    "checkpoint": "every, keep, keep_every",
    "log_every": "steps between logged metrics",
    "sample": "how to sample, and how many images how often while training",
    "evaluate": "images to measure, and the guidance to measure at, when training ends; num 0 for not at all",
}
MAY_CHANGE = ("steps", "checkpoint", "log_every", "sample", "evaluate", "mesh", "sharding")
"""Sections in which a resumed run may differ from the one that wrote its folder: they do not change the mathematics.

`steps` moves the end of a run; a schedule that decays over the run has its own `steps` in `optim`.
"""


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a section that is unknown (naming the nearest) or missing."""
    for key in config:
        if key not in SECTIONS:
            raise unknown("config key", key, SECTIONS)
    missing = [key for key in SECTIONS if key not in config]
    if missing:
        raise ConfigError(f"the config lacks {missing[0]!r} ({SECTIONS[missing[0]]})")
    recipe_of(config, {})


def recipe_of(config: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
    """The config's way of sampling with the command line's options over it."""
    asked = {key: value for key, value in dict(config["sample"]).items() if key not in ("num", "every")}
    return Recipe.of(asked | dict(options))


def tiny(config: Any, model: Mapping[str, Any], cond: Mapping[str, Any]) -> Any:
    """A page at a size that trains in seconds on a CPU: its own task and options over four steps of the 8x8 digits.

    Args:
      config: the page, changed in place and returned.
      model, cond: what of the network and the conditioner to change.
    """
    config.model.update(model)
    config.task.cond.update(cond)
    config.task.shape = (8, 8, 1)
    digits = "diffusion_jax.data.digits:Digits"
    config.data = dict(
        train=dict(name=digits, split="train"), test=dict(name=digits, split="test"),
        decode=dict(name="diffusion_jax.data.image:Decode", size=8, channels=1),
    )
    config.update(batch=16, steps=4, log_every=1)
    config.checkpoint.update(every=2, keep=3)
    config.sample.update(num=20, every=4, steps=5, times="uniform")
    config.evaluate = dict(num=20, guidance=1.0)
    return config


def batches_of(config: Mapping[str, Any], process_index: int, process_count: int) -> Batches:
    """The training batches of this process."""
    data = config["data"]
    return Batches(build(data["train"]), build(data["decode"]), config["batch"], config["seed"], process_index, process_count)
