"""The train step that this folder's tests plan."""
import pytest
from pages import page

from diffusion_jax.planning import layouts
from diffusion_jax.train.state import plain


@pytest.fixture(scope="package")
def work():
    config = page("digits")
    config.sharding = (("(qkv|fc1)/kernel$", ("fsdp", "tensor")), (".*", "fsdp"))
    return layouts.work_of(plain(config))
