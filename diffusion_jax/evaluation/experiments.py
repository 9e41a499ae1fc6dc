"""What one number does to pictures, as a sheet: a row for each of its values, all from the same
noise.

    sheet(pipe, "guidance", Ask(3, num=4)).save("guidance.gif")
    sheet(pipe, "strength", Ask(3, images=[image], values=[0.5]))

`EDITS` begin with a picture, or with two, or lie between two conditions; `LAB` are the experiments
of the papers: guidance and rescaled phi from -10 to 10, the strength of CADS with the diversity
that it brings, a condition that is switched half-way, samplers beside each other, runs beside each
other, and the path of one picture.
"""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.data.animation import animated
from diffusion_jax.data.pictures import grid
from diffusion_jax.metrics.prdc import mean_distance
from diffusion_jax.pipelines.calls import calls_of
from diffusion_jax.pipelines.choices import goes_with
from diffusion_jax.pipelines.edit_steps import INVERTED, steps_of
from diffusion_jax.pipelines.path import path
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.progress import Meter
from diffusion_jax.pipelines.request import Request

SHARES = (0, 0.25, 0.5, 0.75, 1)
SCALES = (-10, -7.5, -5, -2.5, 0, 1, 2.5, 5, 7.5, 10)
SAMPLERS = ("ddim", "euler_ancestral", "dpmpp_2m")
POINTS = 10
"""Of a path, about, beside its end."""


class Ask(NamedTuple):
    """What is asked of an experiment.

    Attributes:
      request, num, seed: as for a call of the pipeline.
      values: of the number that is changed; () for those of the experiment.
      images: pictures uint8 [H, W, C] that it begins with.
      to: another class or text, to which it goes.
      runs: pipelines by name, which `runs` sets beside each other.
    """

    request: Any = None
    num: int = 1
    seed: int = 0
    values: Sequence[float] = ()
    images: Sequence[np.ndarray] = ()
    to: str = ""
    runs: Mapping[str, Pipeline] = {}


class Sheet(NamedTuple):
    """Rows of pictures.

    Attributes:
      names: of the rows.
      images: uint8 [h, w, C] each.
      captions: a text for each of them.
      is_sweep: whether the rows follow each other in time or by value, as frames do.
    """

    names: Sequence[str]
    images: Sequence[Sequence[np.ndarray]]
    captions: Sequence[Sequence[str]]
    is_sweep: bool = True

    def save(self, out: str | Path) -> list[Path]:
        """Writes a frame for each row as a GIF, and as an MP4 where imageio-ffmpeg is installed;
        returns where they are. Nothing of a single row, or of rows that are no sweep."""
        if not self.is_sweep or len(self.images) < 2:
            return []
        return animated(out, np.stack([np.concatenate(row, axis=1) for row in self.images]))


class Experiment(NamedTuple):
    """A number that is changed.

    Attributes:
      values: that it has by default; () where there is nothing to choose.
      op: the name of the edit, `pipe.edit`; '' where it is none.
      pictures: how many it begins with.
    """

    values: Sequence[float] = ()
    op: str = ""
    pictures: int = 0


EDITS = {
    "strength": Experiment(SHARES, "strength", 1),
    "inversion": Experiment((), "invert", 1),
    "mix": Experiment(SHARES, "mix"),
    "variations": Experiment((0, 0.5, 1), "variations", 1),
    "interpolation": Experiment(SHARES, "interpolate", 2),
    "text difference": Experiment((0, 0.1, 0.2, 0.3), "text_diff", 1),
}
LAB = {
    "guidance": Experiment(SCALES, "guidance"),
    "phi": Experiment(SCALES, "phi"),
    "CADS": Experiment((0, 0.05, 0.1, 0.25, 0.5, 1)),
    "switch": Experiment(SHARES, "switch"),
    "samplers": Experiment(),
    "runs": Experiment(),
    "path": Experiment(),
}
EXPERIMENTS = EDITS | LAB


def offered(pipe: Pipeline) -> set[str]:
    """The experiments that a pipeline has by itself."""
    if pipe.makes_tokens or pipe.upsamplers:
        return set()
    if pipe.run.task.embedder is not None:
        return {"variations", "interpolation", "text difference"}
    names = {"strength", "inversion", "samplers", "path"}
    if {"label", "tokens"} & set(pipe.run.task.cond.keys):
        names |= {"mix", "switch"}
    if goes_with(pipe, guidance=2.0):
        names |= {"guidance", "phi"}
    if goes_with(pipe, cads="s=0.1"):
        names |= {"CADS"}
    return names


def steps_of_sheet(pipe: Pipeline, name: str, ask: Ask) -> int:
    """How many steps a meter counts of an experiment; of `samplers` and `runs` how many cells of
    pictures."""
    if name == "samplers":
        return len(SAMPLERS) * len(_counts(pipe))
    if name == "runs":
        return len(ask.runs)
    values, op, _ = EXPERIMENTS[name]
    return steps_of(pipe.stages, op, len(ask.values or values))


def sheet(pipe: Pipeline, name: str, ask: Ask, meter: Meter | None = None) -> Sheet:
    """What an experiment makes.

    Args:
      pipe: what makes it.
      name: one of `EXPERIMENTS`.
      ask: of what.
      meter: counts `steps_of_sheet`; None for nobody.

    Raises:
      ConfigError: an experiment that is unknown, pictures that are missing, or what the edit itself
        refuses, of a pipeline that does not have it for example.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    values, op, pictures = EXPERIMENTS[name]
    if len(ask.images) < pictures:
        needs = "a picture" if pictures == 1 else "a picture and a second one"
        raise ConfigError(f"{name} begins with {needs}, which is missing: load it")
    ask = ask._replace(values=ask.values or values, images=ask.images[:pictures])
    if name == "path":
        return _path(pipe, ask, meter)
    if name == "samplers":
        return _samplers(pipe, ask, meter)
    if name == "runs":
        return _runs(ask, meter)
    pipe = replace(pipe, meter=meter)
    rows = _cads(pipe, ask) if name == "CADS" else _edited(pipe, op, ask)
    names: Sequence[str] = [f"{name} {value:g}" for value in ask.values]
    if name == "inversion":
        names = ("picture", "its noise, halved", "back")
    captions = [[f"diversity {diversity(row):.2f}" if len(row) > 1 else ""] for row in rows]
    return Sheet(names, [[grid(row, len(row))] for row in rows], captions)


def diversity(images: np.ndarray) -> float:
    """How far pictures uint8 [N, H, W, C] lie apart: the mean distance of two in [-1, 1]
    (metrics/prdc.py, 5)."""
    return mean_distance(images.reshape(len(images), -1) / np.float32(127.5))


def _edited(pipe: Pipeline, op: str, ask: Ask) -> np.ndarray:
    """uint8 [values, N, H, W, C] of an edit."""
    # They come back by DDIM from noise that DDIM found, as `invert` does by itself.
    if op in INVERTED and op != "invert":
        pipe = replace(pipe, recipe=pipe.diffusion.using(sampler="ddim", temperature=1.0))
    edit = pipe.edit
    images = np.stack(ask.images) if ask.images else np.zeros(0)
    match op:
        case "strength":
            made = edit.strength(images, ask.request, ask.values, ask.num, ask.seed)
        case "invert":
            made = edit.invert(images, ask.request)
        case "mix":
            made = edit.mix(ask.request, ask.to, ask.values, ask.num, ask.seed)
        case "switch":
            steps = len(pipe.diffusion.grid(pipe.run.task.process)) - 1
            after = [round(share * steps) for share in ask.values]
            made = edit.switch(ask.request, ask.to, after, ask.num, ask.seed)
        case "guidance":
            made = edit.guidance(ask.request, ask.values, ask.num, ask.seed)
        case "phi":
            made = edit.phi(ask.request, ask.values, ask.num, ask.seed)
        case "variations":
            made = edit.variations(images, ask.values, ask.num, ask.seed)
        case "interpolate":
            made = edit.interpolate(images, ask.values, ask.seed)
        case _:
            text: Any = Request.of(ask.request).prompt or ""
            made = edit.text_diff(images, text, ask.to, ask.values, ask.seed)
    return made.images


def _cads(pipe: Pipeline, ask: Ask) -> np.ndarray:
    """uint8 [values, N, H, W, C]: a program without CADS for the value 0, one for all others."""
    pipes = [pipe.using(cads=f"s={value}") if value else pipe for value in ask.values]
    return np.stack([each(ask.request, ask.num, ask.seed).images for each in pipes])


def _counts(pipe: Pipeline) -> list[int]:
    """A quarter, a half and all of a recipe's steps."""
    steps = len(pipe.diffusion.grid(pipe.run.task.process)) - 1
    return sorted({max(1, steps // part) for part in (4, 2, 1)})


def _samplers(pipe: Pipeline, ask: Ask, meter: Meter | None) -> Sheet:
    """The same pictures by several samplers in fewer and fewer steps, timed."""
    rows, captions = [], []
    for name in SAMPLERS:
        row, texts = [], []
        for count in _counts(pipe):
            one = replace(pipe, recipe=pipe.diffusion.using(sampler=name, steps=count))
            images, text = _timed(one, ask)
            row.append(images)
            texts.append(f"{count} steps, {text}")
            if meter is not None:
                meter.update(1)
        rows.append(row)
        captions.append(texts)
    return Sheet(SAMPLERS, rows, captions, is_sweep=False)


def _runs(ask: Ask, meter: Meter | None) -> Sheet:
    """The same request by several runs, each as its own recipe samples, timed; one that refuses it
    says why."""
    names, rows, captions = [], [], []
    for name, pipe in ask.runs.items():
        try:
            images, text = _timed(pipe, ask)
            names.append(name)
            rows.append([images])
            captions.append([text])
        except ConfigError as error:
            names.append(f"{name}: {error}")
            rows.append([])
            captions.append([])
        if meter is not None:
            meter.update(1)
    return Sheet(names, rows, captions, is_sweep=False)


def _timed(pipe: Pipeline, ask: Ask) -> tuple[np.ndarray, str]:
    """(the pictures beside each other, calls of the network and seconds for each of them), once the
    programs are compiled."""
    pipe(ask.request, ask.num, ask.seed)
    clock = time.perf_counter()
    images = pipe(ask.request, ask.num, ask.seed).images
    seconds = (time.perf_counter() - clock) / len(images)
    return grid(images, len(images)), f"{calls_of(pipe)} calls, {seconds:.3f} s a picture"


def _path(pipe: Pipeline, ask: Ask, meter: Meter | None) -> Sheet:
    """x_t and x0 of one picture over the steps."""
    every = max(1, (len(pipe.diffusion.grid(pipe.run.task.process)) - 1) // POINTS)
    names, images = [], []
    done = 0
    for point in path(pipe, ask.request, 1, ask.seed, every):
        names.append(f"step {point.step}, σ/α {point.level:.3g}")
        images.append([point.noisy[0], point.clean[0]])
        if meter is not None:
            meter.update(point.step - done)
            done = point.step
    return Sheet(names, images, [["x_t", "x0"]] * len(names))
