"""GLIDE's published files: which is which, and the recipe that comes with it. The weights are goldens."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.modes import import_weights
from diffusion_jax.pretrained import glide
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.train.state import task_of

KEYS = json.loads((Path(__file__).parents[1] / "goldens/glide/keys_glide_filtered.json").read_text())["keys"]


def structs(file):
    return {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in KEYS[file].items()}


@pytest.mark.parametrize("file, size, schedule, steps", [
    ("base.pt", 64, "squaredcos", 100), ("upsample_inpaint.pt", 256, "linear", "fast27"),
])
def test_the_published_recipe(file, size, schedule, steps):
    model, cond = glide.published(structs(file))
    sections = glide.page(model, cond, size, schedule, "upsample" in file)
    task = task_of(sections)
    assert task.shape == (size, size, 3) and task.process.schedule == schedule and sections["sample"]["steps"] == steps
    assert dict(task.drop) == {"tokens": 0.2}


def test_other_networks_are_refused():
    for official in ({}, {"input_blocks.0.0.weight": np.zeros((64, 3, 3, 3)), "final_ln.weight": np.zeros(512)}):
        with pytest.raises(ConfigError, match="no state dict that was published with GLIDE"):
            glide.recognised(official)


def test_either_tower_stands_for_both(tmp_path, monkeypatch):
    shapes = {"image": structs("clip_image_enc.pt"), "text": structs("clip_text_enc.pt")}
    model = build(glide.noised_published(shapes["image"], shapes["text"]))
    assert (model.image.steps, model.image.size, model.text.vocab) == (1000, 64, 65536)
    read = []
    monkeypatch.setattr(glide, "read", lambda path: read.append(path.name) or shapes["image" if "image" in path.name else "text"])
    monkeypatch.setattr(glide, "noised_convert", lambda image, text, model: {})
    page, _ = glide.load(tmp_path / "clip_text_enc.pt")
    assert read == ["clip_image_enc.pt", "clip_text_enc.pt"]
    assert isinstance(task_of(page), Contrastive)


def test_the_systems_can_be_imported():
    assert {"clip", "glide"} <= set(import_weights.SYSTEMS)
