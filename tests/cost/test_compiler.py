"""The process in which plans are compiled, with compilers that only write files: what it takes, and their ways to fail."""
import os
import time
from pathlib import Path

import jax
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.cost.compiler import AFTER, CODE, INSTRUCTIONS, MEMORY, Compiled, OutOfMemory, compiled

REPORT = """Memory Space: default (color=0)
Total bytes: 4096 (4.0KiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list

Memory Space: vmem (color=1)
Total bytes: 512 (512B)
"""


class Compiler:
    """Stands in for a lowered program: compile() writes what it is told and then does as its name says."""

    def __init__(self, then, seconds):
        self.then, self.seconds = then, seconds

    def compile(self, compiler_options):
        folder = Path(compiler_options["xla_dump_to"])
        if self.then == "generate code":
            for kind, text in ((INSTRUCTIONS, "HloModule m"), (MEMORY, REPORT), (AFTER, "")):
                (folder / f"module_0000.jit_step.{kind}").write_text(text)
            time.sleep(self.seconds)
            (folder / f"module_0000.jit_step.{CODE}").write_text("HloModule m, in cycles")
        if self.then == "run out of memory":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: XLA:TPU\n  Used 26.1G of 15.75G hbm. Exceeded by 10.3G.\n")
        if self.then == "be killed":
            os._exit(137)


def lower(then, seconds=600):
    """What plans call in the other process."""
    if then == "be misconfigured":
        raise ConfigError("no compiler for v9")
    return Compiler(then, seconds)


def test_a_program_is_read_while_its_machine_code_is_still_made():
    start = time.monotonic()
    assert compiled(lower, "generate code") == Compiled("HloModule m", 4096)
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_machine_code_is_waited_for_where_it_is_asked_for():
    assert compiled(lower, "generate code", 0.5, machine_code=True) == Compiled("HloModule m, in cycles", 4096)


@pytest.mark.parametrize(
    ("then", "kind", "says"),
    [
        ("run out of memory", OutOfMemory, "^Used 26.1G of 15.75G hbm"),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in (                   # each starts a process
            ("be killed", ConfigError, "the compiler was killed"),
            ("be misconfigured", ConfigError, "^no compiler for v9$"),
            ("write nothing", ConfigError, "wrote 0 files"))),
    ],
)
def test_a_compiler_that_fails_is_told(then, kind, says):
    with pytest.raises(kind, match=says):
        compiled(lower, then)
