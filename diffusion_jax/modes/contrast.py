"""What mode `evaluate` measures of a CLIP on held-out images and captions:

    retrieval   R@1, R@5, R@10 from images to texts and back, beside chance
    zero_shot   the share of images whose class has the nearest text among all classes' texts (2103.00020, section 3.1)
    tsne        the image features in a plane (van der Maaten & Hinton 2008), coloured by class: tsne.png in the working folder
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.image import to_unit
from diffusion_jax.metrics.retrieval import chance, recall
from diffusion_jax.modes import config as page
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.types import Array, Params

METRICS = ("retrieval", "zero_shot", "tsne")
TEMPLATE = "a photo of a {}"
TOP = 5


def examined(
    metric: str, stored: Mapping[str, Any], task: Contrastive, params: Params, workdir: str, options: dict[str, Any]
) -> dict[str, Any]:
    """The figures of one metric.

    Args:
      metric: one of `METRICS`.
      stored, task, params: the CLIP.
      workdir: where pictures go.
      options: num, held-out pairs (all by default); batch; seed; template, for zero_shot.

    Raises:
      ConfigError: data without captions or labels, or an option that is for samples.
    """
    num, batch, seed = options.pop("num", None), options.pop("batch", 250), options.pop("seed", 0)
    template = options.pop("template", None)
    for name in options:
        raise ConfigError(f"--{name} is for samples: a CLIP makes none")
    data = page.data_of(stored, f"metric {metric} is of a run's own held-out images")
    source, decode = build(data["test"]), build(data["decode"])
    count = len(source) if num is None else min(num, len(source))
    records = [decode(source[i * len(source) // count], np.random.default_rng(0)) for i in range(count)]
    images = features(task, params, np.stack([record["image"] for record in records]), batch)
    if metric == "retrieval":
        return retrieval(task, params, images, records, batch)
    labels = np.array([record.get("label", 0) for record in records])
    if metric == "tsne":
        return {"images": count, "picture": str(plane(images, labels, source.names, Path(workdir), seed))}
    return zero_shot(task, params, images, labels, class_texts(data, template), batch, decode.tokenizer)


def features(task: Contrastive, params: Params, images: np.ndarray, batch: int = 250) -> np.ndarray:
    """Unit vectors [N, F] of images uint8 [N, H, W, C]."""
    return _batched(jax.jit(lambda params, x: task.encode_image(params, to_unit(x))), params, images, batch)


def text_features(task: Contrastive, params: Params, tokens: np.ndarray, batch: int = 250) -> np.ndarray:
    """Unit vectors [N, F] of tokens [N, T]."""
    return _batched(jax.jit(task.encode_text), params, tokens, batch)


def _batched(function: Any, params: Params, rows: Array | np.ndarray, batch: int) -> np.ndarray:
    """function(params, rows) in batches of one size."""
    batch, found = min(batch, len(rows)), []
    for first in range(0, len(rows), batch):
        index = np.minimum(np.arange(first, first + batch), len(rows) - 1)              # the last batch is filled up
        found.append(np.asarray(function(params, jnp.asarray(rows[index])))[: len(rows) - first])
    return np.concatenate(found)


def retrieval(task: Contrastive, params: Params, images: np.ndarray, records: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """R@k both ways; images with equal captions are each other's."""
    if "tokens" not in records[0]:
        raise ConfigError("retrieval needs captions: give data that has them, and data.decode.tokenizer")
    captions = np.array([record["caption"] for record in records])
    texts, index = np.unique(captions, return_index=True)
    tokens = np.stack([records[i]["tokens"] for i in index])
    scores, own = images @ text_features(task, params, tokens, batch).T, captions[:, None] == texts[None]
    report: dict[str, Any] = {"images": len(images), "texts": len(texts)}
    for name, found, pairs in (("image to text", scores, own), ("text to image", scores.T, own.T)):
        report |= {f"{name} {rank}": value for rank, value in recall(found, pairs).items()}
        report |= {f"{name} {rank} by chance": value for rank, value in chance(pairs).items()}
    return report


def class_texts(data: Mapping[str, Any], template: str | None) -> list[str]:
    """A text for each class: its name in the template, or the caption of its first training image where all have the same.

    Raises:
      ConfigError: data without classes.
    """
    source = build(data["train"])
    if not source.names:
        raise ConfigError("zero_shot needs classes, this data has none")
    captions: dict[int, set[str]] = {}
    for i in range(len(source) if template is None else 0):
        record = source[i]
        captions.setdefault(record["label"], set()).add(record.get("caption", ""))
    if captions and all(len(texts) == 1 and "" not in texts for texts in captions.values()):
        return [next(iter(captions[label])) for label in range(len(source.names))]
    return [(template or TEMPLATE).format(name) for name in source.names]


def zero_shot(
    task: Contrastive, params: Params, images: np.ndarray, labels: np.ndarray, texts: list[str], batch: int, tokenizer: Any
) -> dict[str, Any]:
    """The share of images nearest to the text of their class."""
    if tokenizer is None:
        raise ConfigError("zero_shot needs a tokenizer: data.decode.tokenizer")
    known = text_features(task, params, np.stack([tokenizer(text) for text in texts]), batch)
    own = labels[:, None] == np.arange(len(texts))[None]
    found = recall(images @ known.T, own, (1, TOP))
    names = {"R@1": "accuracy", f"R@{TOP}": f"accuracy@{TOP}"}
    return {"images": len(images), "classes": len(texts), "text of class 0": texts[0]} | {names[k]: v for k, v in found.items()}


def plane(images: np.ndarray, labels: np.ndarray, names: tuple[str, ...] | None, workdir: Path, seed: int) -> Path:
    """t-SNE of features [N, F], a dot for each, as a picture; returns its path."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    spots = TSNE(perplexity=min(30.0, (len(images) - 1) / 3), random_state=seed, metric="cosine").fit_transform(images)
    figure, axis = pyplot.subplots(figsize=(8, 8), layout="constrained")
    drawn = axis.scatter(spots[:, 0], spots[:, 1], c=labels, cmap="tab20" if len(set(labels)) <= 20 else "hsv", s=12)
    if names and len(names) <= 20:
        handles, marks = drawn.legend_elements(num=len(names))
        axis.legend(handles, names[: len(marks)], fontsize="small")
    axis.set_axis_off()
    path = workdir / "tsne.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path
