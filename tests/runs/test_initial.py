"""What a new run starts from in place of drawn weights."""
import jax.numpy as jnp
import numpy as np
import pytest
from pages import page as page_of

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.folder import save_start
from diffusion_jax.runs.initial import initial_of
from diffusion_jax.train.state import plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save_start(folder, plain(page_of("digits")), {"model": {"a": jnp.ones(2)}, "cond": {"table": jnp.zeros(3)}})
    return folder


def test_all_of_a_folder_or_parts_of_it(folder):
    assert initial_of({}) == initial_of({"init": None}) == {}
    np.testing.assert_array_equal(initial_of({"init": str(folder)})[""]["model"]["a"], [1, 1])
    parts = initial_of({"init": {"model": f"{folder}:model", "cond/tower": f"{folder}:cond/table"}})
    assert set(parts) == {"model", "cond/tower"} and parts["cond/tower"].shape == (3,)


def test_of_a_lora_it_names_what_stays(folder):
    assert initial_of({"init": str(folder), "lora": {}}) == {}


def test_what_is_not_there_is_refused(folder):
    with pytest.raises(ConfigError, match="has no parameters 'model/b'"):
        initial_of({"init": {"model": f"{folder}:model/b"}})
    with pytest.raises(ConfigError, match="there is no folder"):
        initial_of({"init": "nowhere"})
