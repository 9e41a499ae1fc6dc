"""What is given on of a run: what sampling needs, and no place on anybody's disk."""
import jax.numpy as jnp
import numpy as np
import pytest
from pages import page, without_data

from diffusion_jax.build import ConfigError
from diffusion_jax.runs.release import released, save_release, stored_as


def test_of_a_page_stays_what_sampling_needs():
    config = page("digits").to_dict()
    assert released(config) == {name: config[name] for name in ("task", "model", "sample")}
    words = {"name": "diffusion_jax.data.words:Words"}
    draw = {"name": "diffusion_jax.data.latents:Draw", "path": "/home/ann/latents", "tokenizer": words}
    config["data"] = {"train": {"path": "/home/ann"}, "decode": draw}
    assert released(config)["data"] == {"decode": draw | {"path": ""}}
    assert released({"task": {}}) == {"task": {}}


def test_numbers_that_count_keep_their_type():
    params = {"w": jnp.array([1 / 3, 1e-9]), "steps": jnp.array([70_000])}
    stored = stored_as(params, "float16")
    assert stored["w"].dtype == np.float16 and stored["steps"].dtype == np.int32 and stored["steps"][0] == 70_000
    np.testing.assert_allclose(stored["w"], [1 / 3, 0], rtol=5e-4)
    with pytest.raises(ConfigError, match="larger than float16 goes: choose --dtype bfloat16"):
        stored_as({"w": jnp.array([1e5])}, "float16")


def test_a_lora_is_given_on_with_its_run(tmp_path):
    run = without_data("digits", tmp_path)
    run = run._replace(config=run.config | {"lora": {"rank": 4}})
    with pytest.raises(ConfigError, match="trains a LoRA, which is small: write it --to diffusers"):
        save_release(tmp_path / "out", run, "float16")
    assert not (tmp_path / "out").exists()
