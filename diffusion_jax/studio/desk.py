"""The runs of a studio: what each of them has, for the rest is not shown, and what a page asks of it, in the library's words."""
from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.request import SEEDS, Request
from diffusion_jax.pipelines.spelling import GRIDS, SAMPLERS, parse
from diffusion_jax.studio import bounds

GIVEN = {"label", "tokens", "mask", "known", "inpaint"}
"""Conditions that a page gives, or that a blank picture stands for."""
SAMPLING = ("steps", "guidance", "sampler", "times", "phi", "interval", "threshold", "temperature")
"""Fields of a form that are a recipe's too; of CADS it has one number of the recipe's text."""


class Form(NamedTuple):
    """What is asked for, in the order of the fields on the page."""

    run: str
    classes: Sequence[str] = ()
    prompt: str = ""
    negative: str = ""
    num: int = 4
    seed: int = 0
    steps: int = 50
    guidance: float = 1.0
    sampler: str = "ddim"
    times: str = "uniform"
    phi: float = 0.0
    cads: float = 0.0
    interval: str = ""
    threshold: float = 0.0
    temperature: float = 1.0


class Offer(NamedTuple):
    """What a run has: the names of its fields, those of its edits and experiments, and the choices of some fields."""

    fields: set[str]
    tools: set[str]
    choices: Mapping[str, Sequence[str]]


def offer_of(pipe: Pipeline) -> Offer:
    """What the run of a pipeline has; `ConfigError` for one of which a page could ask nothing."""
    if pipe.makes_tokens:
        return Offer({"num", "seed", "prompt", "guidance", "temperature"}, set(), {})
    task, keys = pipe.run.task, set(pipe.run.task.cond.keys)
    unclip = task.embedder is not None
    if keys - GIVEN and not unclip:
        needs = ", ".join(sorted(keys - GIVEN))
        raise ConfigError(f"{pipe.run.folder} reads {needs}, which the studio does not give: open a model of classes or texts")
    guided, cads, text = goes(pipe, guidance=2.0), goes(pipe, cads="s=0.1"), "tokens" in keys
    fields = {
        ("num", "seed", "steps", "sampler", "times", "threshold"): True, ("classes",): "label" in keys, ("cads",): cads,
        ("prompt",): text or (unclip and pipe.prior is not None), ("negative",): text and not unclip,
        ("guidance", "phi", "interval"): guided}
    tools = {("strength", "inversion", "samplers"): True, ("mix", "switch"): bool(keys & {"label", "tokens"}),
             ("guidance", "phi"): guided, ("CADS",): cads}
    tools = {names: has and not unclip and not pipe.upsamplers for names, has in tools.items()}
    tools[("variations", "interpolation", "text difference")] = unclip
    choices = {
        "classes": pipe.run.class_names or tuple(map(str, range(task.num_classes))),
        "sampler": [name for name in SAMPLERS if goes(pipe, sampler=name)],
        "times": [name for name in GRIDS if goes(pipe, times=name)],
    }
    seen, usable = ({name for names in these if these[names] for name in names} for these in (fields, tools))
    return Offer(seen, usable, choices)


def goes(pipe: Pipeline, **changes: Any) -> bool:
    """Whether the recipe of a diffusion model goes with it when some of its fields are changed."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # warnings are for who chooses it
            pipe.diffusion.using(**changes).check(pipe.run.task)
    except ConfigError:
        return False
    return True


def filled(name: str, pipe: Pipeline, **other: Any) -> Form:
    """The form of a run as its page samples; `other` are further fields."""
    recipe: Any = pipe.recipe
    own = {key: getattr(recipe, key) for key in SAMPLING if hasattr(recipe, key)}
    if isinstance(recipe, Recipe):
        own["steps"] = len(recipe.grid(pipe.run.task.process)) - 1
        own["cads"] = parse(recipe.cads)[1].get("s", 0.1) if recipe.cads else 0.0
    return Form(name, **(own | other))


class Desk:
    """The runs of a studio, open, by their names."""

    def __init__(self, pipes: Mapping[str, Pipeline]):
        self.pipes = dict(pipes)
        self.offers = {name: offer_of(pipe) for name, pipe in self.pipes.items()}

    def pipe(self, name: Any) -> Pipeline:
        """The run of a name; `ConfigError` for any other, and no folder is looked for."""
        if not isinstance(name, str) or name not in self.pipes:
            raise unknown("run", str(name)[:100], self.pipes)
        return self.pipes[name]

    def name_of(self, folder: Any) -> str:
        """The name of the run in a folder; `ConfigError` where it is not open here."""
        names = [name for name, pipe in self.pipes.items() if pipe.run.identity["run"] == folder]
        if names:
            return names[0]
        raise ConfigError(f"this picture is of the run {Path(str(folder)).name}, which is not open here")

    def asked(self, form: Form) -> tuple[Pipeline, Request, int, int]:
        """(run, what of, number of each, seed) of a form; `ConfigError` for what it may not ask, or what the library refuses."""
        pipe = self.pipe(form.run)
        classes = tuple(str(bounds.text("a class", one)) for one in form.classes or ())
        words = {"prompt": bounds.text("the text", form.prompt), "negative": bounds.text("what is not wanted", form.negative)}
        request = Request(label=classes or None, **words)
        num = bounds.whole("number", form.num, 1, bounds.PICTURES // min(request.rows, bounds.PICTURES))
        changes = changes_of(pipe, form)
        return pipe.using(**changes) if changes else pipe, request, num, bounds.whole("seed", form.seed, 0, SEEDS - 1)

    def shown(self, form: Form) -> list[dict[str, Any]]:
        """What each field of a form is on the page: its value, whether it is to be seen, and its choices."""
        fields, _, offered = self.offers[form.run]
        # The run's own sampler may have options behind its name.
        choices = {name: list(dict.fromkeys((getattr(form, name), *offered[name]))) for name in ("sampler", "times") if offered}
        choices |= {"run": list(self.pipes), "classes": list(offered.get("classes", ()))}
        seen = fields | ({"run"} if len(self.pipes) > 1 else set())
        values = form._replace(classes=list(form.classes))._asdict()
        return [{"value": value, "visible": name in seen, "choices": choices.get(name)} for name, value in values.items()]


def changes_of(pipe: Pipeline, form: Form) -> dict[str, Any]:
    """The fields of a recipe in which a form differs from the run's own."""
    bounds.whole("steps", form.steps, 1, bounds.STEPS)
    own = filled(form.run, pipe)
    names = [name for name in SAMPLING if hasattr(pipe.recipe, name)]
    changes = {name: getattr(form, name) for name in names if getattr(form, name) != getattr(own, name)}
    if form.cads != own.cads and isinstance(pipe.recipe, Recipe):
        changes["cads"] = f"s={form.cads}" if form.cads else ""
    return changes
