"""How a process starts: its log, the other processes, and what was compiled before."""
from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import stat
import time
from logging import Formatter
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging

from diffusion_jax.build import ConfigError
from diffusion_jax.train import stop
from diffusion_jax.train.log import CLOCK

LARGEST = 5 * 10**9
"""Bytes of compiled programs that are kept; of more, those that were used longest ago go."""
UNBOUNDED = -1
"""JAX's own bound of its cache: none."""


def log() -> None:
    """Warnings go to stderr, each with its time of day, and a traceback where the interpreter itself dies."""
    flags.FLAGS.mark_as_parsed()            # absl's own, which its log reads; main.py makes others
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(Formatter("%(asctime)s %(levelname)s: %(message)s", CLOCK))
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
    stop.listen()


def keep_compiled(folder: str | None) -> None:
    """Keeps what XLA compiles for the next start.

    It is found again by the program's text, its options and the compiler's version.

    Args:
      folder: where; '' for nowhere, None for `own_cache`. JAX_COMPILATION_CACHE_DIR goes before it.

    Raises:
      ConfigError: a file is there, or one of the folders around it is a file.
    """
    if folder:
        folder = os.path.expanduser(folder)
        _check_folder(Path(folder))
    replace_damaged()
    config = jax.config
    if config.values["jax_compilation_cache_dir"]:
        return
    folder = own_cache() if folder is None else folder
    if not folder:
        return
    config.update("jax_compilation_cache_dir", folder)
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if config.values["jax_compilation_cache_max_size"] == UNBOUNDED:
        config.update("jax_compilation_cache_max_size", LARGEST)
        _date(Path(folder))


def _check_folder(folder: Path) -> None:
    """Raises ConfigError where programs cannot be kept in a folder: JAX alone would keep none, without a word."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if there.is_file():
        raise ConfigError(f"--compiled {folder} cannot be made: {there} is a file, give a folder")


def own_cache() -> str:
    """The user's own folder for compiled programs, made where it is missing; '' where there is none that is safe, which is said.

    A program that is found there runs as it is. So the folder is no one else's to write, and does not lie beside a run, which
    may have come from elsewhere.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    around = Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache"), "diffusion_jax")
    try:
        for folder in (around, around / "compiled"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            there = folder.stat()
            if there.st_uid != os.geteuid():
                raise PermissionError(f"{folder} belongs to another user")
            if there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"others may write to {folder} (chmod 700 it)")
    except OSError as error:
        logging.warning("compiled programs are not kept: %s; --compiled FOLDER keeps them elsewhere", error)
        return ""
    return str(around / "compiled")


def _date(folder: Path) -> None:
    """Gives a date of use to the programs that have none: without it, JAX keeps no further ones.

    Those of a JAX without a bound have none, and those whose writer was killed in between.
    """
    now = time.time_ns().to_bytes(8, "little")
    for program in folder.glob("*-cache"):
        date = program.with_name(program.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(OSError):
            if not date.exists():
                date.write_bytes(now)


def replace_damaged() -> None:
    """From here on a kept program that does not read is removed, so that the one compiled in its place is kept.

    JAX alone compiles it at every start, and leaves the damaged one, for it writes over none. Only its own function knows which
    file it was: where a newer JAX has that elsewhere, nothing is changed.
    """
    from jax._src import compilation_cache

    read = getattr(compilation_cache, "get_executable_and_time", None)
    if read is None or hasattr(read, "__wrapped__"):
        return

    @functools.wraps(read)
    def reading(key: str, *args: Any, **options: Any) -> Any:
        try:
            return read(key, *args, **options)
        except OSError:                                    # a disk that refuses now, a cache that another process has locked
            raise
        except Exception as error:
            file = Path(jax.config.values["jax_compilation_cache_dir"], f"{key}-cache")
            file.unlink(missing_ok=True)
            logging.warning("the compiled program %s is damaged (%s): compiled again", file, type(error).__name__)
            return None, None

    compilation_cache.get_executable_and_time = reading
