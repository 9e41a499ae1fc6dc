"""Mode `sample`: a run's folder -> a grid, a folder of PNGs, or an npz for an evaluator.

    --out x.png     a grid; with several prompts a row for each
    --out x.npz     arr_0, and arr_1 the labels
    --out x/        a PNG each, written as they come

All of them say what they were made from: `diffusion_jax.read_request("x.png")` reads it.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.data.pictures import checked_out
from diffusion_jax.modes.options import Helpers, Sampling, Weights, group
from diffusion_jax.pipelines import unclip
from diffusion_jax.pipelines.pipeline import Job, Pipeline, pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.samples import Samples, save_folder
from diffusion_jax.runs.folder import open_run
from diffusion_jax.tasks import kinds

OF_PROMPT, OF_PROMPT_TOKENS = 8, 16
"""Images for each prompt of a diffusion model, and of a transformer over tokens."""
ALONE = 64
"""Images without a prompt."""


@dataclass(frozen=True)
class Options:
    """What to sample, and where to write it."""

    out: str | None = option(
        None, "grid.png, x.npz or folder/; samples.png in the run's folder by default"
    )
    num: int | None = option(
        None,
        "Images to make of each prompt; 8, of a transformer over tokens 16, by default, and 64 "
        "without a prompt",
        least=1,
    )
    seed: int = option(0, "Seed of all draws", least=0, most=2**32 - 1)
    batch: int = option(100, "Images at a time", least=1)
    request: Request = group(Request)
    weights: Weights = group(Weights)
    sampling: Sampling = group(Sampling)
    helpers: Helpers = group(Helpers)

    def __post_init__(self):
        check_options(self)
        if self.out is not None:
            checked_out(self.out)
        rerank = self.helpers.rerank
        alone = (rerank is None) != (self.helpers.candidates is None)
        if alone or (rerank is not None and self.request.complete is not None):
            judge = "--rerank, the folder of a classifier or a CLIP"
            raise ConfigError(f"reranking needs {judge}, and --candidates, and no --complete")


def run(options: Options, workdir: str) -> None:
    """Samples from a checkpoint; the folder alone is enough.

    Args:
      options: what is not given comes from the checkpoint's page.
      workdir: the run's folder.

    Raises:
      ConfigError: what `open_run` and `Pipeline.start` refuse, or samples that are not finite.
    """
    pipe = pipeline_of(options, workdir).using(**options.sampling.changes)
    num = options.num or number_of(pipe, options.request)
    job = pipe.start(options.request, num, options.seed, options.batch)
    out = checked_out(options.out or str(Path(workdir, "samples.png")))
    write(out, job)
    print(f"{job.total} samples: {out}")


def pipeline_of(options: Options, workdir: str) -> Pipeline:
    """What makes the pictures, sampling as its page says.

    Raises:
      ConfigError: what `pipeline` refuses, or options of a prior where there is none.
    """
    helpers = options.helpers
    weak = None
    if helpers.weak is not None:
        # Opened here: of a folder `pipeline` takes the newest step, this may be an earlier one.
        weak = open_run(helpers.weak, kinds.Pictures, step=helpers.weak_step, flag="--weak ")
    pipe = pipeline(
        workdir,
        upsamplers=helpers.upsampler,
        classifier=helpers.classifier,
        weak=weak,
        prior=helpers.prior,
        rerank=helpers.rerank,
        candidates=helpers.candidates or 1,
        which=options.weights.which,
        step=options.weights.step,
    )
    changes = {"guidance": helpers.prior_guidance, "steps": helpers.prior_steps}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not changes and helpers.prior_best is None:
        return pipe
    if not isinstance(pipe.prior, unclip.Prior):
        names = "--prior_guidance, --prior_steps and --prior_best"
        raise ConfigError(f"{names} are of a prior's folder: give --prior FOLDER")
    # The prior is open by now: another way of sampling it reads no weights again.
    best = helpers.prior_best or pipe.prior.best
    return replace(pipe, prior=unclip.prior_of(pipe.prior.run, pipe.run, best, **changes))


def number_of(pipe: Pipeline, request: Request) -> int:
    """How many images to make where nobody says."""
    if request.prompt is None:
        return ALONE
    return OF_PROMPT_TOKENS if pipe.makes_tokens else OF_PROMPT


def write(out: str, job: Job) -> None:
    """Makes the pictures; into a folder they are written as they come."""
    batches = counted(job)
    # A folder may be larger than memory, and what is in it when the job is ended stays of use.
    if out.endswith("/"):
        save_folder(out, batches, job.origin, job.labels, job.prompts)
        return
    Samples(np.concatenate(list(batches)), job.origin, job.labels, job.prompts).save(out)


def counted(job: Job) -> Iterator[np.ndarray]:
    """The batches of a job, with a bar that counts images."""
    from tqdm import tqdm  # here: `--help` needs no bar, and is to be quick

    with tqdm(total=job.total, unit="image", disable=jax.process_index() > 0) as bar:
        for batch in job.batches():
            yield batch
            bar.update(len(batch))
