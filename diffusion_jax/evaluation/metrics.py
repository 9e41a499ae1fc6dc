"""What is measured of a run: the metrics of pixels and of held-out images, and the table of all.

    pixels      samples against the run's data, in pixel space: novelty and, where there are
                classes, accuracy and variance by class
    features    samples, or images, against data, images or statistics, in the features of a
                network: FID, sFID, IS, KID, precision, recall and their kin (metrics/figures.py);
                every figure names its network (evaluation/compare.py)
    bpd         bits/dim of held-out images, the variational bound of the whole chain
    accuracy    of a noisy classifier on held-out images, by noise level
    retrieval, zero_shot, tsne    of a CLIP (evaluation/contrast.py)
    clip        whether samples show what their captions say, in a CLIP's eyes (evaluation/clip.py)
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data.image import to_unit
from diffusion_jax.data.rows import filled
from diffusion_jax.data.source import existing
from diffusion_jax.diffusion.guidance import Clip
from diffusion_jax.diffusion.process import DDPM, noised
from diffusion_jax.diffusion.times import respace
from diffusion_jax.evaluation import clip, compare, contrast, copies, features, report, samples
from diffusion_jax.evaluation import options as flags
from diffusion_jax.evaluation.options import Options
from diffusion_jax.evaluation.report import Gallery, Measured
from diffusion_jax.metrics import pixels
from diffusion_jax.metrics.bpd import bits_per_dim
from diffusion_jax.pipelines import lora
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array, Key, Raw, Task

OWN = "this metric is of a run's own held-out images"
LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of noise, at which a classifier is measured, as shares of the noisiest."""


class Metric(NamedTuple):
    """One line of the table.

    Attributes:
      kind: of the models that have it, of tasks/kinds.py, one or several.
      measure: (run, options) -> what was measured; calls `check` first.
      check: (run, options), raises ConfigError for what would be refused, before anything is made.
      takes: the options that it looks at, by the names of their flags, beside `options.RUN`.
    """

    kind: Any
    measure: Callable[[Run, Options], Measured]
    check: Callable[[Run, Options], None]
    takes: tuple[str, ...] = ()


# Samples against data -----------------------------------------------------------------------------


def in_pixels(run: Run, options: Options) -> Measured:
    """The metrics of metrics/pixels.py on samples, classes in turn."""
    check_pixels(run, options)
    data = held_out.of_pictures(run.config["data"])
    sampled = samples.sampled(run, options)
    size = options.size
    batches = list(sampled.images.batches(range(0, len(sampled.images), size), size))
    images = np.concatenate([batch["image"] for batch in batches])
    labels = None
    if "label" in batches[0]:
        labels = np.concatenate([batch["label"] for batch in batches])
    train, test = (held_out.pictures(data, split) for split in ("train", "test"))
    compared = of_pixels(images, labels, train, test, run.class_names)
    return Measured(sampled.figures | compared, Gallery(images))


def check_pixels(run: Run, options: Options) -> None:
    """Raises ConfigError where samples of a run cannot be compared with its data."""
    data = run.data("give --features and a --reference to measure against, and --num")
    check_pictures(held_out.of_pictures(data), samples.ready(run, options)[0].picture_shape)


def check_pictures(data: Mapping[str, Any], shape: tuple[int, ...] | None = None) -> None:
    """Raises ConfigError where a page's data has no pictures of a shape (H, W, C), or no held-out
    ones, to compare with."""
    record = build(data["decode"])(build(data["train"])[0], np.random.default_rng(0))
    if record["image"].dtype != np.uint8:
        raise ConfigError(
            "metric pixels compares pictures, the data are latents: give --features and a "
            "--reference"
        )
    if shape is not None and record["image"].shape != shape:
        raise ConfigError(
            f"metric pixels compares pictures of one size, the data are of "
            f"{record['image'].shape}, the samples of {shape}: give --features"
        )
    if "test" not in data or not len(build(data["test"])):
        raise ConfigError(
            "metric pixels compares held-out pictures too, the data has none: give more pictures, "
            "or set evaluate.num to 0"
        )


def of_pixels(
    images: np.ndarray,
    labels: np.ndarray | None,
    train: tuple,
    test: tuple,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The figures of metrics/pixels.py.

    Args:
      images, labels: samples; labels None where there are none.
      train, test: (images, labels) of the data.
      names: of the classes, None where they have none.
    """
    novelty = {"novelty[pixels]": pixels.novelty(images, train[0], test[0])}
    # One class alone tells nothing apart.
    if labels is None or train[1] is None or test[1] is None or len(np.unique(train[1])) < 2:
        return novelty
    ratios = pixels.class_variance(images, labels, *train)
    return {
        "accuracy[pixel SVC]": pixels.class_accuracy(images, labels, *train),
        "accuracy[pixel SVC] of held-out images": pixels.class_accuracy(*test, *train),
        **novelty,
        "variance[pixels] by class": {
            names[label] if names else str(label): ratio for label, ratio in ratios.items()
        },
    }


# Held-out images ----------------------------------------------------------------------------------


def bits(run: Run, options: Options) -> Measured:
    """Bits/dim of held-out images over all steps, or over `steps` respaced ones, x0 clipped."""
    check_bits(run, options)
    times = jnp.asarray(_times(run.task.process, options))

    def of_batch(model: Model, raw: Raw, key: Key) -> tuple[Array, ...]:
        return _bits(model, times, raw, key)

    total, prior = _over_held_out(run, options, of_batch)
    figures = {"images": len(total), "steps": len(times) - 1, "bits/dim": float(np.mean(total))}
    return Measured(figures | {"of them prior": float(np.mean(prior))})


def check_bits(run: Run, options: Options) -> None:
    """Raises ConfigError for a model that has no bits/dim, steps that are none, or no data."""
    task = run.task
    if not isinstance(task.process, DDPM):
        raise ConfigError(
            f"bits/dim are those of a DDPM process's steps, this model has {task.process}"
        )
    conditioned = set(task.needs) - {"label"}
    if task.autoencoder is not None or task.embedder is not None or conditioned:
        under = ", ".join(task.needs)
        what = f"images under {under}" if task.autoencoder is None else "latents"
        raise ConfigError(
            f"bits/dim are of pixels, alone or under a label: this model makes {what}"
        )
    _times(task.process, options)
    check_data(run, options)


def _times(process: DDPM, options: Options) -> np.ndarray:
    """The chain of times of bits/dim, [N + 1]."""
    return respace(process, options.changes.get("steps", process.steps))


def check_data(run: Run, options: Options) -> None:
    """Raises ConfigError for a run without data."""
    run.data(OWN)


@jax.jit
def _bits(model: Model, times: Array, raw: Raw, key: Key) -> tuple[Array, Array]:
    """Bits/dim of images [B, H, W, C] over times [N + 1], and of them the prior's, [B] each."""
    task = model.task
    raw = task.cond.prepare(raw, jax.random.fold_in(key, 1))
    denoise = Clip()(task.denoiser(model.params))
    cond = task.embed(model.params, raw)
    bound = bits_per_dim(denoise, task.process, raw["image"], times, cond, key, task.variance)
    return bound.total, bound.prior


def accuracy(run: Run, options: Options) -> Measured:
    """The share of held-out images whose class a noisy classifier tells, at some noise levels."""
    check_accuracy(run, options)
    columns = _over_held_out(run, options, _correct)
    figures: dict[str, Any] = {"images": len(columns[0])}
    for level, column in zip(LEVELS, columns, strict=True):
        figures[f"accuracy at t = {level} of the noisiest"] = float(np.mean(column))
    return Measured(figures)


def check_accuracy(run: Run, options: Options) -> None:
    """Raises ConfigError for a run without data, or data without classes."""
    if "label" not in next(held_out.records(run.data(OWN), "test", 1)):
        raise ConfigError("metric accuracy is of classes, the held-out data have none: give others")


@jax.jit
def _correct(model: Model, raw: Raw, key: Key) -> tuple[Array, ...]:
    """Whether the most likely class of each image is its own, [B] for each noise level."""
    task = model.task

    def at(t: Array) -> Array:
        eps = jax.random.normal(key, raw["image"].shape)
        logits = task.logits(model.params, noised(task.process, raw["image"], t, eps), t)
        return jnp.argmax(logits, axis=1) == raw["label"]

    return tuple(jax.lax.map(at, task.process.at(jnp.asarray(LEVELS))))


def _over_held_out(
    run: Run, options: Options, function: Callable[[Model, Raw, Key], tuple[Array, ...]]
) -> list[np.ndarray]:
    """function(model, raw, key) over batches of held-out images: [num, ...] of each result."""
    data = run.data(OWN)
    key = jax.random.key(options.seed)
    # Neither metric looks at a first stage: its weights need not travel to the devices.
    model = replace(run.model, first=None)
    parts = []
    for first, count, raw in _held_out_batches(data, options):
        results = function(model, raw, jax.random.fold_in(key, first))
        parts.append([np.asarray(result)[:count] for result in results])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _held_out_batches(data: held_out.Data, options: Options) -> Iterator[tuple[int, int, Raw]]:
    """(number of the first image, how many images, 'image' and perhaps 'label', filled up)."""
    images, labels = held_out.pictures(data, "test", options.batch.num)
    size = min(options.size, len(images))
    for first in range(0, len(images), size):
        index = filled(first, size, len(images))
        x = images[index]
        raw = {"image": to_unit(x) if x.dtype == np.uint8 else x}
        if labels is not None:
            raw["label"] = labels[index]
        yield first, min(size, len(images) - first), raw


# The table ----------------------------------------------------------------------------------------

METRICS = {
    "pixels": Metric(kinds.Pictures, in_pixels, check_pixels, flags.SAMPLES),
    "features": Metric(
        kinds.Pictures, compare.of_run, compare.check, (*flags.SAMPLES, *flags.COMPARED)
    ),
    "bpd": Metric(kinds.Pictures, bits, check_bits, ("seed", "steps")),
    "clip": Metric((kinds.Pictures, kinds.Tokens), clip.measure, clip.check, flags.CAPTIONS),
    "accuracy": Metric(kinds.Classifier, accuracy, check_accuracy, ("seed",)),
    "retrieval": Metric(kinds.TwoTowers, contrast.retrieval, contrast.check_retrieval),
    "zero_shot": Metric(
        kinds.TwoTowers, contrast.zero_shot, contrast.check_zero_shot, ("template",)
    ),
    "tsne": Metric(kinds.TwoTowers, contrast.tsne, contrast.check_tsne, ("seed",)),
}
"""One line adds a metric; of the metrics of a kind the first is measured where none is named."""
OF_DATA = ("pixels", "features")
"""Those that compare samples with the training data where no reference is named."""


def measured(run: Run, options: Options, training: bool = False) -> Measured:
    """The figures of one metric of a run, which may be one whose weights are in memory only; with
    those of metrics/copies.py where the metric reads the training data anyway.

    Args:
      run, options: what is measured.
      training: whether the run trains, so that its data are there whatever is compared with.

    Raises:
      ConfigError: a metric that the model does not have, an option that it does not look at, or
        what the metric refuses.
    """
    name = check_metric(run.task, options)
    loras = {"lora": lora.listed(run.identity)} if run.loras else {}
    named = report.name_of(name, _changed(options) | loras, step=run.step, weights=run.which)
    result = METRICS[name].measure(run, options)
    result = result._replace(name=named, figures=loras | result.figures)
    own_data = name in OF_DATA and options.measure.reference is None
    if not own_data and not training:
        return result
    return copies.added(result, held_out.of_pictures(run.config["data"]))


def _changed(options: Options) -> dict[str, Any]:
    """The options by which one report of a metric differs from another."""
    return {name: value for name, value in options.flags.items() if name not in ("metric", "batch")}


def metrics_of(task: Task) -> tuple[str, ...]:
    """The metrics of a model, the default one first; none of an autoencoder."""
    return tuple(name for name, metric in METRICS.items() if isinstance(task, metric.kind))


def check_metric(task: Task, options: Options) -> str:
    """The metric that is to be measured.

    Raises:
      ConfigError: one that the model does not have, or an option that it does not look at.
    """
    names = metrics_of(task)
    if isinstance(task, kinds.Prior):
        raise ConfigError(
            "a prior makes embeddings: measure the images of its decoder, with --metric clip and "
            "--prior"
        )
    if not names:
        raise ConfigError(
            f"evaluate has no metric of {task.noun}: use --mode likelihood, or give --images"
        )
    # Who names a network wants to measure in its features.
    named = options.features.features is not None
    default = "features" if named and "features" in names else names[0]
    name = default if options.measure.metric is None else options.measure.metric
    if name not in names:
        raise unknown(f"metric of {task.noun}", name, names)
    takes = (*flags.RUN, *METRICS[name].takes)
    for flag in options.flags:
        if flag not in takes:
            _refuse(flag, name)
    return name


def _refuse(flag: str, name: str) -> None:
    """Raises ConfigError for a flag that a metric does not look at; `Recipe` refuses its own."""
    makes_samples = set(flags.RECIPE) <= set(METRICS[name].takes)
    others = [other for other, metric in METRICS.items() if flag in metric.takes]
    if flag in flags.OF_SAMPLES and not makes_samples:
        raise ConfigError(f"--{flag} is for samples: this metric makes none")
    if others:
        raise ConfigError(
            f"--{flag} is for metric {' or '.join(others)}, not for {name}: leave it out"
        )
    if not makes_samples:
        raise ConfigError(f"--{flag} is nothing that metric {name} looks at: leave it out")


def check(run: Run, options: Options) -> None:
    """Goes through what is to be measured of a run, without measuring.

    Raises:
      ConfigError: what `measured` would refuse of the metric, its options, its data and the way of
        sampling.
    """
    METRICS[check_metric(run.task, options)].check(run, options)


def ready(task: Task, config: Mapping[str, Any], numbers: Sequence[int], classes: int) -> None:
    """Goes through what a run is to measure of itself once it is trained, before it is.

    Args:
      task: what is trained.
      config: the run's page.
      numbers: of the images that are measured at a time; none for no measurement.
      classes: of its data.

    Raises:
      ConfigError: what `measured` would refuse once the run is trained, or a file or folder that is
        not there.
    """
    if not numbers:
        return
    if not metrics_of(task):
        raise ConfigError(
            f"evaluate has no metric of {task.noun}: set evaluate.num, and evaluate.every, to 0"
        )
    section = config["evaluate"]
    network = section.get("features") or None
    if network is not None:
        features.network_of(network, section.get("resize") or None)
    elif isinstance(task, kinds.Tokens):
        raise ConfigError(
            f"samples of {task.noun} are judged by a CLIP: give config.evaluate.features, its "
            "folder, or set evaluate.num, and evaluate.every, to 0"
        )
    if section.get("reference"):
        existing(section["reference"])
    if not isinstance(task, kinds.Pictures):
        return
    if task.num_classes:
        for num in numbers:
            samples.check_classes(task, num, classes)
    if network is None:
        check_pictures(held_out.of_pictures(config["data"]))
