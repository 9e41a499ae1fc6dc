"""LoRAs of files in a pipeline: merged right after a run is opened, and part of what its pictures say of themselves."""
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from pages import page as page_of
from PIL import Image
from safetensors.numpy import save_file
from stubs import random_params

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import lora as low_rank
from diffusion_jax.nn.lora import merged
from diffusion_jax.pipelines import lora
from diffusion_jax.pipelines.helpers import helped
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.pipelines.replay import read_request
from diffusion_jax.pipelines.request import Helpers
from diffusion_jax.pretrained.lora import save
from diffusion_jax.runs.folder import LORA_FILE, Model, open_run, save_start
from diffusion_jax.train.state import plain, task_of
from pipelines.test_tokens import RUN

BATCH = {"image": np.zeros((1, 8, 8, 1), np.float32), "label": np.zeros(1, np.int32)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the digits page that nobody trained, and a LoRA of it."""
    folder = tmp_path_factory.mktemp("lora")
    config = plain(page_of("digits"))
    task = task_of(config)
    params = random_params(task, BATCH)
    save_start(folder / "run", config, params)
    shapes = jax.eval_shape(lambda: low_rank.init(jax.random.key(0), params, "mlp", 2))
    rng = np.random.default_rng(1)
    factors = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    file = folder / "x" / LORA_FILE
    save(file, task, factors)
    return SimpleNamespace(run=folder / "run", params=params, factors=factors, file=file)


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def test_a_pipeline_has_the_merged_weights_and_says_so(digits):
    pipe = pipeline(digits.run, lora={digits.file: 0.7})
    same(pipe.run.model.params, merged(digits.params, digits.factors, 0.7))
    (described,) = pipe.run.identity["loras"]
    assert described["strength"] == 0.7 and described["file"] == str(digits.file) and len(described["content"]) == 64
    assert lora.listed(pipe.run.identity) == "lora=0.7" and lora.listed(open_run(digits.run).identity) == ""
    assert pipe.run.digest == open_run(digits.run).digest and "loras" not in open_run(digits.run).identity
    twice = lora.adapted(lora.adapted(open_run(digits.run), {str(digits.file): 0.5}), {digits.file.parent: -1.0})
    same(twice.model.params, merged(digits.params, digits.factors, -0.5))
    assert lora.listed(twice.identity) == "lora=0.5, lora=-1"
    same(helped(digits.run, Helpers(), loras={str(digits.file): 0.7}).run.model.params, pipe.run.model.params)


def test_pictures_are_made_again_with_it_or_say_what_is_missing(digits, tmp_path):
    file = tmp_path / "mine.safetensors"
    shutil.copy(digits.file, file)
    pipe = pipeline(digits.run, lora={str(file): 0.7}).using(steps=2)
    samples = pipe(3, num=2)
    assert (samples.images != pipeline(digits.run).using(steps=2)(3, num=2).images).any()
    samples.save(tmp_path / "x.png")
    replay = read_request(tmp_path / "x.png")
    np.testing.assert_array_equal(replay.make().images, samples.images)
    assert "Lora: mine=0.7" in Image.open(tmp_path / "x.png").text["parameters"]
    run = open_run(digits.run)
    save(file, run.task, jax.tree.map(lambda x: 2 * x, digits.factors))
    with pytest.raises(ConfigError, match=r"mine.safetensors is another LoRA than the one of these pictures"):
        replay.make()
    file.unlink()
    with pytest.raises(ConfigError, match="there is no file .*mine.safetensors"):
        replay.make()


@pytest.mark.parametrize(("task", "kernel"), [
    (RUN.task, "model/blocks_1/qkv/kernel"), (task_of(plain(page_of("digits_vae"))), "model/decoder/final_conv/kernel"),
], ids=["tokens", "autoencoder"])
def test_kernels_of_other_models_are_changed_by_their_paths(tmp_path, task, kernel):
    run = RUN._replace(model=Model(random_params(task, BATCH | {"tokens": np.zeros((1, 3), np.int32)}), None, task))
    before = flatten_dict(run.model.params, sep="/")
    *window, inputs, outputs = before[kernel].shape
    rng = np.random.default_rng(2)
    down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((*window, inputs, 3), (3, outputs)))
    file = tmp_path / "x.safetensors"
    save_file({f"{kernel}.down": down, f"{kernel}.up": up, f"{kernel}.alpha": np.asarray(6, np.float32)}, file)
    adapted = lora.adapted(run, {str(file): 0.5})
    after = flatten_dict(adapted.model.params, sep="/")
    np.testing.assert_allclose(after[kernel] - before[kernel], 0.5 * 6 / 3 * down @ up, rtol=1e-4, atol=1e-5)
    assert [path for path in before if (before[path] != after[path]).any()] == [kernel]
    assert lora.listed(adapted.identity) == "x=0.5"


def test_what_cannot_be_merged_is_refused(digits, folders, tmp_path):
    for folder in (folders.label, folders.classifier):
        with pytest.raises(ConfigError, match="it has no place for model/blocks/mlp/fc1/kernel"):
            lora.opened(str(folder), None, loras={str(digits.file): 1.0})
    with pytest.raises(ConfigError, match="the strength of the LoRA .* is a number, got 'strong'"):
        pipeline(digits.run, lora={str(digits.file): "strong"})
    with pytest.raises(ConfigError, match="there is no file"):
        pipeline(digits.run, lora={str(tmp_path): 1.0})


def test_a_run_that_trains_none_writes_none(digits):
    lora.write(open_run(digits.run))
    assert not (digits.run / LORA_FILE).exists()
