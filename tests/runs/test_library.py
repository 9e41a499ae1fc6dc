"""A run that is trained by hand lies in a folder that everything else reads."""
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines.pipeline import pipeline
from diffusion_jax.runs.folder import open_run
from diffusion_jax.runs.library import recording
from diffusion_jax.train import ema, loop, shard
from diffusion_jax.train.lock import one_writer

PAGE = {
    "model": {
        "name": "diffusion_jax.models.dit:DiT",
        "patch": 4,
        "width": 8,
        "depth": 1,
        "heads": 1,
        "channels": 1,
        "learn_sigma": False,
    },
    "task": {
        "name": "diffusion_jax.tasks.diffusion:Diffusion",
        "cond": {"name": "diffusion_jax.models.cond:Label", "num_classes": 2, "width": 8},
        "process": {"name": "diffusion_jax.diffusion.process:Cosine"},
        "scale": {"name": "diffusion_jax.diffusion.scales:V"},
        "shape": [4, 4, 1],
    },
    "sample": {"steps": 2},
}


def batches(start, sharding):
    """Label 0 is black, label 1 white."""
    for step in itertools.count(start):
        labels = np.arange(8) % 2
        images = np.broadcast_to(2.0 * labels[:, None, None, None] - 1, (8, 4, 4, 1))
        batch = {"image": np.float32(images), "label": labels}
        yield step, jax.device_put(batch, sharding)


def train(folder, total, stop_at=None):
    with recording(folder, PAGE, every=2, class_names=("black", "white")) as run:
        steps = loop.steps(
            task=run.task,
            checkpoints=run.checkpoints,
            writer=run.writer,
            optimizer=optax.adam(1e-3),
            emas={"ema": ema.Constant(0.5)},
            batches=batches,
            total=total,
            mesh=shard.make_mesh(devices=jax.devices()[:1]),
            log_every=1,
        )
        for step, _ in steps:
            if step == stop_at:
                break


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of four steps that was left at the third, which was not saved."""
    folder = tmp_path_factory.mktemp("library") / "run"
    train(folder, 4, stop_at=3)
    train(folder, 4)
    return folder


@pytest.mark.slow
def test_what_the_loop_trained_goes_on_opens_and_samples(trained):
    rows = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    run = open_run(trained)
    assert (run.step, run.which, run.class_names) == (4, "ema", ("black", "white"))
    samples = pipeline(trained)("white", num=3)
    assert samples.recipe["steps"] == 2 and samples.images.shape == (3, 4, 4, 1)
    assert list(samples.labels) == [1, 1, 1]


REFUSED = {
    "no task": ({"model": PAGE["model"]}, "no 'task'"),
    "unknown section": ({**PAGE, "modle": {}}, "did you mean 'model'"),
    "unknown option": ({**PAGE, "model": {**PAGE["model"], "widht": 8}}, "did you mean 'width'"),
    "not allowed": ({**PAGE, "model": {"name": "elsewhere.nets:Net"}}, "give --allow elsewhere"),
    "first stage": ({**PAGE, "first_stage": "runs/vae"}, "train it there"),
}


@pytest.mark.parametrize(("page", "says"), REFUSED.values(), ids=REFUSED)
def test_what_open_run_would_refuse_is_refused_before_anything_is_written(tmp_path, page, says):
    with pytest.raises(ConfigError, match=says), recording(tmp_path / "run", page):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_page_and_another_writer_are_refused(trained):
    changed = {**PAGE, "model": {**PAGE["model"], "width": 16}}
    with (
        pytest.raises(ConfigError, match="another config .model.width: "),
        recording(trained, changed),
    ):
        pass
    with one_writer(trained), pytest.raises(ConfigError, match="is being trained"):
        elsewhere(trained)


def elsewhere(folder):
    """Opens a folder in another thread, which holds nothing."""
    def enter():
        with recording(folder, PAGE):
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter).result()
