"""Every test runs on eight CPU devices, with full matmul precision, and refuses silent broadcasting of ranks."""
import gc
import inspect
import os
import signal
from pathlib import Path

from compiling import FLAGS, scope, share_contexts, with_flags

os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""), FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A device that waits for the others in a collective holds one of XLA's threads. With two programs on their way eight threads,
# as many as there are devices, can all wait for a device that gets none.
os.environ.setdefault("PJRT_NPROC", "32")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
share_contexts()
# In the background of a shell Ctrl-C is ignored, and whatever is started there inherits that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)
gc.set_threshold(1_000_000, 20, 50)                                        # tracing makes millions of objects and few cycles

PART = ("nn", "diffusion", "train")
MODES = [file.stem for file in (Path(__file__).parents[1] / "diffusion_jax" / "modes").glob("[a-z]*.py")]


def pytest_addoption(parser):
    parser.addoption("--part", action="store_true", help=(
        f"all of tests/{', tests/'.join(PART)}, a golden of each system, a test of each mode"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Scopes to workers. xdist's own `--dist loadgroup` has no effect since pytest 9.2: every test becomes a group."""
    from xdist.scheduler import LoadScopeScheduling

    class Scopes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    return Scopes(config, log)


def pytest_collection_modifyitems(config, items):
    """What `--part` runs of all tests."""
    if not config.getoption("part"):
        return
    chosen, covered = [], set()
    for item in items:
        if item.get_closest_marker("slow"):
            continue
        reasons = {item.nodeid} if item.path.parent.name in PART else covers(item)
        if reasons - covered:
            chosen.append(item)
            covered |= reasons
    items[:] = chosen


def covers(item) -> set[str]:
    """The system whose numbers a golden computes, or the modes that a test runs to a good end."""
    if item.path.stem == "test_goldens":
        return set() if item.callspec.params["kind"] == "keys" else {scope(item.nodeid)}
    if item.path.parent.name != "modes":
        return set()
    text = inspect.getsource(item.function)
    if "raises(" in text or "refused(" in text:
        return set()
    runs = ".code == 0" in text or "ask(" in text
    return {mode for mode in MODES if mode in item.path.stem or (runs and f'"{mode}"' in text)}


def pytest_collection_finish():
    """What was imported and collected stays: the garbage collector need not look at it again."""
    gc.freeze()


def pytest_sessionfinish():
    """pytest collects garbage five times at its end, of all the programs of all tests."""
    gc.freeze()
