"""What makes compilation cheap: flags for XLA, programs kept in a folder, tests that share programs on one core."""
from __future__ import annotations

import contextlib
import importlib.util
import itertools
import mmap
from collections.abc import Iterable
from pathlib import Path

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",                                  # these four halve compilation
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",                            # two workers keep two cores busy already
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",             # a busy machine makes devices wait for each other
)


def with_flags(present: str, flags: Iterable[str]) -> str:
    """The value of XLA_FLAGS with those flags added that are not there yet, as they are in a worker, and that XLA has."""
    return " ".join([present, *known_flags(flag for flag in flags if flag not in present.split())]).strip()


def known_flags(flags: Iterable[str]) -> list[str]:
    """Those flags that the installed XLA has: it aborts the process on any other, and its flags come and go.

    XLA is not asked, for it cannot be asked without that risk: the name of a flag stands in its binary.
    """
    flags = list(flags)
    missing = flags
    jaxlib = Path(importlib.util.find_spec("jaxlib").origin).parent
    for library in sorted(jaxlib.glob("*.so*"), key=lambda file: -file.stat().st_size):
        if not missing or not library.stat().st_size:
            break
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
            missing = [flag for flag in missing if binary.find(_name(flag)) < 0]
    return [flag for flag in flags if flag not in missing]


def _name(flag: str) -> bytes:
    """'--xla_x=1' as a C string holds it: a longer flag that ends or begins in the same way is another one."""
    return b"\0" + flag.removeprefix("--").partition("=")[0].encode() + b"\0"


def share_contexts(programs: int = 200) -> None:
    """So many programs in turn are written down in one MLIR context: making one takes a quarter of the time of a small program.

    A context keeps the constants of its programs, so it is not kept for ever. JAX has no option for this: where
    the function of its own is missing, each program gets its context as usual.
    """
    from jax._src.interpreters import mlir

    make = getattr(mlir, "make_ir_context", None)
    if make is None:
        return
    contexts, count = [], itertools.count()

    def shared():
        if next(count) % programs == 0:
            contexts[:] = [make()]
        return contexts[0]

    mlir.make_ir_context = shared


def scope(nodeid: str) -> str:
    """What runs on one core, because it shares compiled programs: the tests of a file, of the goldens those of a system."""
    file, _, test = nodeid.partition("::")
    return test.partition("/")[0] if file.endswith("test_goldens.py") else file


@contextlib.contextmanager
def compiled_once(folder):
    """Every program is compiled once and kept in `folder`."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    options = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0,
               "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
