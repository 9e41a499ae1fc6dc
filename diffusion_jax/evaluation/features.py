"""What images are compared in, and with what: a network's features, and a reference.

    features     FOLDER | inception=FILE | dinov2=FILE      the network; a folder is that of a
                                                            classifier or of a CLIP
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
from diffusion_jax.data.image import to_channels, to_unit
from diffusion_jax.data.pictures import read_batch
from diffusion_jax.data.resize import CONVENTIONS
from diffusion_jax.data.source import decoded, existing, npz
from diffusion_jax.evaluation import identity
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
        check_seen(self.task, images)
        x = to_unit(images)
        logits = self.task.logits(params, x, self.task.process.at(jnp.zeros(())))
        return {"features": self.task.features(params, x), "logits": logits}


@dataclass(frozen=True)
class SeeCLIP:
    """A CLIP trained here, as a feature network.

    Attributes:
      task: what was trained.
    """

    task: kinds.TwoTowers

    def __call__(self, params: Params, images: Array) -> dict[str, Array]:
        """uint8 [B, H, W, C] -> 'features' [B, F], of length sqrt(F): it tells pictures apart by
        their directions, and a channel is of the size 1."""
        check_seen(self.task, images)
        directions = self.task.encode_image(params, to_unit(images))
        return {"features": directions * directions.shape[-1] ** 0.5}


def check_seen(task: Any, images: Array) -> None:
    """Raises ConfigError where a network trained here sees pictures of another size."""
    if images.shape[1:] != task.shape:
        raise ConfigError(
            f"--features is {task.noun} of images of {task.shape}, these are {images.shape[1:]}: "
            "choose another"
        )


def network_of(where: str | None, resize: str | None = None) -> Network:
    """The network of the options features and resize.

    Raises:
      ConfigError: none is given, or it does not load.
    """
    kind, file = named(where, resize)
    if kind == "inception":
        return networks.inception(inception.load(file), resize or "tensorflow")
    if kind == "dinov2":
        return networks.dinov2(dinov2.load(file))
    judge = open_run(file, (kinds.Classifier, kinds.TwoTowers), flag="--features ")
    is_clip = isinstance(judge.task, kinds.TwoTowers)
    see = SeeCLIP(judge.task) if is_clip else SeeClassifier(judge.task)
    return Network(Path(file).name, see, judge.model.params)


def named(where: str | None, resize: str | None = None) -> tuple[str, str]:
    """What the options features and resize name, before anything is read.

    Returns:
      (inception or dinov2, its file), or ('', the folder of a classifier or of a CLIP).

    Raises:
      ConfigError: none is given, no such network, or no such folder.
    """
    if not where:
        raise ConfigError(
            "--metric features needs --features: the folder of a classifier or of a CLIP, "
            "inception=FILE or dinov2=FILE"
        )
    # Up to the first '=': files and folders have others in their names.
    kind, sign, file = where.partition("=")
    published = bool(sign) and kind in PICKLED
    if resize and not (published and kind == "inception"):
        raise ConfigError("--resize is a convention of --features inception=FILE")
    if published:
        if resize is not None and resize not in CONVENTIONS:
            raise unknown("resize convention", resize, CONVENTIONS)
        if not file:
            raise ConfigError(f"--features {where}: say where its weights are, {kind}=FILE")
        # No shell expands a ~ behind a '='.
        return kind, str(Path(file).expanduser())
    folder = Path(where).expanduser()
    if folder.is_dir():
        return "", where
    if folder.is_file():
        raise ConfigError(
            f"--features {where} is a file: say whose weights it holds, inception={where} or "
            f"dinov2={where}"
        )
    if where in PICKLED:
        raise ConfigError(f"--features {where}: say where its weights are, {where}=FILE")
    # A word before the sign is meant as a network's name; with a slash in it, as a folder's.
    if sign and kind.isidentifier():
        raise unknown("feature network", kind, PICKLED)
    raise ConfigError(
        f"--features {where}: there is no such folder: give that of a classifier or of a CLIP, "
        "inception=FILE or dinov2=FILE"
    )


# Images -------------------------------------------------------------------------------------------


def images_at(path: str) -> Pictures:
    """The images of a folder or of an .npz with arr_0 and perhaps labels arr_1.

    Raises:
      ConfigError: there is no such thing, or it holds no images.
    """
    if Path(path).suffix != ".npz":
        return _in_folder(Folder(str(existing(path, "folder"))))
    images, labels = read_batch(path)

    def read(i: int) -> dict[str, Any]:
        return {"image": images[i]} if labels is None else {"image": images[i], "label": labels[i]}

    return Pictures(read, len(images), path)


def _in_folder(source: Folder) -> Pictures:
    """Its images, a grey one among coloured ones as a coloured one."""

    def read(i: int) -> dict[str, Any]:
        record = source[i]
        return {**record, "image": to_channels(record["image"], source.channels)}

    return Pictures(read, len(source), source.path, source.names)


def data_of(data: Mapping[str, Any], split: str) -> Pictures:
    """A split of a page's data, decoded; random crops and mirrors are drawn once and for all."""
    source = build(data[split])
    decode = build(data["decode"])

    def read(i: int) -> Mapping[str, Any]:
        return decoded(source, decode, i, np.random.default_rng(i))

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

    def __call__(self, images: Images, what: Mapping[str, Any]) -> Found:
        """What the network finds in images.

        Args:
          images: what it sees.
          what: tells the images from all others; equal for equal images only.

        Raises:
          ConfigError: what `extract` refuses.
        """
        smooth = Blurred(images, self.blur) if self.blur else images
        return extract(self.network, smooth, self.place(images, what), self.batch)

    def place(self, images: Images, what: Mapping[str, Any]) -> Path:
        """The folder in which the features of images are kept; its name stands for all that they
        depend on."""
        depends = {
            "network": self.network.label,
            "weights": self.weights,
            # The batch too: in another order of sums the last digits differ.
            "batch": self.batch,
            "blur": self.blur,
            "num": len(images),
            **what,
        }
        text = json.dumps(depends, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Path(self.folder, FOLDER, name)

    def shapes(self, shape: tuple[int, ...]) -> Mapping[str, jax.ShapeDtypeStruct]:
        """What the network finds in an image of a shape (H, W, C), by name, [1, ...] each.

        Raises:
          ConfigError: the network does not see such images.
        """
        image = jax.ShapeDtypeStruct((1, *shape), np.uint8)
        return jax.eval_shape(self.network.see, self.network.params, image)


# References ---------------------------------------------------------------------------------------


def check_reference(path: str | None, data: Mapping[str, Any] | None) -> None:
    """Raises ConfigError where there is nothing to measure against; the arguments are those of
    `reference_of`."""
    if path is not None:
        existing(path)
    elif data is None or "train" not in data:
        raise ConfigError(
            "these images need a --reference: a folder, an .npz of images, or a file of statistics"
        )


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
    check_reference(path, data)
    if path is None:
        assert data is not None
        what = identity.of_data(data, "train")
        return _reference_in(extractor, data_of(data, "train"), what)
    where = existing(path)
    what = identity.of_files(path)
    if where.suffix not in (".npz", ".pkl"):
        return _reference_in(extractor, images_at(path), what)
    # Statistics are of sharp images; those of blurred ones are taken anew, of the images.
    statistics = {} if extractor.blur else statistics_in(where, extractor.network)
    if where.suffix == ".npz" and "arr_0" in _names(where):
        reference = _reference_in(extractor, images_at(path), what)
        # In ADM's files the moments are of the whole set, arr_0 is a part of it: they go first.
        published = {**reference.moments, **statistics}
        return reference._replace(moments=published)
    if not statistics:
        missing = "images arr_0" if extractor.blur else "images arr_0 nor statistics mu, sigma"
        raise ConfigError(f"{path} holds no {missing}: give another --reference")
    return Reference(path, statistics)


def _reference_in(
    extractor: Extractor, pictures: Pictures, what: Mapping[str, Any]
) -> Reference:
    extracted = extractor(pictures, what)
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
