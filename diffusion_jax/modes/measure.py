"""What is measured, in which network's features and against what: the options of the modes `evaluate`, `reference` and `sweep`.

    --features FOLDER | inception=FILE | dinov2=FILE        the network; a folder is that of a classifier trained here
    --resize tensorflow | pytorch_fid | clean_fid           how Inception's input is made
    --images FOLDER | x.npz                                 images in place of a checkpoint's samples
    --reference FOLDER | x.npz | x.pkl                      images, or statistics; the run's training data by default
"""
from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.data import image
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.source import existing, npz
from diffusion_jax.metrics import moments, networks
from diffusion_jax.metrics.extract import Found, Network, extract
from diffusion_jax.metrics.figures import DISTANCES, Reference
from diffusion_jax.metrics.images import Batch, Blurred, Images, Pictures
from diffusion_jax.modes.sample import guide_of, to_pixels
from diffusion_jax.pipelines.diffusion import Guide, Weak, generate
from diffusion_jax.pipelines.latent import decoded
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pretrained import dinov2, inception, persistent
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Params, Raw

FOLDER = "evaluate"
"""Where, in the working folder, features are kept."""
PICKLED = {"inception": "fid", "dinov2": "fd_dinov2"}
"""Our network -> where EDM2's statistics files keep its moments."""


@dataclass(frozen=True)
class SeeClassifier:
    """A classifier trained here, as a feature network.

    Attributes:
      task: what was trained.
    """

    task: NoisyClassifier

    def __call__(self, params: Params, images: Array) -> dict[str, Array]:
        """uint8 [B, H, W, C] -> 'features' [B, D] and 'logits' [B, classes] at no noise."""
        if images.shape[1:] != self.task.shape:
            raise ConfigError(f"the classifier sees images of {self.task.shape}, these are {images.shape[1:]}: choose another")
        x = image.to_unit(images)
        logits = self.task.logits(params, x, self.task.process.at(jnp.zeros(())))
        return {"features": self.task.features(params, x), "logits": logits}


def network_of(options: dict[str, Any]) -> Network:
    """The network of the options features and resize, which are taken out.

    Raises:
      ConfigError: none is given, or it does not load.
    """
    where, resize = options.pop("features", None), options.pop("resize", None)
    if where is None:
        raise ConfigError("--metric features needs --features: a classifier's folder, inception=FILE or dinov2=FILE")
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
        raise ConfigError(f"--features {where} is a file: say whose weights it holds, inception={where} or dinov2={where}")
    guide = guide_of(where, "features")
    return Network(Path(where).name, SeeClassifier(guide.task), guide.params)


@dataclass(frozen=True)
class Samples:
    """A model's samples, made when they are asked for; image i of a seed is always the same.

    Attributes:
      task, params, recipe, raw, num, seed, guide, weak: as `pipelines.diffusion.generate` takes them.
      frozen: the first stage that decodes latents, as `first_stage.kept` gives it.
    """

    task: Diffusion
    params: Params
    recipe: Recipe
    raw: Raw
    num: int
    seed: int
    guide: Guide | None = None
    weak: Weak | None = None
    frozen: Params = None

    def __len__(self) -> int:
        return self.num

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """Sampled batch by batch.

        Raises:
          ConfigError: what `generate` refuses, or samples that are not finite.
        """
        made = generate(self.task, self.params, self.recipe, self.raw, self.num, self.seed, size, self.guide, self.weak, starts)
        for first, batch in zip(starts, decoded(self.task, self.frozen, made), strict=True):
            label = {"label": self.raw["label"][first : first + len(batch)]} if "label" in self.raw else {}
            yield {"image": to_pixels(batch), **label}


@dataclass(frozen=True)
class Best:
    """Of every few images in a row the one that a classifier is surest of: reranking (2102.12092 sec. 2.6).

    Attributes:
      images: candidates with labels, `candidates` of each image in a row.
      candidates: how many.
      judge: the classifier.
    """

    images: Images
    candidates: int
    judge: Guide

    def __len__(self) -> int:
        return len(self.images) // self.candidates

    def batches(self, starts: Sequence[int], size: int) -> Iterator[Batch]:
        """The best of each."""
        for batch in self.images.batches([first * self.candidates for first in starts], size * self.candidates):
            sure = _sureness(self.judge.task, self.judge.params, image.to_unit(batch["image"]), batch["label"])
            best = np.argmax(np.asarray(sure).reshape(-1, self.candidates), axis=1)
            index = np.arange(len(best)) * self.candidates + best
            yield {name: value[index] for name, value in batch.items()}


@functools.partial(jax.jit, static_argnums=0)
def _sureness(task: NoisyClassifier, params: Params, images: Array, label: Array) -> Array:
    return task.log_prob(params, images, task.process.at(jnp.zeros(())), label, task.process)


def images_at(path: str) -> Pictures:
    """The images of a folder or of an .npz with arr_0 and perhaps labels arr_1.

    Raises:
      ConfigError: there is no such thing, or it holds no images.
    """
    if Path(path).suffix == ".npz":
        images, labels = image.read_batch(path)
        return Pictures(lambda i: {"image": images[i]} | ({} if labels is None else {"label": labels[i]}), len(images), path)
    source = Folder(str(existing(path)))
    return Pictures(source.__getitem__, len(source), path, source.names)


def data_of(data: Mapping[str, Any], part: str) -> Pictures:
    """A data set of a config, decoded; where the page crops or mirrors at random, that is drawn once and for all."""
    source, decode = build(data[part]), build(data["decode"])
    return Pictures(lambda i: decode(source[i], np.random.default_rng(i)), len(source), f"{part} data", source.names)


def chosen(samples: Samples, judge: str | None, candidates: int | None) -> Images:
    """The samples themselves or, with a judge, a classifier's folder, the best of so many candidates for each.

    Raises:
      ConfigError: one of the two without the other, or a judge that does not go with the model.
    """
    if (judge is None) != (candidates is None):
        raise ConfigError("reranking needs both --rerank, a classifier's folder, and --candidates, how many to choose from")
    if judge is None or candidates is None:
        return samples
    guide = guide_of(judge, "rerank")
    if guide.task.shape != samples.task.shape or "label" not in samples.raw:
        seen = f"labelled images of {guide.task.shape}, this model makes {samples.task.shape}"
        raise ConfigError(f"--rerank judges {seen}: choose another")
    many = {name: np.repeat(value, candidates, axis=0) for name, value in samples.raw.items()}
    return Best(replace(samples, raw=many, num=samples.num * candidates), candidates, guide)


def found_in(network: Network, images: Images, workdir: str, what: Mapping[str, Any], batch: int, blur: float) -> Found:
    """What the network finds, kept in the working folder under a name that stands for all that it depends on.

    Args:
      network: what sees them.
      images: what it sees.
      workdir: the working folder.
      what: says where the images come from; equal for equal images only.
      batch: images at a time.
      blur: standard deviation of a Gaussian filter that goes before, 0 for none.
    """
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(network.params):
        weights.update(np.asarray(leaf).tobytes())
    on = {"network": network.label, "weights": weights.hexdigest(), "batch": batch, "blur": blur, "num": len(images), **what}
    said = json.dumps(on, sort_keys=True, default=str)
    folder = Path(workdir, FOLDER, hashlib.sha256(said.encode()).hexdigest()[:16])
    return extract(network, Blurred(images, blur) if blur else images, folder, batch)


def reference_of(path: str | None, data: Mapping[str, Any] | None, network: Network, workdir: str, batch: int,
                 blur: float = 0.0) -> Reference:
    """What images are measured against.

    Args:
      path: the option reference; None for the training data of `data`, a config's section.
      data: None where there is no run.
      network, workdir, batch, blur: as for `found_in`.

    Raises:
      ConfigError: nothing is given, it does not read, or its statistics are of another network.
    """
    def seen(pictures: Pictures, what: Mapping[str, Any]) -> Reference:
        found = found_in(network, pictures, workdir, what, batch, blur)
        return Reference(pictures.what, {name: found.moments(name) for name in DISTANCES if found.has(name)}, found, pictures)

    if path is None:
        if "train" not in (data or {}):
            raise ConfigError("these images need a --reference: a folder, an .npz of images, or a file of statistics")
        return seen(data_of(data, "train"), {"data": data})
    where = existing(path)
    stamp = {"path": str(where.resolve()), "changed": _changed(where)}
    if where.suffix not in (".npz", ".pkl"):
        return seen(images_at(path), stamp)
    statistics = {} if blur else statistics_in(where, network)
    if where.suffix == ".npz" and "arr_0" in _names(where):
        found = seen(images_at(path), stamp)
        return found._replace(moments={**found.moments, **statistics})
    if not statistics:
        said = "images arr_0" if blur else "images arr_0 nor statistics mu, sigma"
        raise ConfigError(f"{path} holds no {said}: give another --reference")
    return Reference(path, statistics)


def statistics_in(path: Path, network: Network) -> dict[str, moments.Moments]:
    """The statistics of a file for a network: pytorch-fid's and ADM's .npz, EDM2's .pkl, or one that mode `reference` wrote.

    Raises:
      ConfigError: it does not read, or it says that it is of another network.
    """
    kind = network.label.partition(",")[0]
    if path.suffix == ".pkl":
        content, part = persistent.unpickle(path), PICKLED.get(kind)
        if not isinstance(content, Mapping) or not isinstance(content.get(part), Mapping):
            raise ConfigError(f"{path} holds no statistics {part or 'of ' + kind}: it is no reference for --features {kind}")
        return {"features": moments.checked(content[part].get("mu"), content[part].get("sigma"), path)}
    names = _names(path)
    if "network" in names:
        with npz(path) as arrays:
            made = str(arrays["network"])
        if made != network.label:
            raise ConfigError(f"{path} was made with {made}, not with {network.label}: make another with --mode reference")
    known = {"features": "mu", "spatial": "mu_s"}
    return {name: moments.load(path, name == "spatial") for name in DISTANCES if known[name] in names}


def _names(path: Path) -> set[str]:
    with npz(path) as arrays:
        return set(arrays)


def _changed(path: Path) -> Any:
    """What differs when the files of a reference do."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    said = json.dumps([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    return hashlib.sha256(said.encode()).hexdigest()
