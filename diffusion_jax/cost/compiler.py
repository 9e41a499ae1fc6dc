"""XLA's TPU compiler, as far as a plan needs it: to the instructions and the memory of a program, not to its machine code.

The compiler first rewrites a program, splits it over the chips, schedules it and places its arrays; then it generates machine
code, which for a convolutional network takes ten to a hundred times as long. It has no option to stop between the two, but writes
down what it has (`xla_dump_to`). So it works in a process of its own, which is ended when the last of these files is begun.
"""
from __future__ import annotations

import multiprocessing
import re
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.build import ConfigError

INSTRUCTIONS, MEMORY = "after_optimizations.txt", "after_optimizations-memory-usage-report.txt"
AFTER, CODE = "after_optimizations_after_buffer_assignment.txt", "after_codegen.txt"
"""The first is written when the two above are complete; the second with machine code, it adds estimated cycles."""
PAUSE = 0.2


class Compiled(NamedTuple):
    """A program as the compiler wrote it down.

    Attributes:
      text: its optimised HLO.
      memory: bytes that it takes of a chip's main memory, arguments and results included. Machine code takes some more for
        itself: 0.7 GiB beside 14.6 for ADM at 256 pixels.
    """

    text: str
    memory: int


class OutOfMemory(Exception):
    """The program does not fit on the chip; the message is the compiler's."""


def compiled(lower: Callable[..., jax.stages.Lowered], *args: Any, machine_code: bool = False) -> Compiled:
    """The program that `lower(*args)`, called in another process, gives the compiler.

    Args:
      lower: a function of a module.
      args: what pickles.
      machine_code: wait for it: the text then says how many cycles XLA expects each instruction to take.

    Raises:
      OutOfMemory: it does not fit.
      ConfigError: the compiler ended without a result.
      Exception: whatever `lower` raises.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_compile, args=(theirs, folder, lower, args), daemon=True)
        process.start()
        theirs.close()
        try:
            while machine_code or not list(Path(folder).glob(f"*.{AFTER}")):
                if ours.poll(PAUSE):
                    if error := _said(ours):
                        raise error
                    break
            return Compiled(_read(folder, CODE if machine_code else INSTRUCTIONS), _total(_read(folder, MEMORY)))
        finally:
            process.kill()
            process.join()


def _compile(connection: Connection, folder: str, lower: Callable[..., jax.stages.Lowered], args: tuple) -> None:
    """In the other process: compiles, and sends what went wrong, or None."""
    jax.config.update("jax_enable_compilation_cache", False)                 # what is found there is not compiled
    try:
        lower(*args).compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        connection.send(None)
    except jax.errors.JaxRuntimeError as error:
        said = str(error)
        lines = [line.strip() for line in said.splitlines()]
        full = next((line for line in lines if "Used" in line or "exceeded" in line), lines[0])
        connection.send(OutOfMemory(full) if "RESOURCE_EXHAUSTED" in said else RuntimeError(said))
    except Exception as error:
        connection.send(error)


def _said(connection: Connection) -> Exception | None:
    try:
        return connection.recv()
    except EOFError:
        return ConfigError("the compiler was killed, for memory perhaps: give the machine more, or plan fewer layers")


def _read(folder: str, kind: str) -> str:
    found = list(Path(folder).glob(f"*.{kind}"))
    if len(found) != 1:
        raise ConfigError(f"XLA wrote {len(found)} files *.{kind}, not one: take the libtpu that this version of jax names")
    return found[0].read_text()


def _total(report: str) -> int:
    """Bytes in the first memory space, the main one."""
    return int(re.search(r"\(color=0\)\s+Total bytes: (\d+)", report)[1])
