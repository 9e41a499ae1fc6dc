"""The runs of a studio: what each of them has, for the rest is not shown, and what a page asks of
it, in the library's words."""
from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.evaluation.experiments import offered
from diffusion_jax.pipelines.choices import classes_of, fields_of, grids_of, samplers_of
from diffusion_jax.pipelines.jobs import Device, making
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.replay import read_request
from diffusion_jax.pipelines.request import SEEDS, Request
from diffusion_jax.pipelines.spelling import parse
from diffusion_jax.studio import bounds


class Form(NamedTuple):
    """What is asked for, in the order of the fields on the page."""

    run: str
    label: Sequence[str] = ()
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


SAMPLING = [field.name for field in fields(Recipe) if field.name in {*Form._fields} - {"cads"}]
"""Fields of a form that are a recipe's too; of CADS it has one number of the recipe's text."""


def filled(name: str, pipe: Pipeline, **other: Any) -> Form:
    """The form of a run as its page samples; `other` are further fields."""
    recipe = pipe.recipe
    own = {key: getattr(recipe, key) for key in SAMPLING if hasattr(recipe, key)}
    if isinstance(recipe, Recipe):
        own["steps"] = len(recipe.grid(pipe.run.task.process)) - 1
        own["cads"] = parse(recipe.cads)[1].get("s", 0.1) if recipe.cads else 0.0
    return Form(name, **(own | other))


def changes_of(pipe: Pipeline, form: Form) -> dict[str, Any]:
    """The fields of a recipe in which a form differs from the run's own."""
    bounds.whole("steps", form.steps, 1, bounds.STEPS)
    own = filled(form.run, pipe)
    changes = {name: getattr(form, name) for name in SAMPLING if hasattr(pipe.recipe, name)}
    changes = {name: value for name, value in changes.items() if value != getattr(own, name)}
    if form.cads != own.cads and isinstance(pipe.recipe, Recipe):
        changes["cads"] = f"s={form.cads}" if form.cads else ""
    return changes


class Desk:
    """The runs of a studio, open, by their names.

    Attributes:
      pipes: the runs.
      first: the form that the page begins with.
      fields: what of a form each of them has.
      tools: the edits and experiments of each.
      choices: what some fields may be.
    """

    def __init__(self, pipes: Mapping[str, Pipeline]):
        self.pipes = dict(pipes)
        self.first = filled(*next(iter(pipes.items())))
        self.fields = {name: {"num", "seed"} | fields_of(pipe) for name, pipe in pipes.items()}
        several = {"runs"} if len(pipes) > 1 else set()
        self.tools = {name: offered(pipe) | several for name, pipe in pipes.items()}
        self.choices = {
            name: {"label": classes_of(pipe), "sampler": samplers_of(pipe), "times": grids_of(pipe)}
            for name, pipe in pipes.items()
        }

    def warm(self, device: Device) -> None:
        """Makes the first form's pictures for nobody, so that its programs are compiled before
        somebody asks."""
        with contextlib.suppress(ConfigError):  # it wants a text, for example
            list(device.watched(making(*self.call_of(self.first))))

    def pipe(self, name: Any) -> Pipeline:
        """The run of a name; `ConfigError` for any other, and no folder is looked for."""
        if not isinstance(name, str) or name not in self.pipes:
            raise unknown("run", str(name)[:100], self.pipes)
        return self.pipes[name]

    def form_of(self, data: bytes | None) -> Form:
        """The form that a PNG was made from; `ConfigError` for a file that does not say so, or that
        names a run which is not open here."""
        with tempfile.NamedTemporaryFile(suffix=".png") as copy:
            copy.write(bounds.file(data))
            copy.flush()
            try:
                origin = read_request(copy.name).origin
            except ConfigError as error:
                raise ConfigError(str(error).replace(copy.name, "this picture")) from None
        folder = origin.run.get("run")
        names = [name for name, pipe in self.pipes.items() if pipe.run.identity["run"] == folder]
        if not names:
            of = Path(str(folder)).name
            raise ConfigError(f"this picture is of the run {of}, which is not open here")
        pipe = self.pipes[names[0]]
        origin = origin._replace(classes=pipe.run.class_names)
        labels = origin.request.labels or ()
        changes = {key: origin.recipe[key] for key in (*SAMPLING, "cads") if key in origin.recipe}
        return filled(
            names[0],
            replace(pipe, recipe=pipe.recipe.using(**changes)),
            label=[one if isinstance(one, str) else origin.class_of(one) for one in labels],
            prompt="\n".join(origin.request.prompts or ()),
            negative=origin.request.negative or "",
            num=min(origin.num, bounds.PICTURES),
            seed=origin.seed,
        )

    def call_of(self, form: Form) -> tuple[Pipeline, Request, int, int]:
        """(run, what of, number of each, seed) of a form; `ConfigError` for what it may not ask, or
        what the library refuses."""
        pipe = self.pipe(form.run)
        request = Request(
            label=tuple(str(bounds.text("a class", one)) for one in form.label or ()) or None,
            prompt=bounds.text("the text", form.prompt),
            negative=bounds.text("what is not wanted", form.negative),
        )
        most = bounds.PICTURES // min(request.rows, bounds.PICTURES)
        num = bounds.whole("number", form.num, 1, most)
        seed = bounds.whole("seed", form.seed, 0, SEEDS - 1)
        changes = changes_of(pipe, form)
        return pipe.using(**changes) if changes else pipe, request, num, seed

    def shown(self, form: Form) -> list[dict[str, Any]]:
        """What each field of a form is on the page: its value, whether it is to be seen, and its
        choices."""
        choices = self.choices[form.run] | {"run": list(self.pipes)}
        for name in ("sampler", "times"):
            # The run's own may have options behind its name.
            choices[name] = list(dict.fromkeys((getattr(form, name), *choices[name])))
        visible = self.fields[form.run] | ({"run"} if len(self.pipes) > 1 else set())
        return [
            {"value": value, "visible": name in visible, "choices": choices.get(name)}
            for name, value in form._replace(label=list(form.label))._asdict().items()
        ]
