"""The model card: what was measured and what the page says, and nothing else."""
import json

import numpy as np
import pytest
from pages import page

from diffusion_jax.evaluation import card
from diffusion_jax.pretrained.package import Package
from diffusion_jax.runs.folder import Model, Run
from diffusion_jax.train.state import task_of

PACKAGE = Package({}, "diffusers' DiTPipeline", 'pipe = load("FOLDER", GUIDANCE, STEPS)', "diffusers", ("Mind the time.",))
DATA = {"records": 1437, "classes": [f"digit|{i}" for i in range(30)], "list": "0"}


@pytest.fixture
def run(tmp_path):
    """A run of the digits, as far as a card looks at it."""
    config = page("digits").to_dict()
    config["sample"]["guidance"] = 2
    (tmp_path / "digits").mkdir()
    return Run(str(tmp_path / "digits"), 40, "ema", config, Model({"w": np.zeros((30, 50))}, None, task_of(config)))


def test_a_card_says_what_it_is(run):
    text = card.files(run, PACKAGE, DATA)["README.md"]
    head, body = text.split("---\n", 2)[1:]
    assert "license: other\n" in head and "library_name: diffusers\n" in head and "pipeline_tag: unconditional" in head
    for says in ("# digits\n", "A diffusion model, trained with", "diffusers' DiTPipeline", "**Note.** Mind the time.",
                 "| parameters | 1,500 |", "| predicts | V() |", "| process | DDPM(schedule=squaredcos) |",
                 "| shape | 8 x 8 x 1 |",
                 "| records | 1,437 |", "| classes | 30 |", "digit\\|19 and 10 more |", "| step | 40 |", "| batch | 16 |",
                 "| examples | 640 |", "| weights | ema |", "Nothing was measured", "Fill in: the license"):
        assert says in body, says
    assert 'pipe = load(".", 2.0, 5)' in body and "samples.png" not in text


def test_figures_and_the_newest_samples_are_of_the_run(run):
    folder = run.folder
    run.config["data"]["train"] = dict(name="diffusion_jax.data.folder:Folder", path="/home/me/photos/", split="train")
    with open(f"{folder}/report.json", "w") as file:
        json.dump({"FID[judge]": 3.14159, "samples": 200, "warnings": ["few"], "reference": "x"}, file)
    (card.Path(folder) / "samples").mkdir()
    for step in (20, 40, 9):
        (card.Path(folder) / "samples" / f"{step:08d}.png").write_bytes(b"%d" % step)
    files = card.files(run, PACKAGE, DATA)
    assert files["samples.png"] == b"40" and "![samples](samples.png)" in files["README.md"]
    assert "| FID[judge] | 3.142 |\n| samples | 200 |" in files["README.md"] and "few" not in files["README.md"]
    assert "Folder(path=photos, split=train)" in files["README.md"] and "/home" not in files["README.md"]


def test_imported_weights_have_no_data(run):
    loras = ({"file": "/home/me/style.safetensors", "strength": 0.7, "content": ""},)
    sections = {key: run.config[key] for key in ("model", "task")}
    imported = run._replace(config=sections, which="params", step=0, loras=loras)
    text = card.files(imported, PACKAGE._replace(library="", notes=()), {})["README.md"]
    assert "These weights were imported" in text and "library_name" not in text and "| batch |" not in text
    assert 'load(".", 1.0, 50)' in text and "| LoRA | style.safetensors at 0.7 |" in text
