"""The frozen first stage of a run that is planned: the page that it comes from is read, and none of
its weights."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from diffusion_jax.build import ConfigError
from diffusion_jax.runs import first_stage, lpips
from diffusion_jax.runs.folder import FIRST, holds_run
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.autoencoder import Perceptual
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Params, Raw

COMPONENTS = 8
"""Of an embedding, for shapes: how many a CLIP's has is known once its statistics are taken."""


def with_first_stage(
    config: Mapping[str, Any], of: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config with its first stage's task.

    Without one where the folder that it names is not there: then a step is planned on what the
    first stage makes.

    Args:
      config: the page.
      of: the page of the first stage, in place of the folder.

    Raises:
      ConfigError: a first stage that is neither an autoencoder, a CLIP nor LPIPS.
    """
    changes: dict[str, Any] = {}
    folder = "the first stage"
    without = {key: value for key, value in config.items() if key != FIRST}
    if of is None:
        folder, changes = first_stage.named(config.get(FIRST) or "")
        net = lpips.net_of(folder)
        if net is not None:
            spec, _ = lpips.shapes(net, config["task"]["shape"])
            return {**without, "task": {**config["task"], FIRST: spec}}
        if not folder or not holds_run(folder):
            return without
        of = config_of(folder)
    page = plain(of)
    page["task"] |= changes
    return {**without, "task": {**config["task"], FIRST: _spec(page, folder)}}


def _spec(page: dict[str, Any], where: str) -> dict[str, Any]:
    """What the task of a run says of its first stage, whose page this is; `where` is its name in an
    error."""
    first = task_of(page)
    if isinstance(first, kinds.TwoTowers):
        return first_stage.embedder_spec(page, COMPONENTS)
    if not isinstance(first, kinds.Encoding | kinds.Discrete | Perceptual):
        raise ConfigError(
            "plans know autoencoders, CLIPs and LPIPS as first stages: "
            f"{where} holds {first.noun}"
        )
    return page["task"] | ({"model": page["model"]} if "model" in page else {})


def frozen_of(task: Any, batch: Raw) -> Params:
    """The shapes of the weights of a task's first stage; None where it has none.

    Args:
      task: what is trained.
      batch: shapes of a batch.
    """
    first = getattr(task, FIRST, None)
    if first is None:
        return None
    if isinstance(first, Perceptual):
        return {FIRST: lpips.shapes(first.model.net, task.shape)[1]}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return {FIRST: jax.eval_shape(first.init, key, batch)}
