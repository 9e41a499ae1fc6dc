"""Metric `clip`: do samples show what their captions ask for, in a CLIP's eyes?

    features      folder of a CLIP, which sees samples of any size as data/clip_image.py cuts them
    candidates    the best of n images for each caption, for n up to so many: rerank.png
                  (2112.10741, section 5.1)
    rerank        folder of another CLIP, or of a classifier, that chooses the candidate which is
                  then judged (2102.12092, section 2.6)

Figures: the CLIP score of metrics/clip_score.py, and how often an image's own caption is the
nearest of ten.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import contrast, samples
from diffusion_jax.evaluation.options import Options
from diffusion_jax.evaluation.report import Gallery, Measured
from diffusion_jax.files import unused, whole
from diffusion_jax.metrics.clip_score import clip_score
from diffusion_jax.metrics.retrieval import recall
from diffusion_jax.pipelines import rerank
from diffusion_jax.pipelines.conditions import conditions_of, held_out_conditions
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.request import Request
from diffusion_jax.pipelines.sampling import to_pixels
from diffusion_jax.runs.folder import Run, open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Raw

AMONG = 10
"""Captions among which an image's own is looked for."""
NUM = 100
"""Captions, where nobody says how many."""


class Judged(NamedTuple):
    """Candidates for some captions, in a CLIP's eyes.

    Attributes:
      best: the number of each caption's best candidate, [N].
      figures: of the best.
    """

    best: np.ndarray
    figures: dict[str, Any]


class Judging(NamedTuple):
    """What is judged, and by whom.

    Attributes:
      pipe: makes the samples.
      clip: the judge.
      chooser: of the candidates, in the judge's place; None for the judge itself.
      prompts: captions of held-out images.
    """

    pipe: Pipeline
    clip: Run
    chooser: Run | None
    prompts: list[str]


def measure(run: Run, options: Options) -> Measured:
    """The figures of samples for held-out captions; of several candidates the best are shown.

    Raises:
      ConfigError: what `ready` refuses, or a model that reads no text and that no CLIP guides.
    """
    pipe, clip, chooser, prompts = ready(run, options)
    num = len(prompts)
    many = options.helpers.candidates or 1
    # Before the samples are made: these take hours.
    tokens = clip.tokens(prompts, truncate=True)
    texts = contrast.text_features(clip.model, tokens, options.size)
    goals = None if chooser is None else rerank.goals(chooser, run, prompts, truncate=True)
    images = generated(pipe, prompts, many, options)
    about = described(pipe, num)
    if chooser is not None and goals is not None:
        pool = images.reshape(num, many, *images.shape[1:])
        images = rerank.best(pool, rerank.scores(chooser, goals, pool), 1)[:, 0]
        about |= {"candidates": many, "chosen by": chooser.folder}
        many = 1
    views = contrast.image_features(clip.model, images, options.size).reshape(num, many, -1)
    judged = judge(views, texts, prompts)
    if many > 1 and jax.process_index() == 0:
        draw(judged.figures["best of"], unused(Path(run.folder, "rerank.png")))
    best = images.reshape(num, many, *images.shape[1:])[np.arange(num), judged.best]
    return Measured(about | judged.figures, Gallery(best))


def check(run: Run, options: Options) -> None:
    """Raises ConfigError for what `measure` would refuse, without making a sample."""
    ready(run, options)


def ready(run: Run, options: Options) -> Judging:
    """Who makes samples of which captions, and who judges them.

    Raises:
      ConfigError: what is missing, or a folder of another kind of model.
    """
    folder = options.features.features
    if folder is None:
        raise ConfigError("metric clip needs --features, the folder of a CLIP")
    clip = open_run(folder)
    if isinstance(run.task, kinds.Tokens):
        pipe = samples.token_pipeline(run, options)
    else:
        # As it samples: config.evaluate.guidance is chosen for the page's own metric, FID mostly.
        pipe = samples.pipeline_of(run, options, page_guidance=False)
        samples.recipe_of(pipe).check(run.task, pipe.weak is not None)
    if not isinstance(clip.task, kinds.TwoTowers):
        raise ConfigError(f"--features {folder} is no CLIP: give the folder of one")
    chooser = None
    if options.helpers.rerank is not None:
        samples.check_candidates(options)
        chooser = open_run(options.helpers.rerank, kinds.Guide, flag="--rerank ")
        rerank.check(chooser, pipe.picture_shape)
    run.data("the captions of metric clip are those of a run's own held-out images")
    return Judging(pipe, clip, chooser, run.captions(options.batch.num or NUM))


def described(pipe: Pipeline, num: int) -> dict[str, Any]:
    """How many captions there are, and how a pipeline samples."""
    figures = asdict(pipe.recipe) if pipe.makes_tokens else samples.described(pipe)
    return {"captions": num} | {name: figures[name] for name in figures if name != "sampler"}


def generated(pipe: Pipeline, prompts: Sequence[str], many: int, options: Options) -> np.ndarray:
    """Samples of a pipeline, `many` of each prompt in a row: uint8 [P * many, H, W, C]."""
    total = len(prompts) * many
    request = Request(prompt=tuple(prompts), truncate=True)  # captions are cut as in training
    if pipe.makes_tokens:
        return pipe(request, many, options.seed, options.size).images
    raw = _raw(pipe, request, total, options.batch.seed or 0)
    made = pipe.images(raw, total, options.seed, options.size)
    rounding = options.measure.rounding or "nearest"
    return np.concatenate([to_pixels(batch, rounding) for batch in made])


def _raw(pipe: Pipeline, request: Request, total: int, seed: int) -> Raw:
    """The conditions of `total` samples; the seed is that of a prior."""
    task = pipe.run.task
    # What is made of an image, a mask or a small copy, is made of held-out ones; what unCLIP's
    # decoder reads comes from its prior.
    derived = bool(task.cond.derived) and task.embedder is None
    extra = held_out_conditions(pipe.run, total) if derived else None
    return conditions_of(pipe.run, request, total, seed, pipe.guide, pipe.prior, extra)


def judge(views: np.ndarray, texts: np.ndarray, prompts: Sequence[str]) -> Judged:
    """What a CLIP says of candidates.

    Args:
      views: unit vectors [N, candidates, F] of the images.
      texts: unit vectors [N, F] of their captions.
      prompts: the captions.
    """
    scores = np.einsum("nmf,nf->nm", views, texts)  # [N, candidates]
    best = np.argmax(scores, axis=1)
    chosen = views[np.arange(len(views)), best]  # [N, F]
    score = clip_score(chosen, texts)
    figures: dict[str, Any] = {
        "CLIP score": score.torchmetrics,
        "CLIPScore": score.clipscore,
        "cosine": score.cosine,
    }
    figures[f"own caption first of {AMONG}"] = first_of(chosen, texts, prompts)
    candidates = scores.shape[1]
    if candidates > 1:
        figures["best of"] = {
            str(n): float(np.mean(100 * scores[:, :n].max(1))) for n in _powers(candidates)
        }
    return Judged(best, figures)


def first_of(
    images: np.ndarray, texts: np.ndarray, prompts: Sequence[str], among: int = AMONG
) -> float:
    """How often an image's own text is nearest among several.

    Args:
      images, texts: unit vectors [N, F] of images and of their own texts.
      prompts: the texts; equal ones are each other's.
      among: different texts, the own one and the next ones in turn.
    """
    unique, index, number = np.unique(prompts, return_index=True, return_inverse=True)
    # The next texts in turn, not random ones: the same samples have the same figure every time.
    count = min(among, len(unique))
    choice = (number[:, None] + np.arange(count)[None]) % len(unique)  # [N, count]
    pairs = np.zeros(choice.shape, bool)
    pairs[:, 0] = True                                        # an image's own text comes first
    scores = np.einsum("nf,ncf->nc", images, texts[index][choice])
    return recall(scores, pairs, (1,))["R@1"]


def _powers(most: int) -> list[int]:
    """1, 2, 4 ... and the last."""
    powers = [2**i for i in range(most.bit_length())]
    return powers if powers[-1] == most else [*powers, most]


def draw(best: Mapping[str, float], path: Path) -> None:
    """The CLIP score against the number of candidates, as a picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4, 3), layout="constrained")
    axis.semilogx([int(n) for n in best], list(best.values()), marker="o", base=2)
    axis.set(xlabel="best of", ylabel="CLIP score")
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=100)
    pyplot.close(figure)
