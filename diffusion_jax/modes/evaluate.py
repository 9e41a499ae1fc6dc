"""Mode `evaluate`: how good a run's newest checkpoint is; prints a table and writes report.json.

    pixels      samples against the run's data, in pixel space: class accuracy, novelty, variance by class
    features    samples against the run's data in the features of a classifier trained on it: FID, precision, recall, density,
                coverage, mean distance, class accuracy; every figure names the classifier, none is one of Inception's
    bpd         bits/dim of held-out images, the variational bound of the whole chain
    accuracy    of a noisy classifier on held-out images, by noise level
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data import image
from diffusion_jax.diffusion.guidance import Clip
from diffusion_jax.diffusion.process import DDPM, noised
from diffusion_jax.diffusion.times import respace
from diffusion_jax.metrics import pixels
from diffusion_jax.metrics.bpd import bits_per_dim
from diffusion_jax.metrics.fid import frechet_distance
from diffusion_jax.metrics.moments import moments
from diffusion_jax.metrics.prdc import mean_distance, prdc
from diffusion_jax.modes import config as page
from diffusion_jax.modes.sample import guide_of, pixels_of, weak_of
from diffusion_jax.pipelines.diffusion import Guide, conditions, generate
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Array, Key, Params, Raw, Task

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
Report = dict[str, Any]


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Measures a checkpoint, which alone says what and how.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder.
      options: metric, num, seed, which, step, batch; for `pixels` and `features` also classifier, weak and the fields of
        `Recipe`, for `features` also features (a classifier's folder), for `bpd` steps.

    Raises:
      ConfigError: a metric that the model does not have, or what `check`, `load` or `generate` refuse.
    """
    report = measured(workdir, options)
    if jax.process_index() == 0:
        path = Path(workdir) / "report.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(table(report))
        print(f"report: {path}")


def measured(workdir: str, options: Mapping[str, Any]) -> Report:
    """The figures of `run`, neither printed nor written."""
    options = dict(options)
    stored, task, params = load(workdir, options.pop("which", "ema"), options.pop("step", None))
    stored = plain(stored)
    known = ("accuracy",) if isinstance(task, NoisyClassifier) else ("pixels", "features", "bpd")
    metric = options.pop("metric", known[0])
    if metric not in known:
        raise unknown(f"metric of a {type(task).__name__}", metric, known)
    measures = {"accuracy": of_classifier, "pixels": of_samples, "features": in_features, "bpd": of_bits}
    return measures[metric](stored, task, params, options)


def of_samples(stored: Mapping[str, Any], task: Diffusion, params: Params, options: dict[str, Any]) -> Report:
    """The metrics of metrics/pixels.py on samples, classes in turn."""
    report, samples, labels, train = samples_of(stored, task, params, options)
    return report | measure(samples, labels, train, page.whole(*(build(stored["data"][part]) for part in ("test", "decode"))))


def in_features(stored: Mapping[str, Any], task: Diffusion, params: Params, options: dict[str, Any]) -> Report:
    """The metrics of metrics/fid.py and metrics/prdc.py on samples, classes in turn, in a classifier's features."""
    folder = options.pop("features", None)
    network = guide_of(folder, "features")
    if network is None:
        raise ConfigError("metric features needs --features, the folder of a classifier trained on this data")
    if network.task.shape != task.shape:
        raise ConfigError(f"the classifier sees images of {network.task.shape}, this model makes {task.shape}: choose another")
    report, samples, labels, (train, _) = samples_of(stored, task, params, options)
    (real, _), (fake, found) = (features_of(network, images) for images in (train, samples))
    figures = {"FID": frechet_distance(moments(real), moments(fake)), **prdc(real, fake)._asdict()}
    figures |= {"distance": mean_distance(fake), "accuracy": float(np.mean(found == labels))}
    return report | {f"{metric}[{Path(folder).name}]": value for metric, value in figures.items()}


def features_of(network: Guide, images: np.ndarray, batch: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, D], classes [N]) that a classifier finds in images uint8 [N, H, W, C]."""

    @jax.jit
    def found(params: Params, images: Array) -> tuple[Array, Array]:
        clean = network.task.process.at(jnp.zeros(()))
        return network.task.features(params, images), jnp.argmax(network.task.logits(params, images, clean), axis=1)

    rows = [np.minimum(np.arange(first, first + batch), len(images) - 1) for first in range(0, len(images), batch)]
    parts = [found(network.params, image.to_unit(images[row])) for row in rows]
    features, classes = (np.concatenate([np.asarray(part[i]) for part in parts])[: len(images)] for i in range(2))
    return features, classes


def samples_of(
    stored: Mapping[str, Any], task: Diffusion, params: Params, options: dict[str, Any]
) -> tuple[Report, np.ndarray, np.ndarray, tuple]:
    """(how they were made, images uint8, labels, the training data) of samples, classes in turn."""
    guide, weak = guide_of(options.pop("classifier", None)), weak_of(options)
    num, seed, batch = options.pop("num", stored["evaluate"]["num"]), options.pop("seed", 1), options.pop("batch", 250)
    recipe = page.recipe_of(stored, {"guidance": stored["evaluate"]["guidance"]} | options)
    train, decode = (build(stored["data"][part]) for part in ("train", "decode"))
    check(task if guide is None else guide.task, num, len(train.names or ()))
    raw = conditions(task, num, given=page.derived_conditions(task, stored["data"], num), guide=guide)
    samples = np.concatenate(list(pixels_of(generate(task, params, recipe, raw, num, seed, batch, guide, weak), num)))
    report = {"samples": num, "sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    report |= {"classifier scale": recipe.classifier_scale} if guide else {}
    return report, samples, raw["label"], page.whole(train, decode)


def check(task: Diffusion | NoisyClassifier, num: int, classes: int) -> None:
    """Raises ConfigError where `num` images, classes in turn, cannot be measured against data of `classes` classes."""
    if not task.num_classes:
        raise ConfigError("these metrics need classes, this model takes no label: give a --classifier, or set evaluate.num to 0")
    if num < max(classes, 1):
        raise ConfigError(f"{num} samples do not cover the {classes} classes of the data: raise num")


def measure(samples: np.ndarray, labels: np.ndarray, train: tuple, test: tuple) -> Report:
    """The metrics of metrics/pixels.py; train and test are (images, labels)."""
    return {
        "accuracy[pixel SVC]": pixels.class_accuracy(samples, labels, *train),
        "accuracy[pixel SVC] of held-out images": pixels.class_accuracy(*test, *train),
        "novelty[pixels]": pixels.novelty(samples, train[0], test[0]),
        "variance[pixels] by class": pixels.class_variance(samples, labels, *train),
    }


def of_bits(stored: Mapping[str, Any], task: Diffusion, params: Params, options: dict[str, Any]) -> Report:
    """Bits/dim of `num` held-out images (all by default) over all steps, or over `steps` respaced ones, x0 clipped."""
    if not isinstance(task.process, DDPM):
        raise ConfigError(f"bits/dim are those of a DDPM process's steps, this model has {task.process}")
    steps, key = options.pop("steps", task.process.steps), jax.random.key(options.pop("seed", 1))
    times = respace(task.process, steps)

    @jax.jit
    def bits(params: Params, raw: Raw, key: Key) -> tuple[Array, Array]:
        raw = task.cond.prepare(raw, jax.random.fold_in(key, 1))
        denoise, cond = Clip()(task.denoiser(params)), task.embed(params, raw)
        found = bits_per_dim(denoise, task.process, raw["image"], times, cond, key, task.variance)
        return found.total, found.prior

    total, prior = (np.concatenate(column) for column in zip(*over_test(stored, task, options, bits, params, key), strict=True))
    report = {"images": len(total), "steps": len(times) - 1}
    return report | {"bits/dim": float(np.mean(total)), "of them prior": float(np.mean(prior))}


def of_classifier(stored: Mapping[str, Any], task: NoisyClassifier, params: Params, options: dict[str, Any]) -> Report:
    """The share of held-out images whose class is found, at some noise levels."""
    key = jax.random.key(options.pop("seed", 1))
    times = task.process.at(jnp.asarray(LEVELS))

    @jax.jit
    def right(params: Params, raw: Raw, key: Key) -> tuple[Array, ...]:
        def at(t: Array) -> Array:
            eps = jax.random.normal(key, raw["image"].shape)
            logits = task.logits(params, noised(task.process, raw["image"], t, eps), t)
            return jnp.argmax(logits, axis=1) == raw["label"]

        return tuple(jax.lax.map(at, times))

    found = [np.concatenate(column) for column in zip(*over_test(stored, task, options, right, params, key), strict=True)]
    at = {f"accuracy at t = {level} of the noisiest": float(np.mean(column)) for level, column in zip(LEVELS, found, strict=True)}
    return {"images": len(found[0])} | at


def over_test(
    stored: Mapping[str, Any], task: Task, options: dict[str, Any], function: Any, params: Params, key: Key
) -> Iterator[tuple[np.ndarray, ...]]:
    """function(params, raw, key) over batches of held-out images; each result cut to the images that there are."""
    num, batch = options.pop("num", None), options.pop("batch", 250)
    for name in options:
        raise ConfigError(f"--{name} is for samples: this metric makes none")
    images, labels = page.whole(*(build(stored["data"][part]) for part in ("test", "decode")), num=num)
    batch = min(batch, len(images))
    for first in range(0, len(images), batch):
        index = np.minimum(np.arange(first, first + batch), len(images) - 1)              # the last batch is filled up
        raw = {"image": image.to_unit(images[index])} | ({} if labels is None else {"label": labels[index]})
        yield tuple(np.asarray(value)[: len(images) - first] for value in function(params, raw, jax.random.fold_in(key, first)))


def table(report: Mapping[str, Any]) -> str:
    """The report as aligned lines."""
    lines = []
    for name, value in report.items():
        if isinstance(value, Mapping):
            value = "  ".join(f"{key}: {ratio:.2f}" for key, ratio in value.items())
        lines.append(f"{name:40s} {value:.4f}" if isinstance(value, float) else f"{name:40s} {value}")
    return "\n".join(lines)
