"""Mode `evaluate`: how good samples are; prints a table, writes report.json and report.html.

    pixels      samples against the run's data, in pixel space: class accuracy, novelty, variance by class
    features    samples, or given images, against data, images or statistics, in the features of a network: FID, sFID, IS, KID,
                precision, recall and their kin (metrics/figures.py); every figure names its network (modes/measure.py)
    bpd         bits/dim of held-out images, the variational bound of the whole chain
    accuracy    of a noisy classifier on held-out images, by noise level
    retrieval, zero_shot, tsne    of a CLIP (modes/contrast.py)
    clip        whether samples show what their captions say, in a CLIP's eyes (modes/clip_metric.py)
"""
from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data import image
from diffusion_jax.data.source import existing
from diffusion_jax.diffusion.guidance import Clip
from diffusion_jax.diffusion.process import DDPM, noised
from diffusion_jax.diffusion.times import respace
from diffusion_jax.metrics import figures, pixels
from diffusion_jax.metrics.bpd import bits_per_dim
from diffusion_jax.metrics.extract import Found, Network
from diffusion_jax.metrics.images import Images, Pictures
from diffusion_jax.modes import clip_metric, contrast, first_stage, html
from diffusion_jax.modes import config as page
from diffusion_jax.modes.measure import Samples, SeeClassifier, chosen, found_in, images_at, network_of, reference_of
from diffusion_jax.modes.sample import guide_of, weak_of
from diffusion_jax.pipelines.diffusion import conditions
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.checkpoint import find, load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Array, Key, Params, Raw, Task

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
BATCH = 250
Report = dict[str, Any]


class Model(NamedTuple):
    """What is measured.

    Attributes:
      stored: its config.
      task, params: itself.
      workdir: the run's folder.
      said: tells it from every other, for what is kept on disk.
    """

    stored: Mapping[str, Any]
    task: Task
    params: Params
    workdir: str
    said: Mapping[str, Any]


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Measures a checkpoint, which alone says what and how, or given images.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder; with `images` the folder that the report is written to.
      options: metric, num, seed, which, step, batch; for samples also classifier, weak and the fields of `Recipe`; for
        `features` also features, resize, images, reference, blur, rerank, candidates (modes/measure.py); for `bpd` steps.

    Raises:
      ConfigError: a metric that the model does not have, or what `check`, `load` or `generate` refuse.
    """
    report, shown = examined(workdir, options)
    if jax.process_index() == 0:
        path = Path(workdir) / "report.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        html.write(path.with_suffix(".html"), Path(workdir), report, shown)
        print(table(report))
        for said in report.get("warnings", ()):
            print(f"warning: {said}", file=sys.stderr)
        print(f"report: {path}, {path.with_suffix('.html')}")


def measured(workdir: str, options: Mapping[str, Any]) -> Report:
    """The figures of `run`, neither printed nor written."""
    return examined(workdir, options)[0]


def examined(workdir: str, options: Mapping[str, Any]) -> tuple[Report, html.Shown]:
    """The figures of `run`, and what its page shows."""
    options = dict(options)
    if "images" in options:
        return of_images(workdir, options)
    which, step = options.pop("which", "ema"), options.pop("step", None)
    stored, task, params = load(workdir, which, step)
    said = {"run": str(Path(workdir).resolve()), "which": which, "step": find(workdir, step)[1]}
    return of_model(Model(plain(stored), task, params, workdir, said), options)


def of_model(model: Model, options: dict[str, Any]) -> tuple[Report, html.Shown]:
    """The figures of one metric, the option metric or the first that the model has."""
    known = metrics_of(model.task)
    if getattr(model.task, "embeds", False):
        raise ConfigError("a prior makes embeddings: measure the images of its decoder, with --metric clip and --prior")
    if not known:
        raise ConfigError(f"evaluate has no metric of a {type(model.task).__name__}: use --mode likelihood, or give --images")
    metric = options.pop("metric", "features" if "features" in options else known[0])
    if metric not in known:
        raise unknown(f"metric of a {type(model.task).__name__}", metric, known)
    if metric in contrast.METRICS:
        found = contrast.examined(metric, model.stored, model.task, model.params, model.workdir, options)
        return found, html.Shown()
    if metric == "clip":
        found, samples = clip_metric.examined(model.stored, model.task, model.params, model.workdir, options)
        return found, html.Shown(samples)
    return {"accuracy": of_classifier, "pixels": of_samples, "features": in_features, "bpd": of_bits}[metric](model, options)


def metrics_of(task: Task) -> tuple[str, ...]:
    """The metrics of a model, the default one first; none of an autoencoder, a transformer over tokens or a prior of unCLIP."""
    if getattr(task, "embeds", False):
        return ()
    known = {NoisyClassifier: ("accuracy",), Contrastive: contrast.METRICS, Diffusion: ("pixels", "features", "bpd", "clip")}
    return next((names for kind, names in known.items() if isinstance(task, kind)), ())


def ready(task: Task, config: Mapping[str, Any], numbers: Sequence[int], classes: int) -> None:
    """Goes through what a run is to measure of itself, without measuring.

    Args:
      task: what is trained.
      config: the run's.
      numbers: of the images that are measured at a time.
      classes: of its data.

    Raises:
      ConfigError: what `of_model` would refuse once the run is trained, or a file or folder that is not there.
    """
    if not numbers:
        return
    if not metrics_of(task):
        raise ConfigError(f"evaluate has no metric of a {type(task).__name__}: set evaluate.num, and evaluate.every, to 0")
    said = {name: value for name, value in config["evaluate"].items() if value}
    if "features" in said:
        network_of({name: said[name] for name in ("features", "resize") if name in said})
    if "reference" in said:
        existing(said["reference"])
    if not isinstance(task, Diffusion):
        return
    for num in numbers if task.num_classes or "features" not in said else ():
        check(task, num, classes)
    if "features" not in said:
        pictured(config["data"])


def of_samples(model: Model, options: dict[str, Any]) -> tuple[Report, html.Shown]:
    """The metrics of metrics/pixels.py on samples, classes in turn."""
    data = page.data_of(model.stored, "give --features and a --reference to measure against, and --num")
    if not model.task.num_classes and "classifier" not in options:
        check(model.task, 1, 0)
    pictured(data)
    report, images, _ = sampled(model, options)
    batches = list(images.batches(range(0, len(images), options["batch"]), options["batch"]))
    samples, labels = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label"))
    train, test = (page.whole(*(build(data[part]) for part in (split, "decode"))) for split in ("train", "test"))
    return report | measure(samples, labels, train, test), html.Shown(samples)


def in_features(model: Model, options: dict[str, Any]) -> tuple[Report, html.Shown]:
    """The metrics of metrics/figures.py on samples, classes in turn."""
    network, given = network_of(options), {name: options.pop(name, None) for name in ("reference", "blur")}
    report, images, said = sampled(model, options)
    return compared(report, images, network, model.workdir, said, options["batch"], model.stored.get("data"), **given)


def of_images(workdir: str, options: dict[str, Any]) -> tuple[Report, html.Shown]:
    """The same on given images.

    Raises:
      ConfigError: an option that is for samples.
    """
    network, given = network_of(options), {name: options.pop(name, None) for name in ("reference", "blur")}
    path, batch = options.pop("images"), options.pop("batch", BATCH)
    if options.pop("metric", "features") != "features":
        raise ConfigError("--images are measured by --metric features")
    for name in options:
        raise ConfigError(f"--{name} is for samples: --images are measured as they are")
    images = images_at(path)
    report = {"images": path, "samples": len(images)}
    return compared(report, images, network, workdir, {"images": path}, batch, None, **given)


def compared(report: Report, images: Images, network: Network, workdir: str, said: Mapping[str, Any], batch: int,
             data: Mapping[str, Any] | None, reference: str | None, blur: float | None) -> tuple[Report, html.Shown]:
    """Images against a reference. What the network found in the images is kept until the figures are there, in case of a kill."""
    real = reference_of(reference, data, network, workdir, batch, blur or 0.0)
    check_names(images, real)
    fake = found_in(network, images, workdir, said, batch, blur or 0.0)
    found = report | {"reference": real.what} | ({"blur": blur} if blur else {}) | figures.figures(network.label, fake, real)
    if isinstance(network.see, SeeClassifier) and fake.labels is not None:
        right = np.argmax(fake.rows("logits"), axis=1) == fake.labels
        found[f"accuracy[{network.label}]"] = float(np.mean(right))
    found |= {"classes": figures.by_class(fake, real), "warnings": figures.warnings(fake, real)}
    shown = beside(fake, real)
    fake.forget()
    return {name: value for name, value in found.items() if value != []}, shown


def check_names(images: Images, real: figures.Reference) -> None:
    """Raises ConfigError where both sides name their classes, and differ."""
    own, other = (pictures.names if isinstance(pictures, Pictures) else None for pictures in (images, real.pictures))
    if own and other and own != other:
        odd = sorted(set(own) ^ set(other)) or own
        raise ConfigError(f"class {odd[0]!r} is in one of {images.what} and {real.what} only: the classes must be the same")


def beside(fake: Found, real: figures.Reference, rows: int = 8, count: int = 4) -> html.Shown:
    """The first samples and, where the reference has images, those of them that are nearest to a few."""
    if real.found is None or real.pictures is None:
        return html.Shown(fake.pixels)
    index, distance = figures.nearest(fake.rows("features")[:rows], real.found.rows("features"), count)
    nearest = np.stack([np.stack([real.pictures.read(int(i))["image"] for i in row]) for row in index])
    return html.Shown(fake.pixels, nearest, distance)


def sampled(model: Model, options: dict[str, Any]) -> tuple[Report, Images, Mapping[str, Any]]:
    """(how samples are made, the samples, what they depend on); `options` keeps the batch alone."""
    said = {**model.said, "options": dict(options)}
    said |= {name: find(options[name])[1] for name in ("classifier", "weak", "rerank") if options.get(name)}
    guide, weak = guide_of(options.pop("classifier", None)), weak_of(options)
    stored, task = model.stored, model.task
    own, data = stored.get("evaluate", {}), stored.get("data", {})
    num, seed, batch = options.pop("num", own.get("num")), options.pop("seed", 1), options.pop("batch", BATCH)
    if not num:
        raise ConfigError("this model's page does not say how many samples to measure: give --num")
    if guide is None and "classifier_scale" in options:
        raise ConfigError("--classifier_scale needs a --classifier")
    judge, candidates = options.pop("rerank", None), options.pop("candidates", None)
    recipe = page.recipe_of(stored, {name: own[name] for name in ("guidance",) if name in own} | options)
    if task.num_classes or guide:
        check(task if guide is None else guide.task, num, len(build(data["train"]).names or ()) if "train" in data else 0)
    frozen = first_stage.kept(model.workdir)
    raw = conditions(task, num, given=page.derived_conditions(task, data, num, frozen), guide=guide)
    samples = Samples(task, model.params, recipe, raw, num, seed, guide, weak, frozen)
    images = chosen(samples, judge, candidates)
    report = {"samples": num, "sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    report |= {"classifier scale": recipe.classifier_scale} if guide else {}
    report |= {"candidates": candidates} if candidates else {}
    options.clear()
    options["batch"] = batch
    return report, images, said | {"recipe": asdict(recipe), "num": num, "seed": seed}


def check(task: Diffusion | NoisyClassifier, num: int, classes: int) -> None:
    """Raises ConfigError where `num` images, classes in turn, cannot be measured against data of `classes` classes."""
    if not task.num_classes:
        raise ConfigError("these metrics need classes, this model takes no label: give a --classifier, or set evaluate.num to 0")
    if num < max(classes, 1):
        raise ConfigError(f"{num} samples do not cover the {classes} classes of the data: raise num")


def pictured(data: Mapping[str, Any]) -> None:
    """Raises ConfigError where `data`, a config's section, has no pictures with labels to compare samples with."""
    record = build(data["decode"])(build(data["train"])[0], np.random.default_rng(0))
    if record["image"].dtype != np.uint8:
        raise ConfigError("metric pixels compares pictures, the data are latents: give --features and a --reference")
    if "label" not in record:
        raise ConfigError("metric pixels compares classes, the data has none: give --features")


def measure(samples: np.ndarray, labels: np.ndarray, train: tuple, test: tuple) -> Report:
    """The metrics of metrics/pixels.py; train and test are (images, labels)."""
    return {
        "accuracy[pixel SVC]": pixels.class_accuracy(samples, labels, *train),
        "accuracy[pixel SVC] of held-out images": pixels.class_accuracy(*test, *train),
        "novelty[pixels]": pixels.novelty(samples, train[0], test[0]),
        "variance[pixels] by class": pixels.class_variance(samples, labels, *train),
    }


def of_bits(model: Model, options: dict[str, Any]) -> tuple[Report, html.Shown]:
    """Bits/dim of `num` held-out images (all by default) over all steps, or over `steps` respaced ones, x0 clipped."""
    task = model.task
    if not isinstance(task.process, DDPM):
        raise ConfigError(f"bits/dim are those of a DDPM process's steps, this model has {task.process}")
    if task.first_stage is not None or set(task.needs) - {"label"}:
        what = "latents" if task.autoencoder else f"images under {', '.join(task.needs)}"
        raise ConfigError(f"bits/dim are of pixels, alone or under a label: this model makes {what}")
    steps, key = options.pop("steps", task.process.steps), jax.random.key(options.pop("seed", 1))
    times = respace(task.process, steps)

    @jax.jit
    def bits(params: Params, raw: Raw, key: Key) -> tuple[Array, Array]:
        raw = task.cond.prepare(raw, jax.random.fold_in(key, 1))
        denoise, cond = Clip()(task.denoiser(params)), task.embed(params, raw)
        found = bits_per_dim(denoise, task.process, raw["image"], times, cond, key, task.variance)
        return found.total, found.prior

    total, prior = (np.concatenate(column) for column in zip(*over_test(model, options, bits, key), strict=True))
    report = {"images": len(total), "steps": len(times) - 1}
    return report | {"bits/dim": float(np.mean(total)), "of them prior": float(np.mean(prior))}, html.Shown()


def of_classifier(model: Model, options: dict[str, Any]) -> tuple[Report, html.Shown]:
    """The share of held-out images whose class is found, at some noise levels."""
    task, key = model.task, jax.random.key(options.pop("seed", 1))
    times = task.process.at(jnp.asarray(LEVELS))

    @jax.jit
    def right(params: Params, raw: Raw, key: Key) -> tuple[Array, ...]:
        def at(t: Array) -> Array:
            eps = jax.random.normal(key, raw["image"].shape)
            logits = task.logits(params, noised(task.process, raw["image"], t, eps), t)
            return jnp.argmax(logits, axis=1) == raw["label"]

        return tuple(jax.lax.map(at, times))

    found = [np.concatenate(column) for column in zip(*over_test(model, options, right, key), strict=True)]
    at = {f"accuracy at t = {level} of the noisiest": float(np.mean(column)) for level, column in zip(LEVELS, found, strict=True)}
    return {"images": len(found[0])} | at, html.Shown()


def over_test(model: Model, options: dict[str, Any], function: Any, key: Key) -> Iterator[tuple[np.ndarray, ...]]:
    """function(params, raw, key) over batches of held-out images; each result cut to the images that there are."""
    num, batch = options.pop("num", None), options.pop("batch", BATCH)
    for name in options:
        raise ConfigError(f"--{name} is for samples: this metric makes none")
    data = page.data_of(model.stored, "this metric is of a run's own held-out images")
    images, labels = page.whole(*(build(data[part]) for part in ("test", "decode")), num=num)
    batch = min(batch, len(images))
    for first in range(0, len(images), batch):
        index = np.minimum(np.arange(first, first + batch), len(images) - 1)              # the last batch is filled up
        x = images[index]
        raw = {"image": image.to_unit(x) if x.dtype == np.uint8 else x} | ({} if labels is None else {"label": labels[index]})
        found = function(model.params, raw, jax.random.fold_in(key, first))
        yield tuple(np.asarray(value)[: len(images) - first] for value in found)


def table(report: Mapping[str, Any]) -> str:
    """The report as aligned lines."""
    lines = []
    for name, value in report.items():
        if name in ("classes", "warnings"):
            continue
        if isinstance(value, Mapping):
            value = "  ".join(f"{key}: {ratio:.2f}" for key, ratio in value.items())
        lines.append(f"{name:40s} {value:.4f}" if isinstance(value, float) else f"{name:40s} {value}")
    return "\n".join(lines)
