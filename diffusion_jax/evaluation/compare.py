"""Images against a reference, in a network's features: the figures of metrics/figures.py.

    of_run(run, options)            a run's samples, made as they are needed
    of_images(folder, options)      images that are there
"""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.source import existing
from diffusion_jax.evaluation import features, identity, samples
from diffusion_jax.evaluation.options import COMPARED, Options
from diffusion_jax.evaluation.report import Gallery, Measured, name_of
from diffusion_jax.files import writable
from diffusion_jax.metrics import figures
from diffusion_jax.metrics.extract import Found
from diffusion_jax.metrics.images import Images, Pictures
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import Run
from diffusion_jax.train.lock import one_writer


def of_run(run: Run, options: Options) -> Measured:
    """The metrics of metrics/figures.py on samples, classes in turn."""
    check(run, options)
    extractor = extractor_of(run.folder, options)
    sampled = samples.sampled(run, options)
    return compared(sampled, extractor, options.measure.reference, _data(run))


def check(run: Run, options: Options) -> None:
    """Raises ConfigError where samples of a run cannot be compared, before anything is read or
    made."""
    features.named(options.features.features, options.features.resize)
    features.check_reference(options.measure.reference, _data(run))
    _, num = samples.ready(run, options)
    check_number(num, "samples")


def _data(run: Run) -> held_out.Data | None:
    """The pictures of a run; None where it came without data."""
    return held_out.of_pictures(run.config["data"]) if "data" in run.config else None


def of_images(folder: str, options: Options) -> Measured:
    """The same on the images that `options.measure.images` names.

    Args:
      folder: where features are kept.
      options: what to measure.

    Raises:
      ConfigError: what `check_images` refuses.
    """
    path = check_images(options)
    extractor = extractor_of(folder, options)
    images = features.images_at(path)
    check_number(len(images), "images")
    report = {"images": path, "samples": len(images)}
    shape = images.read(0)["image"].shape
    sampled = samples.Sampled(images, report, identity.of_files(path), shape)
    changed = {name: value for name, value in options.flags.items() if name != "batch"}
    return compared(sampled, extractor, options.measure.reference)._replace(
        name=name_of("features", changed)
    )


def check_images(options: Options) -> str:
    """The path of the images that options name.

    Raises:
      ConfigError: there are none, an option that is for samples, no network, or nothing to compare
        with.
    """
    measure = options.measure
    if measure.metric not in (None, "features"):
        raise ConfigError("--images are measured by --metric features")
    for name in options.flags:
        if name not in ("metric", "images", "batch", *COMPARED):
            raise ConfigError(f"--{name} is for samples: --images are measured as they are")
    if measure.images is None:
        raise ConfigError("there are no images to measure: give --images, a folder or an .npz")
    existing(measure.images)
    features.named(options.features.features, options.features.resize)
    features.check_reference(measure.reference, None)
    return measure.images


def check_number(count: int, what: str) -> None:
    """Raises ConfigError where there are too few images for a covariance."""
    if count < 2:
        raise ConfigError(f"a covariance needs at least 2 {what}, there is {count}")


def extractor_of(folder: str, options: Options) -> features.Extractor:
    """What takes the features that the options name, and keeps them in a folder."""
    writable(f"{Path(folder, features.FOLDER)}/")
    network = features.network_of(options.features.features, options.features.resize)
    return features.Extractor(network, folder, options.size, options.measure.blur or 0.0)


def compared(
    sampled: samples.Sampled,
    extractor: features.Extractor,
    reference: str | None,
    data: Mapping[str, Any] | None = None,
) -> Measured:
    """Images against a reference.

    Their features are kept until the figures are there, so that what is killed half way goes on.

    Args:
      sampled: the images.
      extractor: takes their features.
      reference, data: as for `features.reference_of`.

    Raises:
      ConfigError: the two sides do not go together, or another process measures the same images in
        the same folder.
    """
    shapes = extractor.shapes(sampled.shape)
    folder = extractor.place(sampled.images, sampled.identity)
    # Whoever ends first removes the features of these images: nobody else may be at work on them.
    # Of several processes that share the work the first stands for all.
    alone = one_writer(folder, doing="measured") if jax.process_index() == 0 else nullcontext()
    with alone:
        real = features.reference_of(extractor, reference, data)
        # Before the samples are made: these take hours, and by other classes or features every
        # figure would be wrong.
        check_names(sampled.images, real)
        figures.check_sizes(extractor.network.label, shapes, real)
        figures.check_classes(real, sampled.labels)
        fake = extractor(sampled.images, sampled.identity)
        measured = _measured(sampled, extractor, fake, real)
        fake.forget()
    with suppress(OSError):  # another process may not be done
        folder.rmdir()
    return measured


def _measured(
    sampled: samples.Sampled, extractor: features.Extractor, fake: Found, real: figures.Reference
) -> Measured:
    """The figures of features against those of a reference."""
    network = extractor.network
    report = sampled.figures | {"reference": real.what}
    if extractor.blur:
        report["blur"] = extractor.blur
    report |= figures.figures(network.label, fake, real)
    # A classifier that was trained here knows these classes; Inception's logits are of others.
    if isinstance(network.see, features.SeeClassifier) and fake.labels is not None:
        correct = np.argmax(fake.rows("logits"), axis=1) == fake.labels
        report[f"accuracy[{network.label}]"] = float(np.mean(correct))
    rows = figures.by_class(fake, real, sampled.names)
    report |= {"classes": rows, "warnings": figures.warnings(fake, real)}
    gallery = beside(fake, real)
    return Measured({name: value for name, value in report.items() if value != []}, gallery)


def check_names(images: Images, real: figures.Reference) -> None:
    """Raises ConfigError where both sides name their classes, and differ."""
    if not isinstance(images, Pictures) or real.pictures is None:
        return
    names, others = images.names, real.pictures.names
    if names and others and names != others:
        odd = sorted(set(names) ^ set(others)) or names
        raise ConfigError(
            f"class {odd[0]!r} is in one of {images.what} and {real.what} only: the classes must "
            "be the same"
        )


def beside(fake: Found, real: figures.Reference, rows: int = 8, count: int = 4) -> Gallery:
    """The first samples and, where the reference has images, those nearest to a few of them."""
    # A file of statistics has no images that could be nearest.
    if real.found is None or real.pictures is None:
        return Gallery(fake.pixels)
    index, distances = figures.nearest(
        fake.rows("features")[:rows], real.found.rows("features"), count
    )
    pictures = np.stack([real.pictures.read(int(i))["image"] for i in index.flat])
    nearest = pictures.reshape(*index.shape, *pictures.shape[1:])  # [rows, count, H, W, C]
    return Gallery(fake.pixels, nearest, distances)
