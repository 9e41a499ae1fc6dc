"""What images are compared in, and with what: a network's features, and a reference.

    features     FOLDER | inception=FILE | dinov2=FILE      the network; a folder is a classifier's
    resize       tensorflow | pytorch_fid | clean_fid       how Inception's input is made
    images       FOLDER | x.npz                             in place of a run's samples
    reference    FOLDER | x.npz | x.pkl                     images, or statistics; by default the
                                                            run's training data

Features are kept in the working folder until the figures are there, those of a reference for good,
under a name that stands for all that they depend on.
"""
from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.image import to_unit
from diffusion_jax.data.pictures import read_batch
from diffusion_jax.data.source import existing, npz
from diffusion_jax.metrics import moments, networks
from diffusion_jax.metrics.extract import Found, Network, extract
from diffusion_jax.metrics.figures import DISTANCES, Reference
from diffusion_jax.metrics.images import Blurred, Images, Pictures
from diffusion_jax.pretrained import dinov2, inception, persistent
from diffusion_jax.runs.folder import open_run
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Array, Params

FOLDER = "evaluate"
"""Where, in the working folder, features are kept."""
PICKLED = {"inception": "fid", "dinov2": "fd_dinov2"}
"""Our network -> where EDM2's statistics files keep its moments."""
ARRAYS = {"features": "mu", "spatial": "mu_s"}
"""Our features -> the array of an .npz that holds their mean."""


@dataclass(frozen=True)
class SeeClassifier:
    """A classifier trained here, as a feature network.

    Attributes:
      task: what was trained.
    """

    task: kinds.Classifier

    def __call__(self, params: Params, images: Array) -> dict[str, Array]:
        """uint8 [B, H, W, C] -> 'features' [B, D] and 'logits' [B, classes] at no noise."""
        if images.shape[1:] != self.task.shape:
            raise ConfigError(
                f"the classifier sees images of {self.task.shape}, these are {images.shape[1:]}: "
                "choose another"
            )
        x = to_unit(images)
        logits = self.task.logits(params, x, self.task.process.at(jnp.zeros(())))
        return {"features": self.task.features(params, x), "logits": logits}


def network_of(where: str | None, resize: str | None = None) -> Network:
    """The network of the options features and resize.

    Raises:
      ConfigError: none is given, or it does not load.
    """
    if where is None:
        raise ConfigError(
            "--metric features needs --features: a classifier's folder, inception=FILE or "
            "dinov2=FILE"
        )
    kind, _, file = where.rpartition("=")
    if resize and kind != "inception":
        raise ConfigError("--resize is a convention of --features inception=FILE")
    if kind == "inception":
        return networks.inception(inception.load(file), resize or "tensorflow")
    if kind == "dinov2":
        return networks.dinov2(dinov2.load(file))
    if kind:
        raise unknown("feature network", kind, ("inception", "dinov2"))
    if Path(where).is_file():
        raise ConfigError(
            f"--features {where} is a file: say whose weights it holds, inception={where} or "
            f"dinov2={where}"
        )
    judge = open_run(where, kinds.Classifier, flag="--features ")
    return Network(Path(where).name, SeeClassifier(judge.task), judge.model.params)


# Images -------------------------------------------------------------------------------------------


def images_at(path: str) -> Pictures:
    """The images of a folder or of an .npz with arr_0 and perhaps labels arr_1.

    Raises:
      ConfigError: there is no such thing, or it holds no images.
    """
    if Path(path).suffix != ".npz":
        source = Folder(str(existing(path)))
        return Pictures(source.__getitem__, len(source), path, source.names)
    images, labels = read_batch(path)

    def read(i: int) -> dict[str, Any]:
        return {"image": images[i]} if labels is None else {"image": images[i], "label": labels[i]}

    return Pictures(read, len(images), path)


def identity_at(path: str) -> dict[str, str]:
    """What differs when the files at a path do, the file itself or those of a folder.

    Raises:
      ConfigError: there is no such thing.
    """
    where = existing(path)
    files = sorted(where.rglob("*")) if where.is_dir() else [where]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    changed = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return {"path": str(where.resolve()), "changed": changed}


def data_of(data: Mapping[str, Any], split: str) -> Pictures:
    """A split of a page's data, decoded; random crops and mirrors are drawn once and for all."""
    source = build(data[split])
    decode = build(data["decode"])

    def read(i: int) -> Mapping[str, Any]:
        return decode(source[i], np.random.default_rng(i))

    return Pictures(read, len(source), f"{split} data", source.names)


# Features -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extractor:
    """How features are taken, and where they are kept.

    Attributes:
      network: what sees the images.
      folder: the working folder.
      batch: images at a time.
      blur: standard deviation of a Gaussian filter that goes before, 0 for none.
    """

    network: Network
    folder: str
    batch: int
    blur: float = 0.0

    @functools.cached_property
    def weights(self) -> str:
        """What tells the network's weights from all others."""
        # By content, not by path: a file that was replaced has other features.
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.network.params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def __call__(self, images: Images, identity: Mapping[str, Any]) -> Found:
        """What the network finds in images.

        Args:
          images: what it sees.
          identity: tells the images from all others; equal for equal images only.

        Raises:
          ConfigError: what `extract` refuses.
        """
        network = {"network": self.network.label, "weights": self.weights}
        # The batch too: in another order of sums the last digits differ.
        identity = {
            **network,
            "batch": self.batch,
            "blur": self.blur,
            "num": len(images),
            **identity,
        }
        text = json.dumps(identity, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        smooth = Blurred(images, self.blur) if self.blur else images
        return extract(self.network, smooth, Path(self.folder, FOLDER, name), self.batch)


# References ---------------------------------------------------------------------------------------


def reference_of(
    extractor: Extractor, path: str | None, data: Mapping[str, Any] | None
) -> Reference:
    """What images are measured against.

    Args:
      extractor: takes the features of images.
      path: the option reference; None for the training data.
      data: the section of a run's page; None where there is no run.

    Raises:
      ConfigError: nothing is given, it does not read, or its statistics are of another network.
    """
    if path is None:
        if data is None or "train" not in data:
            raise ConfigError(
                "these images need a --reference: a folder, an .npz of images, or a file of "
                "statistics"
            )
        return _reference_in(extractor, data_of(data, "train"), {"data": data})
    where = existing(path)
    identity = identity_at(path)
    if where.suffix not in (".npz", ".pkl"):
        return _reference_in(extractor, images_at(path), identity)
    # Statistics are of sharp images; those of blurred ones are taken anew, of the images.
    statistics = {} if extractor.blur else statistics_in(where, extractor.network)
    if where.suffix == ".npz" and "arr_0" in _names(where):
        reference = _reference_in(extractor, images_at(path), identity)
        # In ADM's files the moments are of the whole set, arr_0 is a part of it: they go first.
        published = {**reference.moments, **statistics}
        return reference._replace(moments=published)
    if not statistics:
        missing = "images arr_0" if extractor.blur else "images arr_0 nor statistics mu, sigma"
        raise ConfigError(f"{path} holds no {missing}: give another --reference")
    return Reference(path, statistics)


def _reference_in(
    extractor: Extractor, pictures: Pictures, identity: Mapping[str, Any]
) -> Reference:
    extracted = extractor(pictures, identity)
    statistics = {name: extracted.moments(name) for name in DISTANCES if extracted.has(name)}
    return Reference(pictures.what, statistics, extracted, pictures)


def statistics_in(path: Path, network: Network) -> dict[str, moments.Moments]:
    """The statistics of a file for a network.

    An .npz as of pytorch-fid, of ADM or of mode `reference`, or EDM2's .pkl.

    Raises:
      ConfigError: it does not read, or it says that it is of another network.
    """
    if path.suffix == ".pkl":
        return {"features": _pickled(path, network.label.partition(",")[0])}
    names = _names(path)
    if "network" in names:
        # Our own files say it; of others' the user has to know.
        with npz(path) as arrays:
            label = str(arrays["network"])
        if label != network.label:
            raise ConfigError(
                f"{path} was made with {label}, not with {network.label}: make another with "
                "--mode reference"
            )
    return {
        name: moments.load(path, name == "spatial") for name in DISTANCES if ARRAYS[name] in names
    }


def _pickled(path: Path, kind: str) -> moments.Moments:
    """EDM2's statistics in the features of a network."""
    content = persistent.unpickle(path)
    part = PICKLED.get(kind)
    if not isinstance(content, Mapping) or not isinstance(content.get(part), Mapping):
        raise ConfigError(
            f"{path} holds no statistics {part or 'of ' + kind}: it is no reference for "
            f"--features {kind}"
        )
    return moments.checked(content[part].get("mu"), content[part].get("sigma"), path)


def _names(path: Path) -> set[str]:
    with npz(path) as arrays:
        return set(arrays)
