"""Skip-layer guidance of a recipe (diffusion/skip_layers.py): the second denoiser that it needs of
a model, and where it has no use."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.skip_layers import skip_layers
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pipelines.spelling import skip_of
from diffusion_jax.runs.folder import Model
from diffusion_jax.types import Guidance


def skip_guidance(
    recipe: Recipe, strengths: Strengths, model: Model, away: bool
) -> Guidance | None:
    """What goes into `Recipe.make_guidance`; None without it.

    Args:
      recipe, strengths: of them `skip`.
      model: what is sampled from.
      away: whether other guidance stands under it, which predicts more than the network alone.

    Raises:
      ConfigError: the network cannot pass over these blocks.
    """
    skip = skip_of(recipe.skip)
    if skip is None or strengths.skip is None:
        return None
    task: Any = model.task
    check_blocks(task, skip.layers)
    shorter = replace(task, model=task.model.clone(skip=skip.layers))
    full = task.denoiser(model.params) if away else None
    times = recipe.grid(task.process)
    return skip_layers(skip, strengths.skip, shorter.denoiser(model.params), times, full)


def check_blocks(task: Any, layers: tuple[int, ...]) -> None:
    """Raises ConfigError where a task's network cannot pass over blocks of these numbers."""
    network = getattr(task, "model", None)
    if network is None or not hasattr(network, "skip"):
        raise ConfigError(
            "skip (--skip) passes over blocks of a transformer, a DiT or an MMDiT, which this "
            "model is not: leave it out"
        )
    if max(layers) >= network.depth:
        raise ConfigError(
            f"skip (--skip) names block {max(layers)}, and this model has 0 ... {network.depth - 1}"
        )
