"""Mode `lineage`: every system from DALL·E to Stable Diffusion 3, trained alike and compared.

    python -m diffusion_jax.main --mode lineage --config lineage:digits --workdir runs/lineage

The page of stages says what is trained and how it is sampled (configs/lineage.py). What is missing
is trained; the same command goes on where it was stopped. A stage that fails is named, and the
others go on. lineage.html in the workdir shows what came out.

    --config lineage:tiny             all of it in minutes, of networks of no use
    --config.seeds=3                  three runs of each system: their spread stands in the table
    --config.budget=pictures          equal pictures in place of equal operations
    --compare                         what is trained is compared, and nothing is trained
    --distributed                     on several hosts that see the workdir: all train each stage,
                                      the first alone encodes, compares and writes
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pprint import pformat

import jax
from tqdm import tqdm

from diffusion_jax.build import ConfigError, check_options, option
from diffusion_jax.files import whole
from diffusion_jax.lineage import compare, page, stages, train
from diffusion_jax.lineage.hosts import Hosts, hosts_of
from diffusion_jax.lineage.process import without_accelerators
from diffusion_jax.lineage.stages import Lineage, Trained
from diffusion_jax.modes.options import PAGE_HELP, Page
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.state import plain

STAGES, LOG = "stages.py", "comparison.log"
"""In the workdir, of several hosts: the page of stages, and what comparing them printed."""


@dataclass(frozen=True)
class Options:
    """Which path."""

    config: Page | None = option(None, PAGE_HELP)
    compare: bool = option(False, "Train nothing: compare what is trained")

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
      ConfigError: a page of stages that is not one, a lineage that is to be compared and is not
        trained, or is to be compared by several hosts.
    """
    # Before anything that could fail: the hosts tell each other of it.
    hosts = hosts_of() if jax.distributed.is_initialized() else None
    lineage = stages.read(options.config)
    if hosts is not None:
        if options.compare:
            raise ConfigError("one host compares: leave --distributed out")
        assert options.config is not None
        on_hosts(hosts, lineage, options.config, workdir)
    elif options.compare:
        compared(lineage, train.read(lineage, workdir), workdir)
    else:
        with without_accelerators(), one_writer(workdir, "trained"):
            trained = train.train(lineage, workdir, tqdm.write)
        compared(lineage, trained, workdir)


def compared(lineage: Lineage, trained: tuple[Trained, ...], workdir: str) -> None:
    """Compares what is trained, and writes lineage.html."""
    with one_writer(workdir, "compared"):
        comparison = compare.compare(lineage, trained, workdir, tqdm.write)
        print(f"written to {page.write(comparison, workdir)}")


def on_hosts(hosts: Hosts, lineage: Lineage, config: Page, workdir: str) -> None:
    """`run` of a host among several.

    Raises:
      ConfigError: what comparing refuses.
    """
    if hosts.index:
        hosts.follow()
        return
    stages_page, log = Path(workdir, STAGES), Path(workdir, LOG)
    with one_writer(workdir, "trained"):
        train.train(lineage, workdir, tqdm.write, hosts.command)
        with whole(stages_page) as file:
            file.write_text(written(config), encoding="utf-8")
    print(f"comparing on this host: {log}")
    # In a process that knows of no others: a few hundred pictures are too few to be divided.
    flags = ["--mode", "lineage", "--compare", "--config", str(stages_page), "--workdir", workdir]
    error = hosts.command(flags, log, lambda elapsed: None)
    if error:
        raise ConfigError(error)
    print(f"written to {Path(workdir, page.NAME)}.html")
    hosts.end()


def written(config: Page) -> str:
    """The text of a page that reads as this one does."""
    values = pformat(plain(config), width=98, sort_dicts=False)
    return (
        '"""Stages of a lineage, with every value."""\n'
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config() -> ConfigDict:\n"
        '    """The page."""\n'
        f"    return ConfigDict({values})\n"
    )
