"""Compilation for folders of tests that run one small network many times."""
import contextlib
from functools import partial

import jax
from jax.experimental.compilation_cache import compilation_cache

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` for what runs once: compiles in half the time."""


@contextlib.contextmanager
def compiled_once(folder):
    """Every program is compiled once, kept in `folder`, and without much optimisation."""
    options = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0,
               "jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
