"""What all systems of a lineage are measured with, and the figures that it gives.

The classifier, or the CLIP, in whose features pictures are compared and the CLIP that judges them
guide nobody.
Figures are kept in a file beside what they are of, so that a comparison that was ended goes on.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data.pictures import read_batch, save_npz
from diffusion_jax.evaluation import clip, compare, contrast, features, identity, likelihood, metrics
from diffusion_jax.evaluation.options import BATCH, Features, Options
from diffusion_jax.evaluation.samples import Sampled
from diffusion_jax.files import whole
from diffusion_jax.lineage.stages import Lineage, Trained
from diffusion_jax.lineage.train import digest
from diffusion_jax.pipelines.calls import calls_of
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import Run, open_run
from diffusion_jax.tasks import kinds

OF_NETWORK = ("FID", "precision", "recall", "density", "coverage", "accuracy")
"""Figures that evaluation/ gives in the features of a network."""
OF_CLIP = ("CLIP score", f"own caption first of {clip.AMONG}")
BITS_STEPS = 100
"""Steps of the bound on bits/dim: all 1,000 would take longer than all else."""


class Bench(NamedTuple):
    """What all systems are measured with.

    Attributes:
      workdir: where features are kept.
      measure: the classifier, or the CLIP, in whose features pictures are compared.
      judge: the CLIP; None without.
      data: the section of a page whose pictures are the reference.
      mark: stands for all of these.
    """

    workdir: str
    measure: Run
    judge: Run | None
    data: Mapping[str, Any]
    mark: str


def bench_of(lineage: Lineage, trained: Sequence[Trained], workdir: str) -> Bench:
    """Opens what measures.

    Raises:
      ConfigError: it was not trained, or is of another kind.
    """
    networks = (kinds.Classifier, kinds.TwoTowers)
    measure = open_run(folder_of(trained, lineage.measure, 0), networks)
    judge = None
    if lineage.judge is not None:
        judge = open_run(folder_of(trained, lineage.judge, 0), kinds.TwoTowers)
    source = open_run(folder_of(trained, lineage.reference, 0))
    data = held_out.of_pictures(source.data("the lineage is compared with these pictures"))
    runs = [run for run in (measure, judge) if run is not None]
    # By content, not by place: a folder of a lineage may be moved.
    depends = [run.digest for run in runs] + [identity.of_data(data, "train")]
    return Bench(workdir, measure, judge, data, digest(depends))


def row_of(trained: Sequence[Trained], key: str, seed: int) -> Trained:
    """What became of a stage; of one that all seeds share, its only row.

    Raises:
      ConfigError: it was not trained.
    """
    rows = [row for row in trained if row.stage.key == key]
    row = next((row for row in rows if row.seed == seed), next(iter(rows), None))
    if row is None:
        raise ConfigError(f"{key} was not trained: run the lineage again")
    return row


def folder_of(trained: Sequence[Trained], key: str, seed: int) -> str:
    """The folder of a stage that others need.

    Raises:
      ConfigError: it was not trained, or not to a good end.
    """
    row = row_of(trained, key, seed)
    if row.error:
        raise ConfigError(f"{row.stage.name}, which it needs, failed: {row.error}")
    return row.folder


def cached(file: Path, make: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Figures of a file, which is made where it is missing."""
    if not file.exists():
        figures = make()
        with whole(file) as unfinished:
            unfinished.write_text(json.dumps(dict(figures)), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


# Of pictures --------------------------------------------------------------------------------------


def of_pictures(bench: Bench, file: Path, prompts: Sequence[str] | None) -> dict[str, float]:
    """The figures of pictures in an .npz: those of `OF_NETWORK` and, of texts, of `OF_CLIP`."""

    def make() -> dict[str, float]:
        figures = in_features(bench, file)
        if bench.judge is not None and prompts is not None:
            figures |= in_a_clip(bench.judge, read_batch(str(file))[0], prompts)
        return figures

    return cached(file.with_name(f"{file.stem}-{bench.mark}.json"), make)


def in_features(bench: Bench, file: Path) -> dict[str, float]:
    """Pictures against the training data, in the features of the network that measures."""
    options = Options(features=Features(bench.measure.folder))
    extractor = compare.extractor_of(bench.workdir, options)
    pictures = features.images_at(str(file))
    images, labels = read_batch(str(file))
    sampled = Sampled(pictures, {}, identity.of_files(file), images.shape[1:], labels)
    figures = compare.compared(sampled, extractor, None, bench.data).figures
    label = extractor.network.label
    named = {name: f"{name}[{label}]" for name in OF_NETWORK}
    return {name: figures[full] for name, full in named.items() if full in figures}


def in_a_clip(judge: Run, images: np.ndarray, prompts: Sequence[str]) -> dict[str, float]:
    """Pictures and their texts in the eyes of a CLIP."""
    tokens = judge.tokens(prompts, truncate=True)
    texts = contrast.text_features(judge.model, tokens, BATCH)
    views = contrast.image_features(judge.model, images, BATCH)
    figures = clip.judge(views[:, None], texts, prompts).figures
    return {name: figures[name] for name in OF_CLIP}


def of_held_out(bench: Bench, num: int) -> dict[str, float]:
    """The figures of `num` held-out pictures, without accuracy where a class is not among them; {}
    where none are held out."""
    if "test" not in bench.data:
        return {}
    images, labels = held_out.pictures(bench.data, "test", num)
    of_classes = isinstance(bench.measure.task, kinds.Classifier) and labels is not None
    if of_classes and len(np.unique(labels)) < bench.measure.task.num_classes:
        of_classes = False
    file = Path(bench.workdir, "held_out.npz")
    save_npz(file, images, labels if of_classes else None)
    return in_features(bench, file)


# Of a run -----------------------------------------------------------------------------------------


def of_pipeline(pipe: Pipeline, folder: Path) -> dict[str, float]:
    """Network calls, parameters and, where they are defined, bits, which are kept in a folder."""
    figures = {"network calls": float(calls_of(pipe)), "parameters": float(size(pipe))}
    mark = digest([pipe.run.digest, pipe.run.which])
    return figures | cached(folder / f"bits-{mark}.json", lambda: bits(pipe.run))


def bits(run: Run) -> dict[str, float]:
    """Of held-out images: of each value of a pixel, or of each token; {} where a model has none."""
    if isinstance(run.task, kinds.Tokens):
        data = run.data("it has no held-out images")
        batches = list(held_out.batches(data, "test", None, BATCH))
        figures = likelihood.measured(run.model, batches).figures
        return {"bits per image token": figures["image (bits per token)"]}
    options = Options(changes={"steps": BITS_STEPS})
    try:
        metrics.check_bits(run, options)
    except ConfigError:
        return {}
    return {"bits/dim": metrics.bits(run, options).figures["bits/dim"]}


def size(pipe: Pipeline) -> int:
    """Parameters of all networks that a picture goes through."""
    prior = getattr(pipe.prior, "run", None)
    helpers = (pipe.run, pipe.guide, pipe.weak, pipe.judge, prior)
    runs = [run for run in helpers if run is not None]
    trees = [run.model.params for run in runs] + [pipe.run.model.first]
    own = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(trees))
    return own + sum(size(larger) for larger in pipe.upsamplers)
