"""How a process starts: its log, the other processes, and what was compiled before."""
from __future__ import annotations

import faulthandler
import os

import jax
from absl import flags, logging

from diffusion_jax.build import ConfigError


def log() -> None:
    """Warnings go to stderr, and a traceback where the interpreter itself dies."""
    flags.FLAGS.mark_as_parsed()            # absl's own, which its log reads; main.py makes others
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # orbax narrates every save at INFO
    faulthandler.enable()


def join() -> None:
    """Joins the other processes of a cluster; they find each other on TPU pods and in Slurm.

    Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.

    Raises:
      ConfigError: nothing, or nothing sensible, says so.
    """
    processes, number = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        # JAX reads the address from the environment itself.
        jax.distributed.initialize(
            num_processes=int(processes) if processes else None,
            process_id=int(number) if number else None,
        )
    except ValueError as error:
        variables = "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"
        raise ConfigError(f"--distributed: {error} Set {variables}") from None


def keep_compiled(folder: str | None, workdir: str) -> None:
    """Keeps what XLA compiles for the next start.

    It is found again by the program's text, its options and the compiler's version.

    Args:
      folder: where; '' for nowhere, None for '.compiled' beside the run's folder.
        JAX_COMPILATION_CACHE_DIR goes before it.
      workdir: the run's folder.
    """
    if folder is None:
        around = os.path.dirname(os.path.abspath(os.path.expanduser(workdir)))
        folder = os.path.join(around, ".compiled")
    if folder and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
