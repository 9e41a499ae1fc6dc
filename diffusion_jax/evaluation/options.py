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
from diffusion_jax.pipelines.request import Batch, Helpers

BATCH = 250
"""Images at a time."""
SEED = 1
"""Of samples, and of the draws of bits/dim."""
MOST_BLUR = 100
"""Pixels: a wider filter leaves nothing of an image."""


@dataclass(frozen=True)
class Features:
    """In whose features images are compared."""

    features: str | None = option(
        None,
        "In whose features to measure: the folder of a classifier or of a CLIP, inception=FILE, "
        "dinov2=FILE; for clip the folder of a CLIP",
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
        None,
        "Deviation in pixels of a Gaussian filter over both before they are measured",
        least=0,
        most=MOST_BLUR,
    )
    template: str | None = option(
        None, "Text of a class for zero_shot; 'a photo of a {}', or the data's own, by default"
    )
    rounding: str | None = option(
        None,
        "How samples become bytes: nearest, the default, or down, as ADM's sampler does it, for "
        "figures to compare with its own",
        choices=("nearest", "down"),
    )

    def __post_init__(self):
        check_options(self)


@dataclass(frozen=True)
class Options:
    """All of it.

    Attributes:
      measure: what is measured, and against what; without a metric the first that the model has, or
        'features' where those are named.
      features: in whose features; for metric clip the folder of a CLIP.
      batch: how many samples, or held-out images; None for the page's number, or all.
      helpers: other runs that help to sample. The judge keeps the best of each class; metric clip
        takes candidates alone.
      changes: fields of `Recipe` in place of the page's; 'steps' also those of bits/dim.
      swept: the option that a sweep gives one value after the other; '' for none.

    Example:
      Options(Measure(blur=2.0), Features("runs/judge"), Batch(num=100), changes={"steps": 20})
    """

    measure: Measure = Measure()
    features: Features = Features()
    batch: Batch = Batch()
    helpers: Helpers = Helpers()
    changes: Mapping[str, Any] = field(default_factory=dict)
    swept: str = ""

    @property
    def size(self) -> int:
        """Images at a time."""
        return self.batch.batch or BATCH

    @property
    def seed(self) -> int:
        """Of samples, and of the draws of bits/dim."""
        return SEED if self.batch.seed is None else self.batch.seed

    @property
    def flags(self) -> dict[str, Any]:
        """Those that are set, by the names of their flags, with their values."""
        groups = (self.measure, self.features, self.batch, self.helpers)
        values = {
            leaf.name: getattr(group, leaf.name) for group in groups for leaf in fields(group)
        }
        # A change is a flag by the field of the recipe.
        return {name: value for name, value in values.items() if value not in (None, ())} | dict(
            self.changes
        )


RUN = ("metric", "num", "batch")
"""The options of every measurement of a run, by the names of their flags."""
RECIPE = tuple(leaf.name for leaf in fields(Recipe))
GUIDED = ("seed", "classifier", "weak", "weak_step", *RECIPE)
CHOSEN = ("rerank", "candidates")
CASCADE = ("upsampler", "prior", "prior_guidance", "prior_steps", "prior_best")
SAMPLES = (*GUIDED, *CHOSEN, "rounding")
CAPTIONS = (*GUIDED, *CHOSEN, *CASCADE, "features", "rounding")
COMPARED = ("features", "resize", "reference", "blur")
OF_SAMPLES = (*GUIDED, *CHOSEN, *CASCADE, "rounding")
"""Options that mean nothing where no samples are made."""


def of_page(config: Mapping[str, Any], num: int) -> Options:
    """What a run's page says of its own measurement.

    Args:
      config: the page; its way of sampling and the guidance of its section `evaluate` are the run's
        own anyway.
      num: how many samples, or held-out images.
    """
    # How to sample is not copied: `samples.pipeline_of` reads it from the page, as for any command.
    section = config["evaluate"]
    measure = Measure(reference=section.get("reference") or None)
    features = Features(section.get("features") or None, section.get("resize") or None)
    return Options(measure, features, Batch(num=num))
