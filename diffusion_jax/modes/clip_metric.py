"""Metric `clip` of mode `evaluate`: do a text-to-image model's samples show what their captions ask for, in a CLIP's eyes?

    --features FOLDER         a CLIP trained here
    --upsampler FOLDER        models that make the samples as large as that CLIP wants them; may be given again
    --candidates N            the best of n images for each caption, for n up to N (2112.10741, sec. 5.1): rerank.png

Figures: the CLIP score of metrics/clip_score.py, and how often an image's own caption is the nearest of ten.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.image import to_uint8
from diffusion_jax.metrics.clip_score import clip_score
from diffusion_jax.metrics.retrieval import recall
from diffusion_jax.modes import config as page
from diffusion_jax.modes import contrast, first_stage, text, unclip
from diffusion_jax.modes.prompts import tokens_of
from diffusion_jax.modes.sample import guide_of, stage_of
from diffusion_jax.pipelines.cascade import Stage, generate_cascade
from diffusion_jax.pipelines.diffusion import conditions
from diffusion_jax.pipelines.latent import decoded
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Params

AMONG = 10


def examined(
    stored: Mapping[str, Any], task: Diffusion, params: Params, workdir: str, options: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """(the figures, the samples uint8 [N, H, W, C]; the best of each caption where there are candidates).

    Args:
      stored, task, params: the model; its data give the captions, those of held-out images.
      workdir: where rerank.png goes.
      options: features, the folder of a CLIP; num, captions; candidates, images of each; seed, batch; classifier, another CLIP
        that guides; upsampler, a list of folders; of unCLIP's decoder those of `unclip.conditions_of`; and the
        fields of `Recipe`.

    Raises:
      ConfigError: what is missing, a folder of another kind of model, or a model that reads no text and that no CLIP guides.
    """
    folder = options.pop("features", None)
    if folder is None:
        raise ConfigError("metric clip needs --features, the folder of a CLIP")
    config, clip, weights = load(folder)
    larger = [stage_of(where, "ema", None, {}) for where in options.pop("upsampler", ())]
    last = larger[-1].task if larger else task
    shape = last.shape if last.autoencoder is None else last.autoencoder.shape
    if not isinstance(clip, Contrastive) or clip.shape != shape:
        raise ConfigError(f"--features {folder} is no CLIP of images of {shape}: give the folder of one")
    pulls, many, prior = options.pop("classifier", None), options.pop("candidates", 1), unclip.options_of(options)
    num, seed, batch = options.pop("num", 100), options.pop("seed", 1), options.pop("batch", 250)
    if pulls is None and "classifier_scale" in options:
        raise ConfigError("--classifier_scale needs a --classifier")
    data = page.data_of(stored, "the captions of metric clip are those of a run's own held-out images")
    recipe, source = page.recipe_of(stored, options), build(data["test"])
    prompts = [source[i * len(source) // num]["caption"] for i in range(num)]
    given = _derived(task, stored, num * many) | text.conditions_of(workdir, task, prompts, num * many, pulls, prior=prior)
    guide = guide_of(pulls)
    raw = conditions(task, num * many, given=given, guide=guide)
    made = generate_cascade([Stage(task, params, recipe), *larger], raw, num * many, seed, batch, guide)
    images = to_uint8(np.concatenate(list(decoded(last, first_stage.kept(workdir), made))))
    texts = contrast.text_features(clip, weights, tokens_of(plain(config), prompts), batch)
    seen = contrast.features(clip, weights, images, batch).reshape(num, many, -1)
    report: dict[str, Any] = {"captions": num, "guidance": recipe.guidance, "steps": recipe.steps}
    report |= {"classifier scale": recipe.classifier_scale} if guide else {}
    best, figures = judged(seen, texts, prompts)
    if many > 1:
        drawn(figures["best of"], Path(workdir, "rerank.png"))
    return report | figures, images.reshape(num, many, *images.shape[1:])[np.arange(num), best]


def judged(seen: np.ndarray, texts: np.ndarray, prompts: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """(the best of each caption's candidates [N], the figures of those) of unit vectors [N, candidates, F] and [N, F]."""
    scores = np.einsum("nmf,nf->nm", seen, texts)
    best = np.argmax(scores, axis=1)
    kept, many = seen[np.arange(len(seen)), best], scores.shape[1]
    found = clip_score(kept, texts)
    report: dict[str, Any] = {"CLIP score": found.torchmetrics, "CLIPScore": found.clipscore, "cosine": found.cosine}
    report[f"own caption first of {AMONG}"] = first_of(kept, texts, prompts)
    of = {str(n): float(np.mean(100 * scores[:, :n].max(1))) for n in _powers(many)}
    return best, report | ({"best of": of} if many > 1 else {})


def _derived(task: Diffusion, stored: Mapping[str, Any], num: int) -> dict[str, np.ndarray]:
    """What training makes of an image, of held-out ones."""
    return page.derived_conditions(task, stored["data"], num) if task.cond.derived else {}


def first_of(images: np.ndarray, texts: np.ndarray, prompts: list[str], among: int = AMONG) -> float:
    """How often the own text [N, F] is nearest to an image [N, F] among `among` different captions, the next ones in turn."""
    unique, index, number = np.unique(prompts, return_index=True, return_inverse=True)
    known, count = texts[index], min(among, len(unique))
    choice = (number[:, None] + np.arange(count)[None]) % len(unique)                          # own first
    own = np.zeros(choice.shape, bool)
    own[:, 0] = True
    return recall(np.einsum("nf,ncf->nc", images, known[choice]), own, (1,))["R@1"]


def _powers(most: int) -> list[int]:
    """1, 2, 4 ... and the last."""
    found = [2**i for i in range(most.bit_length())]
    return found if found[-1] == most else [*found, most]


def drawn(best: Mapping[str, float], path: Path) -> None:
    """The CLIP score against the number of candidates."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4, 3), layout="constrained")
    axis.semilogx([int(n) for n in best], list(best.values()), marker="o", base=2)
    axis.set(xlabel="best of", ylabel="CLIP score")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
