"""What a measurement is asked: which figures, of how many samples made how, against what.

A measurement looks at some of these options; one that it does not look at is refused by
`metrics.check`, so that no flag changes nothing without a word. None stands for what the page or
the metric says.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from diffusion_jax.build import check_options, option
from diffusion_jax.pipelines.recipe import Recipe

BATCH = 250
"""Images at a time."""
SEED = 1
"""Of samples, and of the draws of bits/dim."""


@dataclass(frozen=True)
class Features:
    """In whose features images are compared."""

    features: str | None = option(
        None,
        "In whose features to measure: a classifier's folder, inception=FILE, dinov2=FILE; for "
        "clip the folder of a CLIP",
    )
    resize: str | None = option(
        None,
        "Inception's input: tensorflow (ADM, torch-fidelity), pytorch_fid, clean_fid; tensorflow "
        "by default",
    )


@dataclass(frozen=True)
class Measure:
    """What is measured, and against what."""

    metric: str | None = option(
        None,
        "What to measure: pixels, features, bpd (bits/dim), accuracy (of a classifier), "
        "retrieval, zero_shot or tsne (of a CLIP), clip (of what reads text); by default the first "
        "of these that the model has",
    )
    images: str | None = option(None, "Images to measure in place of samples: a folder or an .npz")
    reference: str | None = option(
        None,
        "What to measure against: a folder, an .npz of images, or statistics (.npz, .pkl); the "
        "run's training data by default",
    )
    blur: float | None = option(
        None, "Deviation in pixels of a Gaussian filter over both before they are measured", least=0
    )
    template: str | None = option(
        None, "Text of a class for zero_shot; 'a photo of a {}', or the data's own, by default"
    )

    def __post_init__(self):
        check_options(self)


@dataclass(frozen=True)
class Options:
    """All of it.

    Attributes:
      metric: one of `metrics.METRICS`; None for the first that the model has, or 'features' where
        those are named.
      num: samples, or held-out images; None for the page's number, or all.
      seed: of all draws, `SEED` by default.
      batch: images at a time, `BATCH` by default.
      changes: fields of `Recipe` in place of the page's; 'steps' also those of bits/dim.
      classifier, weak, weak_step, upsampler, prior, prior_guidance, prior_steps, prior_best:
        folders of runs that help to sample, and their steps, see `pipelines.pipeline`.
      rerank, candidates: folder of a classifier that keeps the best of so many; metric clip takes
        candidates alone.
      features, resize: see evaluation/features.py; for metric clip the folder of a CLIP.
      reference: what samples are measured against; None for the training data.
      blur: deviation of a Gaussian filter over both, in pixels.
      images: a folder or an .npz that is measured in place of a run.
      template: text of a class for zero_shot.
      swept: the option that a sweep gives one value after the other; '' for none.
    """

    metric: str | None = None
    num: int | None = None
    seed: int | None = None
    batch: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    classifier: str | None = None
    weak: str | None = None
    weak_step: int | None = None
    upsampler: tuple[str, ...] = ()
    prior: str | None = None
    prior_guidance: float | None = None
    prior_steps: str | None = None
    prior_best: int | None = None
    rerank: str | None = None
    candidates: int | None = None
    features: str | None = None
    resize: str | None = None
    reference: str | None = None
    blur: float | None = None
    images: str | None = None
    template: str | None = None
    swept: str = ""

    @classmethod
    def of(cls, *groups: Any, **others: Any) -> Options:
        """Of dataclasses whose fields have the names of these, and of what is given by name.

        Example:
          >>> Options.of(Features(features="runs/judge"), Measure(blur=2.0), num=100)
        """
        values = {
            leaf.name: getattr(group, leaf.name) for group in groups for leaf in fields(group)
        }
        return cls(**values, **others)

    @property
    def flags(self) -> tuple[str, ...]:
        """Those that are set, by the names of their flags."""
        # `swept` is no flag, and `changes` are flags of their own, by the fields of the recipe.
        names = [leaf.name for leaf in fields(self) if leaf.name not in ("changes", "swept")]
        return (*(name for name in names if getattr(self, name) not in (None, ())), *self.changes)


RUN = ("metric", "num", "batch")
"""The options of every measurement of a run, by the names of their flags."""
RECIPE = tuple(leaf.name for leaf in fields(Recipe))
GUIDED = ("seed", "classifier", "weak", "weak_step", *RECIPE)
CHOSEN = ("rerank", "candidates")
CASCADE = ("upsampler", "prior", "prior_guidance", "prior_steps", "prior_best")
SAMPLES = (*GUIDED, *CHOSEN)
CAPTIONS = (*GUIDED, *CASCADE, "features", "candidates")
COMPARED = ("features", "resize", "reference", "blur")
OF_SAMPLES = (*GUIDED, *CHOSEN, *CASCADE)
"""Options that mean nothing where no samples are made."""


def of_page(config: Mapping[str, Any], num: int) -> Options:
    """What a run's page says of its own measurement.

    Args:
      config: the page; its way of sampling and the guidance of its section `evaluate` are the run's
        own anyway.
      num: how many samples, or held-out images.
    """
    section = config["evaluate"]
    # How to sample is not copied: `samples.pipeline_of` reads it from the page, as for any command.
    names = ("features", "resize", "reference")
    return Options(num=num, **{name: section[name] for name in names if section.get(name)})
