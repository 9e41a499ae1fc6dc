"""Mode `sample`: a run's folder -> a grid, a folder of PNGs, or an npz for an evaluator.

    --out x.png     a grid; with several prompts a row for each
    --out x.npz     arr_0, and arr_1 the labels
    --out x/        a PNG each, written as they come
    --out x.gif     how they arise, a frame every few steps, of a transformer over tokens every few
                    rows of them; x.mp4 likewise

Without --out the files of before stay: samples.png is followed by samples-2.png. A file that is
named is written over; a folder that holds pictures already is refused.

All of them say what they were made from: `diffusion_jax.read_request("x.png")` reads it.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.data import animation
from diffusion_jax.data.pictures import checked_out
from diffusion_jax.files import unused
from diffusion_jax.modes.options import Sampling, Weights, group
from diffusion_jax.pipelines import cascade
from diffusion_jax.pipelines.animation import arising, is_animation
from diffusion_jax.pipelines.conditions import request_of
from diffusion_jax.pipelines.helpers import helped
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.progress import bar, is_watched
from diffusion_jax.pipelines.request import Helpers, Request
from diffusion_jax.pipelines.samples import Job, Samples, check_out, save_folder

OF_PROMPT, OF_PROMPT_TOKENS = 8, 16
"""Images for each prompt of a diffusion model, and of a transformer over tokens."""
ALONE = 64
"""Images without a prompt."""
FEW = 10
"""Steps: a bar of fewer would hardly move, and a job without it compiles a program less."""


@dataclass(frozen=True)
class Options:
    """What to sample, and where to write it."""

    out: str | None = option(
        None,
        "grid.png, x.npz, a new folder/, or x.gif or x.mp4 of how they arise; samples.png, or "
        "samples-2.png and so on, in the run's folder by default",
    )
    num: int | None = option(
        None,
        "Images to make of each prompt; 8, of a transformer over tokens 16, by default, and 64 "
        "without a prompt",
        least=1,
    )
    seed: int = option(0, "Seed of all draws", least=0, most=2**32 - 1)
    batch: int = option(100, "Images at a time", least=1)
    rounding: str = option(
        "nearest",
        "How images become bytes: nearest, or down as in ADM's files, for its evaluator",
        choices=("nearest", "down"),
    )
    offload: bool = option(
        False,
        "Keep text towers in the host's memory, and on the device only while they embed a prompt",
    )
    request: Request = group(Request)
    weights: Weights = group(Weights)
    sampling: Sampling = group(Sampling)
    helpers: Helpers = group(Helpers)

    def __post_init__(self):
        check_options(self)
        if self.out is not None:
            checked_out(self.out, animated=True)
        if self.animates and self.rounding != "nearest":
            raise ConfigError("--rounding is for evaluators, which read no animation: leave it out")
        rerank = self.helpers.rerank
        alone = (rerank is None) != (self.helpers.candidates is None)
        if alone or (rerank is not None and self.request.complete is not None):
            judge = "--rerank, the folder of a classifier or a CLIP"
            raise ConfigError(f"reranking needs {judge}, and --candidates, and no --complete")
        if rerank is not None and self.rounding != "nearest":
            raise ConfigError("--rounding is for pictures that no --rerank has judged as bytes")

    @property
    def animates(self) -> bool:
        """Whether --out is an animation."""
        return self.out is not None and is_animation(self.out)


def run(options: Options, workdir: str) -> None:
    """Samples from a checkpoint; the folder alone is enough.

    Args:
      options: what is not given comes from the checkpoint's page.
      workdir: the run's folder.

    Raises:
      ConfigError: what `helped` and `Pipeline.start` refuse, or samples that are not finite.
    """
    weights = options.weights
    pipe = helped(
        workdir,
        options.helpers,
        weights.which,
        weights.step,
        loras=weights.loras,
        offload=options.offload,
    )
    pipe = pipe.using(**options.sampling.changes)
    num = options.num or number_of(pipe, options.request)
    out = checked_out(options.out or str(unused(Path(workdir, "samples.png"))), animated=True)
    check_out(out)
    made = animate if options.animates else make
    print(f"{made(out, pipe, options, num)} samples: {out}")


def animate(out: str, pipe: Pipeline, options: Options, num: int) -> int:
    """Writes how the pictures arise; returns how many there are."""
    animation.check(out)
    made = arising(pipe, options.request, num, options.seed, batch=options.batch)
    made.save(out)
    return made.looks.shape[1]


def make(out: str, pipe: Pipeline, options: Options, num: int) -> int:
    """Makes and writes the pictures, with a bar; returns how many there are."""
    total = num * request_of(options.request, pipe.run, pipe.guide).rows
    steps = steps_of(pipe, total, options.batch) if is_watched() else 0
    with bar(steps or total, "step" if steps else "image") as meter:
        pipe = replace(pipe, meter=meter if steps else None)
        job = pipe.start(options.request, num, options.seed, options.batch)
        job = job.rounded(options.rounding)
        # All that can be refused has been.
        meter.refresh()
        write(out, job, beside(meter, job) if steps else counted(meter, job))
    return job.total


def steps_of(pipe: Pipeline, total: int, batch: int) -> int:
    """How many steps a bar counts; 0 where there are none, or too few to watch."""
    if pipe.makes_tokens:
        return 0
    steps = cascade.steps_of(pipe.stages, total * pipe.candidates, batch)
    return steps if steps >= FEW else 0


def number_of(pipe: Pipeline, request: Request) -> int:
    """How many images to make where nobody says."""
    if request.prompt is None:
        return ALONE
    return OF_PROMPT_TOKENS if pipe.makes_tokens else OF_PROMPT


def write(out: str, job: Job, batches: Iterator[np.ndarray]) -> None:
    """Makes the pictures of a job; into a folder they are written as they come."""
    # A folder may be larger than memory, and what is in it when the job is ended stays of use.
    if out.endswith("/"):
        save_folder(out, batches, job.origin, job.labels, job.prompts)
        return
    Samples(np.concatenate(list(batches)), job.origin, job.labels, job.prompts).save(out)


def counted(meter: Any, job: Job) -> Iterator[np.ndarray]:
    """The batches of a job, whose images a bar counts."""
    for batch in job.batches():
        yield batch
        meter.update(len(batch))


def beside(meter: Any, job: Job) -> Iterator[np.ndarray]:
    """The batches of a job, whose images a bar names beside the steps that it counts."""
    done = 0
    for batch in job.batches():
        yield batch
        done += len(batch)
        meter.set_postfix_str(f"{done}/{job.total} images")
