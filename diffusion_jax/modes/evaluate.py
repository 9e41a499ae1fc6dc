"""Mode `evaluate`: how good samples are; prints a table, writes report.json and report.html.

What there is to measure, evaluation/metrics.py says; in whose features and against what,
evaluation/features.py.
"""
from __future__ import annotations

from dataclasses import dataclass

from diffusion_jax.build import ConfigError
from diffusion_jax.evaluation import compare, metrics, report
from diffusion_jax.evaluation import options as measurement
from diffusion_jax.evaluation.report import Measured
from diffusion_jax.modes.options import Batch, Helpers, Sampling, Weights, group
from diffusion_jax.runs.folder import open_run


@dataclass(frozen=True)
class Options:
    """What is measured, of samples made how."""

    measure: measurement.Measure = group(measurement.Measure)
    features: measurement.Features = group(measurement.Features)
    weights: Weights = group(Weights)
    batch: Batch = group(Batch)
    helpers: Helpers = group(Helpers)
    sampling: Sampling = group(Sampling)

    def __post_init__(self):
        if self.measure.images is not None and self.weights != Weights():
            raise ConfigError(
                "--which and --step are of a run's weights: --images are measured as they are"
            )


def run(options: Options, workdir: str) -> None:
    """Measures a checkpoint, which alone says what and how, or images.

    Args:
      options: what to measure.
      workdir: the run's folder; with `images` the folder that the report is written to.

    Raises:
      ConfigError: what `measured` refuses.
    """
    report.write(workdir, measured(options, workdir))


def measured(options: Options, workdir: str) -> Measured:
    """The figures of `run`, neither printed nor written.

    Raises:
      ConfigError: a folder that does not open, a metric that the model does not have, or an option
        that the metric does not look at.
    """
    groups = (options.measure, options.features, options.batch, options.helpers, options.sampling)
    whole = measurement.Options.of(*groups)
    if whole.images is not None:
        return compare.of_images(workdir, whole)
    run = open_run(workdir, which=options.weights.which, step=options.weights.step)
    return metrics.measured(run, whole)
