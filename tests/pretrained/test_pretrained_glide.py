"""GLIDE's published files: which is which, and the recipe that comes with it. The weights are goldens."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import load as load_case
from pages import ask

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import glide, systems
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
    monkeypatch.setattr(glide, "noised_convert", lambda image, text, model, logit_scale: {})
    page, _ = glide.load(tmp_path / "clip_text_enc.pt")
    assert page["data"]["decode"]["tokenizer"] == dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=77)
    assert read == ["clip_image_enc.pt", "clip_text_enc.pt"]
    assert isinstance(task_of(page), Contrastive)


def test_the_systems_can_be_imported():
    assert {"clip", "glide"} <= set(systems.SYSTEMS)


@pytest.mark.parametrize("official, size", [(None, 64), ({"merges": ""}, 64), ({"image_size": 128}, 128)])
def test_options_beside_a_published_file(official, size, monkeypatch):
    """The merges and the size of images say nothing of the network, which is known."""
    monkeypatch.setattr(glide, "read", lambda path: structs("base.pt"))
    monkeypatch.setattr(glide, "convert", lambda *given: {})
    if official == {"merges": ""}:
        with pytest.raises(ConfigError, match="makes 257 tokens, the network reads 50257"):
            glide.load("base.pt", official)
        return
    page, _ = glide.load("base.pt", official)
    assert page["task"]["shape"] == (size, size, 3)
    decode = build(page["data"]["decode"])
    assert decode.size == size and decode.tokenizer.context == 128
    with pytest.raises(ConfigError, match='import again with --official, a JSON file of {"merges": "vocab.bpe"}'):
        decode.tokenizer("a cat")


@pytest.mark.slow
def test_an_imported_glide_reads_prompts(tmp_path, monkeypatch):
    case = load_case(Path(__file__).parents[1] / "goldens/glide/text2im_unet_base.json")
    rows = np.resize(case.weights["token_embedding.weight"], (257, 32))
    np.savez(tmp_path / "w.npz", **case.weights | {"token_embedding.weight": rows})
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    official = case.config["kwargs"] | {"tokenizer_n_vocab": 257, "image_size": 8, "merges": "vocab.bpe"}
    (tmp_path / "o.json").write_text(json.dumps(official))
    monkeypatch.chdir(tmp_path)
    ask("import_weights", "run", system="glide", source="w.npz", official="o.json")
    monkeypatch.chdir("/")
    made = []
    for prompt in ("a cat", "a dog"):
        ask("sample", tmp_path / "run", prompt=(prompt,), num=1, steps="2", out=str(tmp_path / "x.npz"))
        made.append(np.load(tmp_path / "x.npz")["arr_0"])
    assert made[0].shape == (1, 8, 8, 3) and (made[0] != made[1]).any()
