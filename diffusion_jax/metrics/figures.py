"""The figures of one set of images against another, in the features of one network, each named after definition and network.

    FID[n]                      Frechet distance of 'features'; with DINOv2 it is FD-DINOv2
    sFID[n]                     the same of 'spatial' features
    IS[n], ADM                  inception score of 'logits' over parts of 5,000 images in order
    IS[n], torch-fidelity       over ten parts after a shuffle
    KID[n]                      kernel distance, 100 subsets of 1,000 images, or as many as there are, which it then says
    precision, recall, density, coverage [n]         of prdc, k = 5
    precision[n], ADM ...       of ADM's evaluator, k = 3
    distance[n]                 mean distance between the images: diversity without a reference
    novelty[n]                  distance to the nearest image of the reference, over that within the reference
    accuracy[n], nearest        share of images whose class is that of their nearest ones in the reference; beside it the same of
                                the reference's own images, which is as much as can be asked
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.metrics import inception_score, kid, prdc
from diffusion_jax.metrics.extract import Found
from diffusion_jax.metrics.fid import frechet_distance
from diffusion_jax.metrics.images import Pictures
from diffusion_jax.metrics.moments import Moments

SUBSET = 1000
NEIGHBOURS = 5
DISTANCES = {"features": "FID", "spatial": "sFID"}


class Reference(NamedTuple):
    """What images are measured against.

    Attributes:
      what: what it is, for the report.
      moments: of 'features', perhaps of 'spatial'.
      found: what the network found in its images; None where only statistics are left.
      pictures: the images themselves, or None.
    """

    what: str
    moments: Mapping[str, Moments]
    found: Found | None = None
    pictures: Pictures | None = None


def figures(label: str, fake: Found, real: Reference) -> dict[str, float]:
    """Every figure above that the network and the reference allow, by name.

    Raises:
      ConfigError: the reference has features of another size: it is of another network.
    """
    found = {}
    for name, figure in DISTANCES.items():
        if name in real.moments and fake.has(name):
            own, other = fake.moments(name), real.moments[name]
            _check_size(label, len(own.mean), real, name)
            found[f"{figure}[{label}]"] = frechet_distance(own, other)
    if fake.has("logits"):
        logits = fake.rows("logits")
        found[f"IS[{label}], ADM"] = inception_score.adm(logits)
        if len(logits) >= 10:
            found[f"IS[{label}], torch-fidelity"] = inception_score.torch_fidelity(logits)[0]
    if real.found:
        reals, fakes = real.found.rows("features"), fake.rows("features")
        found |= among(label, reals, fakes)
        if real.found.labels is not None and fake.labels is not None:
            found |= of_classes(label, (reals, real.found.labels), (fakes, fake.labels))
    return found


def check_sizes(label: str, shapes: Mapping[str, jax.ShapeDtypeStruct], real: Reference) -> None:
    """Raises ConfigError where a reference has features of another size than a network.

    Args:
      label: the network's.
      shapes: what it finds in images, by name, [B, D] each.
      real: the reference.
    """
    for name in DISTANCES:
        if name in real.moments and name in shapes:
            _check_size(label, shapes[name].shape[1], real, name)


def _check_size(label: str, size: int, real: Reference, name: str) -> None:
    other = len(real.moments[name].mean)
    if size != other:
        sizes = f"{other} numbers, those of {label} have {size}"
        raise ConfigError(f"features of {real.what} have {sizes}: it was made with another network")


def check_classes(real: Reference, labels: np.ndarray | None) -> None:
    """Raises ConfigError where a class of the reference is not among the labels [N] of images; None for unknown ones."""
    if real.found is None or real.found.labels is None or labels is None:
        return
    missing = np.setdiff1d(real.found.labels, labels)
    if len(missing):
        name = real.pictures.names[missing[0]] if real.pictures and real.pictures.names else str(missing[0])
        raise ConfigError(f"there is no sample of class {name!r} ({missing[0]}): make more, or choose a reference without it")


def among(label: str, real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """The figures that need all features at once: real [N, D] and fake [M, D]."""
    found = {f"distance[{label}]": prdc.mean_distance(fake)}
    fewest = min(len(real), len(fake))
    if fewest > 1:
        size = min(SUBSET, fewest)
        name = f"KID[{label}]" if size == SUBSET else f"KID[{label}], subsets of {size}"
        found |= {name: kid.kid(real, fake, size=size)[0], f"novelty[{label}]": prdc.novelty(real, fake)}
    if fewest > NEIGHBOURS:
        found |= {f"{name}[{label}]": value for name, value in prdc.prdc(real, fake, NEIGHBOURS)._asdict().items()}
        adm = prdc.adm(real, fake)
        found |= {f"precision[{label}], ADM": adm.precision, f"recall[{label}], ADM": adm.recall}
    return found


def of_classes(
    label: str, real: tuple[np.ndarray, np.ndarray], fake: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Whether images look like those of their class: (features [N, D], classes [N]) of the reference and of what is measured.

    The `NEIGHBOURS` nearest by cosine vote with one over their distances, and no image of the reference for itself.
    """
    from sklearn.neighbors import KNeighborsClassifier

    (reals, classes), (fakes, asked) = real, fake
    if len(np.unique(classes)) < 2 or len(reals) <= NEIGHBOURS:
        return {}
    voters = KNeighborsClassifier(NEIGHBOURS, weights="distance", metric="cosine").fit(reals, classes)
    name = f"accuracy[{label}], nearest"
    return {
        name: float(np.mean(voters.predict(fakes) == asked)),
        f"{name}, of the reference": float(voters.score(None, classes)),
    }


def warnings(fake: Found, real: Reference) -> list[str]:
    """What a reader of the figures must know."""
    said = []
    for what, count in (("samples", fake.count), ("reference images", real.found.count if real.found else None)):
        size = len(real.moments["features"].mean)
        if count is not None and count <= size:
            said.append(f"{count} {what} do not determine a covariance of {size} features: the distance is biased upwards, "
                        "compare it only with figures of equally many images")
    return said


def by_class(fake: Found, real: Reference, names: Sequence[str] | None = None) -> list[dict[str, float | str]]:
    """A row for each class of the reference: how many images, and of prdc within the class what they allow.

    Args:
      fake, real: both sides.
      names: of the classes, where the reference has none.

    Raises:
      ConfigError: a class of the reference of which there is no sample.
    """
    if real.found is None or real.found.labels is None or fake.labels is None:
        return []
    check_classes(real, fake.labels)
    rows, names = [], (real.pictures.names if real.pictures else None) or names
    reals, fakes, logits = real.found.rows("features"), fake.rows("features"), fake.rows("logits") if fake.has("logits") else None
    for label in np.unique(real.found.labels):
        name = names[label] if names and label < len(names) else str(label)
        own, other = fakes[fake.labels == label], reals[real.found.labels == label]
        row: dict[str, float | str] = {"class": name, "samples": len(own), "reference": len(other)}
        if logits is not None and logits.shape[1] == len(np.unique(real.found.labels)):
            row["accuracy"] = float(np.mean(np.argmax(logits[fake.labels == label], axis=1) == label))
        if min(len(own), len(other)) > NEIGHBOURS:
            row |= prdc.prdc(other, own, NEIGHBOURS)._asdict()
        rows.append(row)
    return rows


def nearest(fake: np.ndarray, real: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, distances), [M, count] each, of the real features [N, D] nearest to each generated one [M, D]."""
    parts = []
    for _, part in prdc.distances(fake, real):
        index = np.argsort(part, axis=1)[:, :count]
        parts.append((index, np.take_along_axis(part, index, axis=1)))
    index, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return index, distance
