"""Parts of a recipe that change nothing, and why: a flag that does nothing is refused.

A page may say such a thing, the guidance of a model that is not always guided for example; what a
user asks for is to have an effect.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.guidance_input import refusal
from diffusion_jax.pipelines.spelling import (
    CADS,
    GRIDS,
    SAMPLERS,
    SCHEDULES,
    defaults_of,
    parse,
    skip_of,
)
from diffusion_jax.types import Augments, Cond, Params, Raw

if TYPE_CHECKING:
    from diffusion_jax.pipelines.recipe import Recipe

OF_GUIDANCE = ("cfg_batch", "schedule", "phi", "interval", "channels", "keep_parallel")
"""Fields that change guidance, and nothing where there is none."""
TABLES = {"sampler": SAMPLERS, "times": GRIDS, "schedule": SCHEDULES, "cads": {"": CADS}}
OF_CHURN = dict.fromkeys(("s_min", "s_max", "s_noise"), ("s_churn", 0))
OF_RESCALING = dict.fromkeys(("psi", "statistics"), ("rescale", False))
OPTIONS = {
    "edm": OF_CHURN,
    "euler": OF_CHURN,
    "dpm_solver": {"corrector": ("order", 1)},
    "unipc": {"lower_order_final": ("order", 1)},
    "deis": {"lower_order_final": ("order", 1)},
    "CADS": OF_RESCALING,
}
"""By function: options that change nothing where another one has this value."""


def reason(recipe: Recipe, name: str, task: Any, classifier: bool = False, swept: str = "") -> str:
    """Why a field of a recipe changes nothing; '' where it does something.

    Args:
      recipe: with the value in question, which is not the field's default.
      name: of the field.
      task: what is sampled from.
      classifier: whether a classifier guides.
      swept: the field that takes other values than its own, in a sweep.
    """
    value = getattr(recipe, name)
    if name in (*OF_GUIDANCE, "plus_plus") and refusal(task, name):
        return refusal(task, name)
    if name in OF_GUIDANCE and not recipe.guides and swept != "guidance":
        return f"{name} (--{name}) is of guidance, which is 1 here, none: give guidance too"
    if name == "classifier_scale" and not classifier:
        return "--classifier_scale needs a --classifier"
    if name == "classifier_scale" and not value and swept != name:
        return "classifier_scale (--classifier_scale) 0 leaves the classifier out: do so"
    if name == "augment" and not _augments(task):
        return "augment (--augment) is for an upsampler that was trained with it: leave it out"
    if name == "levels" and "low_res" not in task.cond.keys:
        return "levels are those of the images that an upsampler reads: leave it out"
    if name == "channels" and value >= task.shape[-1] and swept != name:
        return f"channels (--channels) {value} are all that the model has: leave it out"
    if name == "clip" and recipe.threshold and value >= 1 and swept not in (name, "threshold"):
        return "clip (--clip) finds nothing beyond 1 after threshold (--threshold): choose one"
    if name == "skip" and swept != "steps":
        return _of_skip(recipe, task)
    if name == "interval" and value.replace(" ", "") in ("0,inf", "0.0,inf"):
        return "interval (--interval) 0,inf is all levels: leave it out"
    return of_text(value, TABLES[name]) if name in TABLES else ""


def _of_skip(recipe: Recipe, task: Any) -> str:
    """Why skip-layer guidance changes nothing."""
    skip = skip_of(recipe.skip)
    steps = len(recipe.grid(task.process)) - 1
    if skip is None or (skip.scale and skip.steps(steps).any()):
        return ""
    if not skip.scale:
        return "skip (--skip) with scale 0 is none: leave it out"
    return (
        f"skip (--skip) guides from {skip.start:g} to {skip.stop:g} of the steps, both excluded, "
        f"and none of {steps} lies there: give more steps (--steps), or a larger stop"
    )


def refuse_halves(recipe: Recipe, weak: bool) -> None:
    """Raises ConfigError where guidance by two networks, one of them weak, is to be cut in halves."""
    if weak and recipe.cfg_batch == 1:
        raise ConfigError(
            "cfg_batch (--cfg_batch) is of guidance by one network, and a weak model is another: "
            "leave it out"
        )


def of_text(text: str, table: Mapping[str, str]) -> str:
    """Why an option in a text changes nothing; '' where all of them do something.

    Args:
      text: as in pipelines/spelling.py.
      table: the functions, by name.
    """
    name, options = parse(text)
    if name not in table:  # of a user's own package, whose options nobody knows here
        return ""
    # Both anneal below tau1 not at all, and the noisiest time is 1.
    if options.get("tau1", 0) >= 1:
        return f"{text!r}: with tau1 of 1 or more it never acts"
    if options.get("power") == 0:
        return f"{text!r}: with power 0 it is constant"
    defaults = defaults_of(table[name])
    values = defaults | options
    for key, (other, value) in OPTIONS.get(table[name].partition(":")[2], {}).items():
        # A default is no demand.
        if values[key] != defaults[key] and values[other] == value:
            return f"{text!r}: {key} changes nothing where {other} is {value}"
    return ""


def _augments(task: Any) -> bool:
    """Whether the model's small image is noised to a level."""
    if "low_res" not in task.cond.keys:
        return False

    def prepared(raw: Raw) -> Raw:
        return dict(task.cond.prepare(raw, jax.random.key(0), level=0.0))

    # By tracing the conditioner, which may be a stack of several: a level that it adds is read.
    raw = {"low_res": jax.ShapeDtypeStruct((1, 8, 8, task.shape[-1]), jnp.float32)}
    return "level" in jax.eval_shape(prepared, raw)


def embeds(task: Any) -> bool:
    """Whether the network sees a vec or a seq, as far as labels and what is made of images tell;
    texts are always embedded."""
    # A vec that says how pictures are augmented says nothing in sampling.
    cond: Any = task.cond.cond if isinstance(task.cond, Augments) else task.cond
    if not set(cond.keys) <= {"label", *cond.derived}:
        return True
    raw = {
        "image": jax.ShapeDtypeStruct((1, *task.shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    key = jax.random.key(0)

    def embedded(raw: Raw) -> tuple[Cond, Params]:
        return cond.init_with_output(key, cond.prepare(raw, key))

    seen, _ = jax.eval_shape(embedded, raw)
    return not {"vec", "seq"}.isdisjoint(seen)
