"""A LoRA that a run trains: `config.lora` beside `config.init`, which names the run it changes.

    --config.init=runs/digits --config.lora.rank=4

Its base becomes a part of the run, so that its folder alone is enough to sample and to resume: the
newest checkpoint of the base gets a second name in workdir/base. That takes no room where both lie
on one disk, stays when the base's own folder goes, and is a copy elsewhere. What the checkpoints
then hold are the factors (tasks/lora.py), and the digest of the weights that they belong to.
"""
from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax.build import ConfigError, short
from diffusion_jax.nn.lora import merged
from diffusion_jax.runs.folder import BASE, Run, base_of, holds_run
from diffusion_jax.tasks.lora import BASE as OF_TASK
from diffusion_jax.tasks.lora import LowRank, adapted
from diffusion_jax.train import shard
from diffusion_jax.train.checkpoint import config_of, digest_of, weights
from diffusion_jax.train.steps import find
from diffusion_jax.types import Params


class Joined(NamedTuple):
    """A run's config with the base of its LoRA.

    Attributes:
      config: with the digest of the base in its section `lora`.
      base: the weights that are changed; None where the page has no such section.
      keep: gives the base its place in the run's folder, where it has none yet.
    """

    config: dict[str, Any]
    base: Params | None
    keep: Callable[[], None]

    def placed(self, mesh: Mesh) -> Params:
        """The base on the devices, split as the page's rules split weights; {} without one."""
        if self.base is None:
            return {}
        return shard.place(self.base, mesh, _rules(self.config))

    @property
    def rules(self) -> shard.Rules:
        """Where what is trained lies: of a LoRA on every device, for its factors are small."""
        return shard.REPLICATE if self.base is not None else _rules(self.config)


def read(config: Mapping[str, Any], workdir: str) -> Joined:
    """A page's LoRA, with nothing written yet.

    A resumed run goes on with the base in its folder, whatever has become of the folder since that
    `config.init` names.

    Raises:
      ConfigError: a page that does not go with a LoRA, a base that is one itself, or other weights
        than the page says.
    """
    if "lora" not in config:
        return Joined(dict(config), None, lambda: None)
    check(config)
    home = Path(workdir)
    begun = holds_run(home)
    folder = Path(config["init"]).expanduser()
    if not begun and "lora" in config_of(folder):
        raise ConfigError(
            f"config.init {folder} is a LoRA itself: give the run that it changes, or train on "
            "from its merged weights, without config.lora"
        )
    base = base_of(home) if begun else weights(folder)
    wanted = config["lora"].get("base", base.digest)
    if wanted != base.digest:
        source = home / BASE if begun else folder
        raise ConfigError(f"config.lora.base is {wanted}, the weights in {source} {base.digest}")
    config = {**config, "lora": {**config["lora"], "base": base.digest}}
    keep = (lambda: None) if begun else functools.partial(_keep, folder, base.digest, home / BASE)
    return Joined(config, base.params, keep)


def trained(run: Run) -> Any:
    """What a run trains: its task, or the factors of its LoRA.

    Args:
      run: before its first step; with a LoRA its weights are the base's.

    Raises:
      ConfigError: no kernel that `config.lora` asks for, or a task without any.
    """
    task = adapted(run.task, run.config)
    if isinstance(task, LowRank):
        task.check(run.model.params)
    return task


def frozen(run: Run) -> Params:
    """What the loss of `trained` takes beside its parameters."""
    first = run.model.frozen
    return {**(first or {}), OF_TASK: run.model.params} if "lora" in run.config else first


def whole(run: Run, params: Params) -> Params:
    """The weights that a state's parameters, or an average of them, stand for, on the devices of the
    base."""
    if "lora" not in run.config:
        return params
    base = run.model.params
    changed = merged(base, params, adapted(run.task, run.config).scale)
    # A sum of what is split and what is not may come out split in another way.
    return jax.tree.map(lambda x, before: jax.device_put(x, before.sharding), changed, base)


def check(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for what a page with a section `lora` may not have, or lacks."""
    if not config.get("init") or not isinstance(config["init"], str):
        raise ConfigError(
            "config.lora changes the weights of a run: config.init is its folder, got "
            f"{short(config.get('init'))}"
        )
    refused = {
        "snapshots": "snapshots" in config,
        "gather='use'": config.get("gather", "step") == "use",
        "optim.powersgd": bool(config.get("optim", {}).get("powersgd")),
    }
    for name, there in refused.items():
        if there:
            raise ConfigError(
                f"config.{name} is for whole weights, config.lora trains few: leave one out"
            )


def _rules(config: Mapping[str, Any]) -> shard.Rules:
    """How a page's weights lie on its devices."""
    return tuple(map(tuple, config["sharding"]))


def _keep(folder: Path, digest: int, copy: Path) -> None:
    """Gives the newest checkpoint of a folder a second name, in the place of an unfinished start's."""
    if jax.process_index() == 0 and not (holds_run(copy) and digest_of(copy) == digest):
        if copy.exists():
            logging.warning("%s is of an unfinished start with another base: replaced", copy)
            shutil.rmtree(copy)
        root, step = find(folder)
        unfinished = copy.with_name(f".{copy.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        target = unfinished / "checkpoints" / str(step)
        shutil.copytree(root / str(step), target, copy_function=_linked)
        unfinished.rename(copy)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("diffusion_jax: base of a LoRA")


def _linked(source: str, target: str) -> None:
    """A file under a second name; a copy where the disk of the second is another, or has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
