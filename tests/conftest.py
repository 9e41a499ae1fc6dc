"""Every test runs on eight CPU devices, with full matmul precision, and refuses silent broadcasting of ranks."""
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"      # these three halve compilation
    " --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"      # a busy machine makes devices wait for each other
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.hookimpl(tryfirst=True)          # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """The tests of a file share what they compiled, and those of the tiny run that run: they go to one core each.

    A file may name smaller groups.
    """
    for item in items:
        if "tiny_run" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("tiny_run"))
        elif item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
