"""What is measured of a CLIP on held-out images and captions:

    retrieval   R@1, R@5, R@10 from images to texts and back, beside chance
    zero_shot   the share of images whose class has the nearest text among all classes' texts
                (2103.00020, section 3.1)
    tsne        the image features in a plane (van der Maaten & Hinton 2008), coloured by class:
                tsne.png in the run's folder
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import clip_image
from diffusion_jax.data.image import to_unit
from diffusion_jax.data.rows import filled
from diffusion_jax.data.source import Record, Source
from diffusion_jax.evaluation.options import BATCH, Options
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.files import unused, whole
from diffusion_jax.metrics.retrieval import chance, recall
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.types import Array

TEMPLATE = "a photo of a {}"
TOP = 5
FEW = 20
"""Classes that a colour map and a legend can tell apart."""
LEAST = 4
"""Images of a plane: of fewer there are no neighbours to keep near."""


# Figures ------------------------------------------------------------------------------------------


def retrieval(run: Run, options: Options) -> Measured:
    """R@k both ways; images with equal captions are each other's.

    Raises:
      ConfigError: what `check_retrieval` refuses.
    """
    check_retrieval(run, options)
    records = _records(run, options, "retrieval")
    size = options.size
    images = _features_of(run, records, size)
    captions = np.array([record["caption"] for record in records])
    # Equal captions are one text: which of two equal ones is nearest says nothing.
    texts, index = np.unique(captions, return_index=True)
    tokens = np.stack([records[i]["tokens"] for i in index])
    scores = images @ text_features(run.model, tokens, size).T  # [images, texts]
    pairs = captions[:, None] == texts[None]  # [images, texts]
    report: dict[str, Any] = {"images": len(images), "texts": len(texts)}
    report |= _ranked("image to text", scores, pairs) | _ranked("text to image", scores.T, pairs.T)
    return Measured(report)


def check_retrieval(run: Run, options: Options) -> None:
    """Raises ConfigError for a run without data, or data without captions."""
    data = run.data(_own("retrieval"))
    if "tokens" not in next(held_out.records(data, "test", 1)):
        raise ConfigError(
            "retrieval needs captions: give data that has them, and data.decode.tokenizer"
        )


def _ranked(name: str, scores: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
    """R@k of scores [N, M] whose own answers are `pairs`, beside chance."""
    report = {f"{name} {rank}": value for rank, value in recall(scores, pairs).items()}
    return report | {f"{name} {rank} by chance": value for rank, value in chance(pairs).items()}


def zero_shot(run: Run, options: Options) -> Measured:
    """The share of images nearest to the text of their class.

    Raises:
      ConfigError: what `check_zero_shot` refuses, or texts of classes that are too long.
    """
    check_zero_shot(run, options)
    records = _records(run, options, "zero_shot")
    texts = class_texts(run.config["data"], options.measure.template)
    tokens = run.tokens(texts)
    size = options.size
    scores = _features_of(run, records, size) @ text_features(run.model, tokens, size).T
    pairs = _labels(records)[:, None] == np.arange(len(texts))[None]
    ranks = recall(scores, pairs, (1, TOP))
    report: dict[str, Any] = {
        "images": len(records),
        "classes": len(texts),
        "text of class 0": texts[0],
    }
    names = {"R@1": "accuracy", f"R@{TOP}": f"accuracy@{TOP}"}
    return Measured(report | {names[rank]: value for rank, value in ranks.items()})


def check_zero_shot(run: Run, options: Options) -> None:
    """Raises ConfigError for a run without data, data without classes, a CLIP without a tokenizer,
    or a template that is none."""
    check_names(build(run.data(_own("zero_shot"))["train"]))
    if run.tokenizer is None:
        raise ConfigError("zero_shot needs a tokenizer: data.decode.tokenizer")
    template = options.measure.template
    parts = ("", "") if template is None else template.split("{}")
    if len(parts) != 2 or any(brace in "".join(parts) for brace in "{}"):
        raise ConfigError(f"--template {template!r}: write {{}} once, where the class's name goes")


def check_names(source: Source) -> None:
    """Raises ConfigError where a data set has no classes."""
    if not source.names:
        raise ConfigError("zero_shot needs classes, this data has none")


def class_texts(data: Mapping[str, Any], template: str | None) -> list[str]:
    """A text for each class: its name in the template, or the one caption of its training images.

    Raises:
      ConfigError: data without classes.
    """
    source = build(data["train"])
    check_names(source)
    # Where all images of a class have one caption, that is the text the model was trained on: it
    # goes before the usual template, and one that was asked for goes before both.
    captions: dict[int, set[str]] = {}
    for i in range(len(source) if template is None else 0):
        record = source[i]
        captions.setdefault(record["label"], set()).add(record.get("caption", ""))
    if captions and all(len(texts) == 1 and "" not in texts for texts in captions.values()):
        return [next(iter(captions[label])) for label in range(len(source.names))]
    return [(template or TEMPLATE).replace("{}", name) for name in source.names]


def tsne(run: Run, options: Options) -> Measured:
    """The features as a picture.

    Raises:
      ConfigError: what `check_tsne` refuses.
    """
    check_tsne(run, options)
    records = _records(run, options, "tsne")
    images = _features_of(run, records, options.size)
    path = unused(Path(run.folder, "tsne.png"))
    points = plane(images, options.batch.seed or 0)
    if jax.process_index() == 0:
        draw_plane(path, points, _labels(records), run.class_names)
    return Measured({"images": len(images), "picture": str(path)})


def check_tsne(run: Run, options: Options) -> None:
    """Raises ConfigError for a run without data, or too few images."""
    count = len(build(run.data(_own("tsne"))["test"]))
    num = count if options.batch.num is None else min(count, options.batch.num)
    if num < LEAST:
        raise ConfigError(f"tsne needs at least {LEAST} images, there are {num}: raise num")


# Features -----------------------------------------------------------------------------------------


def image_features(model: Model, images: np.ndarray, size: int = BATCH) -> np.ndarray:
    """Unit vectors [N, F] of images uint8 [N, H, W, C] of any size, `size` at a time."""
    return _batched(_encode_images, model, clip_image.views(images, model.task.shape), size)


def text_features(model: Model, tokens: np.ndarray, size: int = BATCH) -> np.ndarray:
    """Unit vectors [N, F] of tokens [N, T], `size` at a time."""
    return _batched(_encode_texts, model, tokens, size)


@jax.jit
def _encode_images(model: Model, images: Array) -> Array:
    return model.task.encode_image(model.params, to_unit(images))


@jax.jit
def _encode_texts(model: Model, tokens: Array) -> Array:
    return model.task.encode_text(model.params, tokens)


def _batched(
    function: Callable[[Model, Array], Array], model: Model, rows: np.ndarray, size: int
) -> np.ndarray:
    """function(model, rows) in batches of one size."""
    size = min(size, len(rows))
    parts = []
    for first in range(0, len(rows), size):
        index = filled(first, size, len(rows))
        parts.append(np.asarray(function(model, jnp.asarray(rows[index]))))
    return np.concatenate(parts)[: len(rows)]


def _features_of(run: Run, records: list[Record], size: int) -> np.ndarray:
    return image_features(run.model, np.stack([record["image"] for record in records]), size)


def _records(run: Run, options: Options, name: str) -> list[Record]:
    """Held-out images with their captions and labels, all of them or `num`."""
    data = run.data(_own(name))
    return list(held_out.records(data, "test", options.batch.num))


def _own(name: str) -> str:
    return f"metric {name} is of a run's own held-out images"


def _labels(records: list[Record]) -> np.ndarray:
    return np.array([record.get("label", 0) for record in records])


# Pictures -----------------------------------------------------------------------------------------


def plane(images: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE of features [N, F]: [N, 2]."""
    from sklearn.manifold import TSNE

    # 30 neighbours, or a third of a set so small that it has no 30.
    perplexity = min(30.0, (len(images) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=seed, metric="cosine").fit_transform(images)


def draw_plane(
    path: Path, points: np.ndarray, labels: np.ndarray, names: tuple[str, ...] | None
) -> None:
    """A dot for each of the points [N, 2], coloured by its label [N]."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 8), layout="constrained")
    colours = "tab20" if len(set(labels)) <= FEW else "hsv"
    dots = axis.scatter(points[:, 0], points[:, 1], c=labels, cmap=colours, s=12)
    if names and len(names) <= FEW:
        present = sorted(set(labels.tolist()))
        handles, _ = dots.legend_elements(num=present)
        axis.legend(handles, [names[label] for label in present], fontsize="small")
    axis.set_axis_off()
    with whole(path) as unfinished:
        figure.savefig(unfinished, dpi=100)
    pyplot.close(figure)
