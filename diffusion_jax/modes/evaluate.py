"""Mode `evaluate`: how good samples are; prints a table, writes report.json and report.html.

Every report is kept beside the newest, in the folder `reports`, under a name that says of what it is.

    --metric pixels      samples against the run's data: accuracy, novelty and variance by class
    --metric features    in the features of a network: FID, sFID, IS, KID, precision, recall ...
                         --features runs/judge, inception=FILE or dinov2=FILE
    --metric bpd         bits/dim of held-out images
    --metric clip        whether samples show what their captions say, in the eyes of a CLIP:
                         --features runs/clip
    --metric accuracy                        of a noisy classifier
    --metric retrieval, zero_shot or tsne    of a CLIP

Without --metric the first of these that the model has, or features where --features is given.
--images measures a folder or an .npz in place of a run's samples.
"""
from __future__ import annotations

from dataclasses import dataclass

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import compare, metrics, report
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.modes.options import Measuring, Weights
from diffusion_jax.pipelines.lora import opened


@dataclass(frozen=True)
class Options(Measuring):
    """What is measured, of samples made how."""

    def __post_init__(self):
        if self.measure.images is not None and self.weights != Weights():
            raise ConfigError(
                "--which and --step are of a run's weights, and so is --lora: --images are "
                "measured as they are"
            )


def run(options: Options, workdir: str) -> None:
    """Measures a checkpoint, which alone says what and how, or images.

    Args:
      options: what to measure.
      workdir: the run's folder; with `images` the folder that the report is written to.

    Raises:
      ConfigError: what `measured` refuses.
    """
    report.write(workdir, measured(options, workdir, written=True))


def measured(options: Options, workdir: str, written: bool = False) -> Measured:
    """The figures of `run`, neither printed nor written.

    Args:
      options, workdir: as for `run`.
      written: whether they will be, which is then tried first.

    Raises:
      ConfigError: a folder that does not open, a metric that the model does not have, or an option
        that the metric does not look at.
    """
    measurement = options.for_evaluation()
    # Images need no run: the folder only keeps their features and the report.
    run = None
    weights = options.weights
    if measurement.measure.images is None:
        run = opened(workdir, None, weights.which, weights.step, weights.loras)
    else:
        compare.check_images(measurement)
    # Measuring takes hours: before it, not after.
    if written:
        report.check(workdir)
    if run is None:
        return compare.of_images(workdir, measurement)
    return metrics.measured(run, measurement)
