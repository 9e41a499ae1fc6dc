"""How long each stage of a lineage trains, so that all systems spend the same.

With c(x) what a helper x spends on its own page, and n(x) how many systems need it,

    share(x)   = c(x) / n(x)                                              (1)
    own(s)     = budget - sum of share(x) over the helpers x of s         (2)
    steps(s)   = own(s) / what a step of s spends, rounded                (3)

What is spent are operations of training steps as cost/flops.py counts them, without what is
computed twice to save memory, or pictures. What measures all systems is no system's helper.
"""
from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax

from diffusion_jax.build import ConfigError
from diffusion_jax.cost import flops
from diffusion_jax.lineage.stages import Lineage, Stage, helpers_of
from diffusion_jax.planning.frozen import frozen_of, with_first_stage
from diffusion_jax.planning.layouts import batch_of
from diffusion_jax.runs import page, pages
from diffusion_jax.runs.filled import filled
from diffusion_jax.runs.folder import FIRST
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Array, Params, Raw

TRAINED_ON = ("first_stage", "dvae")
"""Roles of what runs, frozen, in every training step."""
Config = Mapping[str, Any]
SAVES, SHOWN = 4, 20
"""Checkpoints of a run that stay, and lines that it logs, at least."""


class Plan(NamedTuple):
    """A stage with its length.

    Attributes:
      stage: which; one that has a page.
      config: that page as it is trained, but for its seed and the folders of what it needs.
      steps: of training.
      step_flops: operations of one.
      batch: pictures of one.
      shares: key of a helper -> what of it counts for this system, (1), in the budget's measure.
    """

    stage: Stage
    config: dict[str, Any]
    steps: int
    step_flops: float
    batch: int
    shares: Mapping[str, float]

    @property
    def flops(self) -> float:
        """Of its own training."""
        return self.steps * self.step_flops

    @property
    def pictures(self) -> int:
        """That it sees."""
        return self.steps * self.batch

    def spent(self, measure: str) -> float:
        """What counts for this system, with its shares of helpers, in a budget's measure."""
        own = self.flops if measure == "flops" else self.pictures
        return own + sum(self.shares.values())


def plans_of(lineage: Lineage, step_flops: Mapping[str, float] | None = None) -> dict[str, Plan]:
    """The plan of every stage that has a page, by its key.

    Args:
      lineage: checked.
      step_flops: operations of a step, by key; counted by default, which takes a second a stage.

    Raises:
      ConfigError: a page that is not there or does not build; helpers that leave a system nothing.
    """
    stages = [stage for stage in lineage.stages if stage.page]
    configs = {stage.key: page_of(stage) for stage in stages}
    if step_flops is None:
        step_flops = counted(stages, configs)
    users = users_of(lineage.stages)
    of_step = step_flops
    if lineage.budget.measure == "pictures":
        of_step = {key: config["batch"] for key, config in configs.items()}
    plans = {}
    for stage in stages:
        config = configs[stage.key]
        shares: dict[str, float] = {}
        steps = config["steps"]
        if not stage.helper:
            for key in sorted(helpers_of(stage, lineage.stages)):
                shares[key] = of_step[key] * configs[key]["steps"] / len(users[key])
            steps = _steps(stage, lineage.budget.amount, of_step[stage.key], shares)
        config = of_length(config, steps)
        plans[stage.key] = Plan(
            stage, config, steps, step_flops[stage.key], config["batch"], shares
        )
    return plans


def _steps(stage: Stage, budget: float, spends: float, shares: Mapping[str, float]) -> int:
    """(3); `spends` is of one step."""
    own = budget - sum(shares.values())
    if own < spends:
        raise ConfigError(
            f"the helpers of {stage.key} ({', '.join(shares)}) take {sum(shares.values()):.3g} of "
            f"the budget {budget:.3g}: raise --config.budget.amount, or give them fewer steps"
        )
    return round(own / spends)


def users_of(stages: Iterable[Stage]) -> dict[str, set[str]]:
    """Key of a helper -> the systems that are trained here and need it, n of (1)."""
    stages = tuple(stages)
    users: dict[str, set[str]] = {}
    for stage in stages:
        if stage.page and not stage.helper:
            for key in helpers_of(stage, stages):
                users.setdefault(key, set()).add(stage.key)
    return users


# Pages --------------------------------------------------------------------------------------------


def page_of(stage: Stage) -> dict[str, Any]:
    """A stage's page with what it overrides, as nested dicts.

    Raises:
      ConfigError: no such page, or an override whose section it does not have.
    """
    config = pages.read(stage.page).to_dict()
    length = config["steps"]
    for place, value in stage.overrides.items():
        *sections, last = place.split(".")
        part = config
        for section in sections:
            part = part.get(section)
            if not isinstance(part, dict):
                raise ConfigError(
                    f"overrides of {stage.key}: {stage.page} has no section of {place!r}"
                )
        part[last] = value
    _set_length(config["optim"], length, config["steps"])
    return config


def of_length(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A page that trains so many steps, its schedule with it, and looks at nothing on the way.

    What is measured is measured once, in the comparison: a page's own samples and figures would be
    paid for by each stage in another way.
    """
    config = copy.deepcopy(dict(config))
    _set_length(config["optim"], config["steps"], steps)
    config["steps"] = steps
    config["log_every"] = max(min(config["log_every"], steps // SHOWN), 1)
    saves = config["checkpoint"]
    if "keep_every" not in saves:
        saves["every"] = max(min(saves["every"], steps // SAVES), 1)
    saves["keep"] = max(saves["keep"], SAVES)
    config["evaluate"]["num"] = 0
    if "every" in config["evaluate"]:
        config["evaluate"]["every"] = 0
    if "sample" in config:
        config["sample"]["every"] = steps
    config.pop("validate", None)
    return config


def _set_length(optim: dict[str, Any], before: int, steps: int) -> None:
    """Changes the length of the schedules that were as long as the run; `partition` has two."""
    if optim.get("steps") == before:
        optim["steps"] = steps
    for part in optim.values():
        if isinstance(part, dict):
            _set_length(part, before, steps)


# Operations ---------------------------------------------------------------------------------------


def counted(stages: Iterable[Stage], configs: Mapping[str, Config]) -> dict[str, float]:
    """Operations of a training step of each stage, by key."""
    return {
        stage.key: step_flops(configs[stage.key], first_of(stage, configs)) for stage in stages
    }


def first_of(stage: Stage, configs: Mapping[str, Config]) -> Config | None:
    """The page of the frozen part that runs in every step of a stage; None where there is none."""
    firsts = [configs[key] for role, key in stage.needs.items() if role in TRAINED_ON]
    return firsts[0] if firsts else None


def step_flops(config: Config, first: Config | None = None) -> float:
    """Operations of one training step, over its whole batch. Nothing is compiled or read.

    Args:
      config: the page.
      first: the page of the frozen part that runs in every step; None where there is none, and for
        a model of latents, which are encoded once.

    Raises:
      ConfigError: what `build` refuses.
    """
    config = plain(config)
    page.check_stored(config)
    config.pop(FIRST, None)
    if "model" in config:
        config["model"].pop("remat", None)
    config = filled(with_first_stage(config, first))
    task = cast(Any, task_of(config))
    batch = _one(batch_of(config, task))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key, batch)
    frozen = frozen_of(task, batch)

    def loss(params: Params, frozen: Params, batch: Raw) -> Array:
        beside = {**(frozen or {}), "memory": dict(task.memory())} if task.memory() else frozen
        return task.loss(params, beside, batch, jax.random.key(0), True)[0]

    def step(params: Params, frozen: Params, batch: Raw) -> Any:
        return jax.value_and_grad(loss)(params, frozen, batch)

    return float(sum(flops.count(step, params, frozen, batch).values()) * config["batch"])


def _one(batch: Raw) -> Raw:
    """Shapes of a batch of one: what is counted is the same for each, and shapes stay small."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), batch)
