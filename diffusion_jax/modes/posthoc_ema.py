"""Mode `posthoc_ema`: averages of any length, made of a run's snapshots after training.

Each is a folder that samples, with the run's first stage where it has one:

    --std 0.05,0.10,0.15        writes <out>/0.05, <out>/0.10 and <out>/0.15
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, check_options, number, option
from diffusion_jax.runs.folder import FIRST, first_stage, holds_run, save_start
from diffusion_jax.train.checkpoint import config_of, data_of
from diffusion_jax.train.lock import one_writer
from diffusion_jax.train.posthoc import reconstruct


@dataclass(frozen=True)
class Options:
    """Which averages."""

    std: str = option(
        "", "Lengths of averages, as shares of the training up to that step: 0.05,0.10"
    )
    step: int | None = option(
        None, "Step of training at which the averages end; the last snapshot's by default", least=0
    )
    out: str | None = option(None, "Folder of the averages; posthoc in the run's folder by default")

    def __post_init__(self):
        check_options(self)
        if not self.std:
            raise ConfigError(
                "mode posthoc_ema needs --std, lengths of averages: --std=0.05,0.10,0.15"
            )
        lengths = self.lengths
        again = next((length for length in lengths if lengths.count(length) > 1), None)
        if again is not None:
            raise ConfigError(f"--std {self.std} has {again} twice: give each length once")

    @property
    def names(self) -> list[str]:
        """The lengths as they were written, which are the names of their folders."""
        # Not the numbers: the folder of 0.10 is 0.10, where whoever asked for it will look.
        return [name.strip() for name in self.std.split(",")]

    @property
    def lengths(self) -> list[float]:
        """The lengths.

        Raises:
          ConfigError: something else than finite numbers.
        """
        try:
            return [number("a length", name) for name in self.names]
        except ConfigError as error:
            raise ConfigError(f"--std is a list of numbers, got {self.std!r} ({error})") from None


def run(options: Options, workdir: str) -> None:
    """Writes a folder <out>/<std> for each length.

    Args:
      options: which.
      workdir: the run's folder, trained with config.snapshots.

    Raises:
      ConfigError: what `reconstruct` refuses, a folder that is there already, or that cannot be
        written.
    """
    out = Path(workdir, "posthoc") if options.out is None else Path(options.out).expanduser()
    # All before the first: averages are read from every snapshot of the run, which takes a while.
    taken = [name for name in options.names if holds_run(out / name)]
    if taken:
        raise ConfigError(f"{out / taken[0]} holds an average already: choose another --out")
    # Before the sums: an `out` that cannot be written is refused, and a second writer of it.
    with one_writer(out, "written"):
        write(options, workdir, out)


def write(options: Options, workdir: str, out: Path) -> None:
    """Makes the averages and writes them; raises as `run` does."""
    config, end, averages = reconstruct(workdir, options.lengths, options.step)
    first = first_stage(workdir)
    for name, average in zip(options.names, averages, strict=True):
        params = jax.tree.map(jnp.asarray, average)
        if first is not None:
            save_start(out / name / FIRST, config_of(Path(workdir, FIRST)), first)
        save_start(out / name, config, params, end, data_of(workdir))
        print(f"average of std {name} at step {end}: {out / name}")
