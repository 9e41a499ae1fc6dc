"""The best of several: a classifier or a CLIP tells how well images fit what they are to show
(2102.12092 section 2.6).

    score(image, label)  = log p(label | image) of a classifier, without noise                (1)
    score(image, text)   = cosine of a CLIP's image and text                                  (2)
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import clip_image
from diffusion_jax.data.image import to_unit
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array


def check(judge: Run, shape: tuple[int, int, int]) -> None:
    """Raises ConfigError where a classifier sees images of another shape than `shape`; a CLIP sees
    those of any, as its authors scale and cut them (data/clip_image.py)."""
    if not isinstance(judge.task, kinds.TwoTowers) and judge.task.shape != shape:
        raise ConfigError(
            f"--rerank {judge.folder} judges images of {judge.task.shape}, this model makes "
            f"{shape}: choose another"
        )


def check_several(count: int) -> None:
    """Raises ConfigError for pictures that leave a judge nothing to choose."""
    if count < 2:
        raise ConfigError(
            f"a judge (--rerank) chooses among candidates, and here is {count}: give candidates "
            "(--candidates), 2 or more"
        )


def goals(
    judge: Run,
    maker: Run,
    prompts: Sequence[str] | None,
    labels: Sequence[int] | np.ndarray | None = None,
    truncate: bool = False,
) -> np.ndarray:
    """What pictures are to show, as a judge reads it: the texts of a CLIP, [P, F], or the labels of
    a classifier, int [P].

    Args:
      judge: a classifier's or a CLIP's run.
      maker: the run that makes the pictures, whose training captions tell a prompt's label.
      prompts: the texts, P of them; None where labels are given.
      labels: the classes, P of them.
      truncate: cut texts that are longer than a CLIP reads, which are refused without it.

    Raises:
      ConfigError: a label for a CLIP, or a text that it cannot read whole; for a classifier a
        prompt without a label, or a label that it does not know.
    """
    if isinstance(judge.task, kinds.TwoTowers):
        if prompts is None:
            raise ConfigError(
                "a CLIP judges images by a text: give a prompt (--prompt), or a classifier as "
                "--rerank"
            )
        # By its own tokenizer, which may read less of a text than the maker's.
        tokens = jnp.asarray(judge.tokens(prompts, truncate))  # [P, T]
        return np.asarray(judge.task.encode_text(judge.model.params, tokens))  # [P, F]
    numbers = np.asarray(labels_of(maker, prompts or ()) if labels is None else labels)
    classes = judge.task.num_classes
    outside = numbers[(numbers < 0) | (numbers >= classes)]
    if outside.size:
        raise ConfigError(
            f"--rerank {judge.folder} knows {classes} classes, not label {outside[0]}: choose "
            "another"
        )
    return numbers


def scores(judge: Run, goals: np.ndarray, images: np.ndarray) -> np.ndarray:
    """How well images fit, larger is better, [P, N]: (1) or (2).

    Args:
      judge: a classifier's or a CLIP's run.
      goals: what they are to show, from `goals`.
      images: uint8 [P, N, H, W, C], N candidates of each of P.
    """
    # Prompt by prompt, so that memory does not grow with their number.
    if isinstance(judge.task, kinds.TwoTowers):
        rows = [  # unit vectors, whose product is the cosine
            _features(judge.model, to_unit(clip_image.views(part, judge.task.shape))) @ text
            for part, text in zip(images, goals, strict=True)
        ]
    else:
        rows = [
            _log_probs(judge.model, to_unit(part))[:, label]
            for part, label in zip(images, goals, strict=True)
        ]
    return np.stack([np.asarray(row) for row in rows])  # [P, N]


def labels_of(run: Run, prompts: Sequence[str]) -> list[int]:
    """The label of each prompt: that of the first training image with the prompt for a caption.

    Raises:
      ConfigError: there is no such image.
    """
    source = build(
        run.data("a classifier ranks by the labels of a run's captions, so use a CLIP")["train"]
    )
    by_caption: dict[str, int] = {}  # -1: a caption without a label
    for i in range(len(source)):
        record = source[i]
        by_caption.setdefault(record.get("caption", ""), record.get("label", -1))
    for prompt in prompts:
        if by_caption.get(prompt, -1) < 0:
            raise ConfigError(
                f"no training image is captioned {prompt!r}, so a classifier cannot rank images of "
                "it: use a CLIP"
            )
    return [by_caption[prompt] for prompt in prompts]


def best(images: np.ndarray, scores: np.ndarray, num: int) -> np.ndarray:
    """The `num` best of N images of each prompt: images [P, N, H, W, C], scores [P, N] -> [P,
    num, H, W, C], best first."""
    # Stable, so that equal scores keep the order of the seed on every machine.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :num]  # [P, num]
    return np.take_along_axis(images, order[:, :, None, None, None], axis=1)


def chosen(
    judge: Run, goals: np.ndarray, pool: Iterable[np.ndarray], num: int
) -> Iterator[np.ndarray]:
    """The `num` best pictures for each goal of all in a pool of batches [b, H, W, C], uint8, as one
    batch."""
    images = np.concatenate(list(pool))
    candidates = images.reshape(len(goals), -1, *images.shape[1:])  # [P, N, H, W, C]
    of_each = best(candidates, scores(judge, goals, candidates), num)
    yield of_each.reshape(-1, *of_each.shape[2:])  # [P num, H, W, C]


@jax.jit
def sureness(classifier: Model, images: Array | np.ndarray, label: Array | np.ndarray) -> Array:
    """log p(label | image) [B] of images [B, H, W, C] in [-1, 1] without noise."""
    task = classifier.task
    clean = task.process.at(jnp.zeros(()))
    return task.log_prob(classifier.params, images, clean, label, task.process)


@jax.jit
def _log_probs(classifier: Model, images: Array | np.ndarray) -> Array:
    """log p [B, classes] of images [B, H, W, C] in [-1, 1] without noise."""
    task = classifier.task
    clean = task.process.at(jnp.zeros(()))
    return jax.nn.log_softmax(task.logits(classifier.params, images, clean))


@jax.jit
def _features(clip: Model, images: Array | np.ndarray) -> Array:
    """Unit vectors [B, F] of images [B, H, W, C] in [-1, 1]."""
    return clip.task.encode_image(clip.params, images)
