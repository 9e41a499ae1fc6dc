"""A pipeline's samples as a set of images that can be measured, made when they are asked for.

    samples = sampled(run, options)
    samples.images.batches([0, 250], 250)       the samples, or the best of several candidates

They are made under the run's own conditions: the classes in turn, held-out captions, held-out
images made small.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.image import to_unit
from diffusion_jax.evaluation import identity
from diffusion_jax.evaluation.options import Options
from diffusion_jax.metrics.images import Batch, Images
from diffusion_jax.pipelines import rerank
from diffusion_jax.pipelines.conditions import conditions, held_out_conditions
from diffusion_jax.pipelines.helpers import helped
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pipelines.sampling import to_pixels
from diffusion_jax.runs.folder import Model, Run, open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Raw


@dataclass(frozen=True)
class Samples:
    """A pipeline's samples; image i of a seed is always the same.

    Attributes:
      pipe: what makes them.
      raw: conditions, [num, ...] each.
      num: how many.
      seed: of the draws.
      rounding: how they become bytes, nearest or down.
    """

    pipe: Pipeline
    raw: Raw
    num: int
    seed: int
    rounding: str = "nearest"

    def __len__(self) -> int:
        return self.num

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """Sampled batch by batch.

        Raises:
          ConfigError: what `Pipeline.images` refuses, or samples that are not finite.
        """
        made = self.pipe.images(self.raw, self.num, self.seed, size, starts)
        for first, batch in zip(starts, made, strict=True):
            rows = {"image": to_pixels(batch, self.rounding)}
            if "label" in self.raw:
                rows["label"] = self.raw["label"][first : first + len(batch)]
            yield rows


@dataclass(frozen=True)
class Best:
    """Of every few images in a row the one that a classifier is surest of (2102.12092 sec. 2.6).

    Attributes:
      images: candidates with labels, `candidates` of each image in a row.
      candidates: how many.
      judge: the classifier.
    """

    images: Images
    candidates: int
    judge: Model

    def __len__(self) -> int:
        return len(self.images) // self.candidates

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """The best of each."""
        # The candidates of an image lie in a row, so that every batch holds whole groups of them.
        firsts = [first * self.candidates for first in starts]
        for batch in self.images.batches(firsts, size * self.candidates):
            sure = rerank.sureness(self.judge, to_unit(batch["image"]), batch["label"])
            best = np.argmax(np.asarray(sure).reshape(-1, self.candidates), axis=1)  # [b]
            rows = np.arange(len(best)) * self.candidates + best
            yield {name: value[rows] for name, value in batch.items()}


class Sampled(NamedTuple):
    """Images that are about to be measured.

    Attributes:
      images: themselves.
      figures: how they are made, for the report.
      identity: tells them from all others, for what is kept on disk.
      shape: (H, W, C) of each.
      labels: int [N], where they are known before the images are there.
      names: of the classes; None where they have none.
    """

    images: Images
    figures: dict[str, Any]
    identity: Mapping[str, Any]
    shape: tuple[int, ...]
    labels: np.ndarray | None = None
    names: tuple[str, ...] | None = None


def sampled(run: Run, options: Options) -> Sampled:
    """A run's samples under its own conditions.

    Raises:
      ConfigError: what `ready` and `conditions` refuse.
    """
    pipe, num = ready(run, options)
    guide = None if pipe.guide is None else pipe.guide.task
    raw = conditions(run.task, num, raw=held_out_conditions(run, num), guide=guide)
    seed = options.seed
    rounding = options.measure.rounding or "nearest"
    figures = {"samples": num} | described(pipe)
    samples = Samples(pipe, raw, num, seed, rounding)
    # All that the pixels depend on: features of samples are kept under this.
    depends = {
        "run": identity.of_run(run),
        "recipe": asdict(pipe.recipe),
        "conditions": identity.of_arrays(raw),
        "num": num,
        "seed": seed,
        "rounding": rounding,
    }
    for name, helper in (("classifier", pipe.guide), ("weak", pipe.weak)):
        if helper is not None:
            depends[name] = identity.of_run(helper)
    if rounding != "nearest":
        figures["rounding"] = rounding
    images: Images = samples
    folder = options.helpers.rerank
    candidates = options.helpers.candidates
    if folder is not None and candidates is not None:
        judge = open_run(folder, kinds.Classifier, flag="--rerank ")
        images = best_of(samples, judge, candidates)
        figures["candidates"] = candidates
        depends |= {"rerank": identity.of_run(judge), "candidates": candidates}
    labels = raw.get("label")
    return Sampled(images, figures, depends, pipe.picture_shape, labels, run.class_names)


def ready(run: Run, options: Options) -> tuple[Pipeline, int]:
    """What makes the samples of a run, and how many, before the first is made.

    Raises:
      ConfigError: no number of samples, too few for the classes, one of --rerank and --candidates
        alone, or what `pipeline_of` refuses.
    """
    num = options.batch.num or run.config.get("evaluate", {}).get("num")
    if not num:
        raise ConfigError("this model's page does not say how many samples to measure: give --num")
    pipe = pipeline_of(run, options)
    recipe_of(pipe).check(run.task, pipe.weak is not None)
    if run.task.num_classes or pipe.guide is not None:
        task = run.task if pipe.guide is None else pipe.guide.task
        check_classes(task, num, len(run.class_names or ()))
    check_candidates(options)
    return pipe, num


def described(pipe: Pipeline) -> dict[str, Any]:
    """How a pipeline samples, for the report."""
    recipe = recipe_of(pipe)
    figures = {"sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    if pipe.guide is not None:
        figures["classifier scale"] = recipe.classifier_scale
    return figures


def recipe_of(pipe: Pipeline) -> Recipe:
    """How a pipeline of a diffusion model samples.

    Raises:
      ConfigError: it is a transformer over tokens.
    """
    if not isinstance(pipe.recipe, Recipe):
        noun = pipe.run.task.noun
        raise ConfigError(f"no metric measures samples of {noun}: give them as --images")
    return pipe.recipe


def best_of(samples: Samples, judge: Run, candidates: int) -> Best:
    """The best of so many candidates for each sample.

    Raises:
      ConfigError: a judge of other images.
    """
    shape = samples.pipe.picture_shape
    if judge.task.shape != shape or "label" not in samples.raw:
        raise ConfigError(
            f"--rerank judges labelled images of {judge.task.shape}, this model makes {shape}: "
            "choose another"
        )
    raw = {name: np.repeat(value, candidates, axis=0) for name, value in samples.raw.items()}
    pool = replace(samples, raw=raw, num=samples.num * candidates)
    return Best(pool, candidates, judge.model)


def check_candidates(options: Options) -> None:
    """Raises ConfigError where one of --rerank and --candidates is given without the other, or a
    single candidate."""
    if (options.helpers.rerank is None) != (options.helpers.candidates is None):
        raise ConfigError(
            "reranking needs both --rerank, the folder of a judge, and --candidates, how many to "
            "choose from"
        )
    # A sweep begins at one, where nothing is chosen.
    if options.helpers.candidates is not None and options.swept != "candidates":
        rerank.check_several(options.helpers.candidates)


def check_classes(task: Any, num: int, classes: int) -> None:
    """Goes through what samples of classes need.

    Args:
      task: what takes the labels, the model or its classifier.
      num: how many samples, classes in turn.
      classes: of the data that they are measured against.

    Raises:
      ConfigError: there are no labels, or too few samples.
    """
    if not task.num_classes:
        raise ConfigError(
            "these metrics need classes, this model takes no label: give a --classifier, or set "
            "evaluate.num to 0"
        )
    if num < max(classes, 1):
        raise ConfigError(
            f"{num} samples do not cover the {classes} classes of the data: raise num"
        )


# Pipelines ----------------------------------------------------------------------------------------


def pipeline_of(run: Run, options: Options, page_guidance: bool = True) -> Pipeline:
    """What makes the samples.

    Args:
      run: the model.
      options: how to sample in place of the page's way, and the folders of what helps.
      page_guidance: whether the guidance of the page's section evaluate goes before that of its
        section sample.

    Raises:
      ConfigError: a folder of another kind of model, or fields of the recipe that are wrong or
        change nothing.
    """
    # The recipe of a page is the one that its samples are shown with; what measures best, a lower
    # guidance for FID, stands in its section evaluate, and the options of a command go before both.
    fields = run.recipe()
    section = run.config.get("evaluate", {})
    if page_guidance and "guidance" in section:
        fields["guidance"] = section["guidance"]
    recipe = Recipe.of(fields).using(**options.changes)
    guided = options.helpers.classifier is not None
    recipe.check_changes(options.changes, run.task, guided, options.swept)
    # `Best` and metric clip choose among candidates: a pipeline ranks those of one request.
    helpers = replace(options.helpers, rerank=None, candidates=None)
    # The data that samples are compared with are as large as the run's own: only an upsampler that
    # is named follows.
    pipe = replace(helped(run, helpers, own_upsampler=False), recipe=recipe)
    if options.swept == "guidance" and not recipe.guides:
        return replace(pipe, weak=None)  # at the scale 1 of a sweep there is nothing to guide away
    return pipe


def token_pipeline(run: Run, options: Options) -> Pipeline:
    """What makes the samples of a transformer over tokens.

    Raises:
      ConfigError: a folder or an option that is for diffusion models, or a value that it cannot
        have.
    """
    if options.measure.rounding is not None:
        raise ConfigError("--rounding is for diffusion models: pictures of tokens are rounded once")
    pipe = helped(run, replace(options.helpers, rerank=None, candidates=None))
    return pipe.using(**options.changes)
