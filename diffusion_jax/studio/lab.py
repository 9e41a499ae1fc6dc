"""What one number does to pictures, as a sheet: a row for each of its values, all from the same noise."""
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import grid
from diffusion_jax.metrics.prdc import mean_distance
from diffusion_jax.pipelines.edit_steps import steps_of
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.studio.desk import Desk, Form
from diffusion_jax.studio.device import Counter, News, Tell
from diffusion_jax.types import Prediction


class Sheet(NamedTuple):
    """Rows of pictures uint8 [h, w, C], with a name for each row and a line of text for each picture."""

    names: Sequence[str]
    images: Sequence[Sequence[np.ndarray]]
    captions: Sequence[Sequence[str]]


class Asked(NamedTuple):
    """What is asked: a run, what of, steps, values, pictures uint8 [N, H, W, C], another class or text; and who hears of it."""

    pipe: Pipeline
    request: Any
    num: int
    seed: int
    steps: int
    values: Sequence[Any]
    images: np.ndarray
    to: str
    tell: Tell


class Experiment(NamedTuple):
    """The values of a sweep, the edit's name, and what makes rows uint8 [values, N, H, W, C] of them, or a sheet."""

    values: Sequence[float]
    op: str
    run: Callable[[Any, Asked], Any]


def _cads(_: Any, a: Asked) -> np.ndarray:
    pipes = [a.pipe.using(cads=f"s={value}") if value else a.pipe for value in a.values]
    return np.stack([pipe(a.request, a.num, a.seed).images for pipe in pipes])


def _samplers(_: Any, a: Asked) -> Sheet:
    """The same pictures by several samplers in fewer and fewer steps, timed once they are compiled."""
    names, counts = ("ddim", "euler_ancestral", "dpmpp_2m"), sorted({max(1, a.steps // part) for part in (4, 2, 1)})
    made, captions = [], []
    for name, count in itertools.product(names, counts):
        pipe = replace(a.pipe, meter=None, recipe=a.pipe.diffusion.using(sampler=name, steps=count))
        pipe(a.request, a.num, a.seed)
        clock = time.perf_counter()
        made.append(pipe(a.request, a.num, a.seed).images)
        captions.append(f"{count} steps, {calls_of(pipe)} calls, {time.perf_counter() - clock:.2f} s")
        a.tell(News(len(made), len(counts) * len(names)))
    rows = [range(first, first + len(counts)) for first in range(0, len(made), len(counts))]
    return Sheet(names, [[grid(made[i], a.num) for i in row] for row in rows], [[captions[i] for i in row] for row in rows])


def calls_of(pipe: Pipeline) -> int:
    """How often a picture asks the network: the calls of a step, counted as it is traced, times the steps."""
    task, times, calls = pipe.run.task, pipe.diffusion.grid(pipe.run.task.process), []
    sampler = pipe.diffusion.make_sampler(task, jax.random.normal)

    def denoise(x: Any, t: Any, key: Any) -> Prediction:
        calls.append(t)
        return Prediction(x, logvar=x if task.learned_variance else None)

    def step(x: Any, key: Any) -> Any:
        return sampler.step(denoise, x, sampler.init(x, len(times) - 1), times[0], times[1], key)[0]

    jax.eval_shape(step, jax.ShapeDtypeStruct((1, *task.shape), np.float32), jax.random.key(0))
    return len(calls) * (len(times) - 1)


SHARES, SCALES = (0, 0.25, 0.5, 0.75, 1), (-10, -7.5, -5, -2.5, 0, 1, 2.5, 5, 7.5, 10)
EDITS = {
    "strength": Experiment(SHARES, "strength", lambda e, a: e.strength(a.images, a.request, a.values, a.num, a.seed)),
    "inversion": Experiment((0,), "invert", lambda e, a: e.invert(a.images, a.request)),
    "mix": Experiment(SHARES, "mix", lambda e, a: e.mix(a.request, a.to, a.values, a.num, a.seed)),
    "variations": Experiment((0, 0.5, 1), "variations", lambda e, a: e.variations(a.images, a.values, a.num, a.seed)),
    "interpolation": Experiment(SHARES, "interpolate", lambda e, a: e.interpolate(a.images, a.values, a.seed)),
    "text difference": Experiment(
        (0, 0.1, 0.2, 0.3), "text_diff", lambda e, a: e.text_diff(a.images, a.request.prompt or "", a.to, a.values, a.seed)),
}
LAB = {
    "guidance": Experiment(SCALES, "guidance", lambda e, a: e.guidance(a.request, a.values, a.num, a.seed)),
    "phi": Experiment(SCALES, "phi", lambda e, a: e.phi(a.request, a.values, a.num, a.seed)),
    "CADS": Experiment((0, 0.05, 0.1, 0.25, 0.5, 1), "", _cads),
    "switch": Experiment(SHARES, "switch", lambda e, a: e.switch(
        a.request, a.to, [round(share * a.steps) for share in a.values], a.num, a.seed)),
    "samplers": Experiment((), "", _samplers),
}


def sheet(desk: Desk, form: Form, name: str, value: Any, images: Sequence[np.ndarray], to: str, tell: Tell) -> Sheet:
    """What an edit or an experiment makes of one value, of all where it is None; `ConfigError` for what the run has not."""
    pipe, request, num, seed = desk.asked(form)
    if name not in desk.offers[form.run].tools:
        raise ConfigError(f"this run has no {name}")
    values, op, run = (EDITS | LAB)[name]
    values = values if value is None else [value]
    needed = 2 if name == "interpolation" else 1 if name in EDITS and name != "mix" else 0
    if len(images) < needed:
        raise ConfigError("load a picture, or send one from Make" if needed == 1 else "load a picture and a second one")
    if op in ("variations", "interpolate", "text_diff"):  # they come back by DDIM from noise that DDIM found
        pipe = replace(pipe, recipe=pipe.diffusion.using(sampler="ddim", temperature=1.0))
    pipe = replace(pipe, meter=Counter(tell, steps_of(pipe.stages, op, len(values))))
    pictures = np.stack(images[:needed] or [np.zeros(1)])
    made = run(pipe.edit, Asked(pipe, request, num, seed, form.steps, values, pictures, to, tell))
    if isinstance(made, Sheet):
        return made
    rows = made if isinstance(made, np.ndarray) else made.images  # uint8 [values, N, H, W, C]
    names = ("picture", "its noise, halved", "back") if op == "invert" else [f"{name} {value:g}" for value in values]
    return Sheet(names, [[grid(row, len(row))] for row in rows], [[diversity(row)] for row in rows])


def diversity(images: np.ndarray) -> str:
    """How far pictures uint8 [N, H, W, C] lie apart, for people; '' of one."""
    flat = images.reshape(len(images), -1) / np.float32(127.5)
    return f"diversity {mean_distance(flat):.2f}" if len(flat) > 1 else ""
