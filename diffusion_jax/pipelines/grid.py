"""Whether a sampler goes with a model, and times with a sampler: they begin in noise, and no step is
longer than the method can make."""
from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import reach
from diffusion_jax.pipelines.spelling import parse
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Process


def check_task(task: Any, sampler: str) -> None:
    """Refuses a sampler that reads of a model what it does not know.

    Args:
      task: what is sampled from.
      sampler: as a recipe has it, with its options.

    Raises:
      ConfigError: says what to choose instead.
    """
    name, _ = parse(sampler)
    if isinstance(task, kinds.FewSteps):
        task.check_sampler(name)
    elif name == "meanflow":
        raise ConfigError(
            "meanflow steps by mean velocities, which this model was not trained to tell: choose "
            "ddim, or train tasks.meanflow:MeanFlow"
        )


def check_grid(process: Process, times: np.ndarray, sampler: str, variance: str) -> None:
    """Refuses times that would make noise; of steps that are too long it says so, once, on stderr.

    Args:
      process: of the model.
      times: a grid, [N + 1].
      sampler: as a recipe has it, with its options.
      variance: of the ancestral sampler, unless its options say another.

    Raises:
      ConfigError: the times do not begin in noise.
    """
    reach.check_start(process, times)
    strain = strain_of(sampler, variance)
    if strain is not None:
        warn(reach.remark(process, times, strain, sampler))


@functools.cache
def warn(text: str) -> None:
    """Says a warning on stderr, each but once."""
    if text:
        print(f"warning: {text}", file=sys.stderr)


def strain_of(sampler: str, variance: str) -> reach.Strain | None:
    """What long steps of a sampler do to the images; None for one that every grid suits."""
    name, options = parse(sampler)
    if name == "ancestral" and options.get("variance", variance) == "fixed_large":
        return reach.large_variance
    if name == "dpm_solver" and options.get("sde") and options.get("form") == "eps":
        return reach.fresh_noise
    if name == "unipc" and options.get("form") == "eps":
        return reach.second_evaluation
    if name == "unipc" and options.get("variant") == "bh1":
        return reach.first_variant
    return {"edm": reach.second_evaluation, "plms": reach.first_step}.get(name)
