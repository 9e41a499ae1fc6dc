"""`import diffusion_jax as dj`: what it holds, and that it takes no time."""
import importlib
import os
import subprocess
import sys

import pytest

import diffusion_jax as dj
from diffusion_jax.build import ConfigError

NAMES = {
    "ConfigError": "diffusion_jax.build",
    "Request": "diffusion_jax.pipelines.request",
    "open_run": "diffusion_jax.runs.folder",
    "pipeline": "diffusion_jax.pipelines.pipeline",
    "read_request": "diffusion_jax.pipelines.replay",
}
SLOW = ("jax", "flax", "numpy", "orbax", "PIL", "absl", "ml_collections")
LIMIT = 0.1
TIMED = """
import sys, time
before = time.perf_counter()
import diffusion_jax
after = time.perf_counter()
print(after - before, *(name for name in sys.argv[1:] if name in sys.modules))
"""


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_what_its_module_holds(name):
    assert getattr(dj, name) is getattr(importlib.import_module(NAMES[name]), name)


def test_they_are_listed():
    assert set(NAMES) <= set(dir(dj)) and "__version__" in dir(dj) and dir(dj) == sorted(dir(dj))
    assert dj.__version__.count(".") == 2


@pytest.mark.parametrize("name", ["Pipeline2", "load", "_private"])
def test_another_name_is_no_attribute(name):
    with pytest.raises(AttributeError, match=f"module 'diffusion_jax' has no attribute '{name}'"):
        getattr(dj, name)


def test_submodules_are_imported_as_ever():
    from diffusion_jax import runs

    assert runs.__name__ == "diffusion_jax.runs"


def test_the_import_takes_no_time_and_nothing_slow():
    """Of three starts the quickest: other work may slow one down."""
    clean = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    seconds = []
    for _ in range(3):
        command = [sys.executable, "-c", TIMED, *SLOW]
        out = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60, check=True).stdout
        taken, *imported = out.split()
        assert not imported
        seconds.append(float(taken))
    assert min(seconds) < LIMIT


def test_its_error_is_the_user_s():
    assert issubclass(dj.ConfigError, ValueError) and dj.ConfigError is ConfigError
    with pytest.raises(dj.ConfigError, match="there is no folder"):
        dj.open_run("/nowhere")
    with pytest.raises(dj.ConfigError, match="there is no folder"):
        dj.pipeline("/nowhere")
