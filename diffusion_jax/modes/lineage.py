"""Mode `lineage`: every system from DALL·E to Stable Diffusion 3, trained alike and compared.

    python -m diffusion_jax.main --mode lineage --config lineage:digits --workdir runs/lineage

The page of stages says what is trained and how it is sampled (configs/lineage.py). What is missing
is trained; the same command goes on where it was stopped. A stage that fails is named, and the
others go on. lineage.html in the workdir shows what came out.

    --config lineage:tiny             all of it in minutes, of networks of no use
    --config.seeds=3                  three runs of each system: their spread stands in the table
    --config.budget=pictures          equal pictures in place of equal operations
"""
from __future__ import annotations

from dataclasses import dataclass

import jax
from tqdm import tqdm

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.lineage import compare, page, stages, train
from diffusion_jax.lineage.process import without_accelerators
from diffusion_jax.modes.options import PAGE_HELP, Page
from diffusion_jax.train.lock import one_writer


@dataclass(frozen=True)
class Options:
    """Which path."""

    config: Page | None = option(None, PAGE_HELP)

    def __post_init__(self):
        check_options(self)
        if self.config is None:
            raise ConfigError(
                "mode lineage needs --config lineage:digits, or another page of stages"
            )


def run(options: Options, workdir: str) -> None:
    """Trains what is missing, compares, and writes lineage.html.

    Args:
      options: the page of stages.
      workdir: holds the runs, the figures and the page.

    Raises:
      ConfigError: a page of stages that is not one, several processes.
    """
    lineage = stages.read(options.config)
    if jax.distributed.is_initialized():
        raise ConfigError("mode lineage runs on one host: leave --distributed out")
    with without_accelerators(), one_writer(workdir, "trained"):
        trained = train.train(lineage, workdir, tqdm.write)
    with one_writer(workdir, "compared"):
        comparison = compare.compare(lineage, trained, workdir, tqdm.write)
        print(f"written to {page.write(comparison, workdir)}")
