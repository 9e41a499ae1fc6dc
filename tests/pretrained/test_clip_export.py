"""CLIP for OpenCLIP and for transformers: back again, and equal where transformers is installed."""
import json

import jax.numpy as jnp
import numpy as np
import pytest
from exports import channels_first, drawn, golden, refused, same, there_and_back

from diffusion_jax.build import build
from diffusion_jax.pretrained import clip, clip_export, export, package
from diffusion_jax.train.state import task_of

TOKENIZER = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", merges="", context=16)


def page(**changes):
    """A small CLIP's."""
    image = dict(name="diffusion_jax.models.clip:ViT", features=24, size=16, patch=4, width=32, layers=2, heads=4, act="gelu")
    text = dict(name="diffusion_jax.models.clip:TextTower", features=24, vocab=514, context=16, width=48, layers=2, heads=6,
                hidden=64) | changes.get("text", {})
    return dict(
        model=dict(name="diffusion_jax.models.clip:CLIP", image=image, text=text),
        task=dict(name="diffusion_jax.tasks.clip:Contrastive", shape=(16, 16, 3)),
        data=dict(decode=dict(name="diffusion_jax.data.image:Decode", size=16, tokenizer=TOKENIZER)),
    )


@pytest.fixture(scope="module")
def params():
    return drawn(task_of(page()), tokens=np.zeros((1, 16), np.int32))


@pytest.mark.parametrize("case", ["clip_vit", pytest.param("clip_modified_resnet", marks=pytest.mark.slow)])
def test_there_and_back(tmp_path, case):
    ours, params, weights = golden(tmp_path, "clip", f"clip/{case}", "kwargs")
    written, _ = there_and_back(tmp_path / "out", ours, params)
    used = {key for key in weights if "num_batches" not in key}              # a counter, which PyTorch adds
    assert written.files["model.safetensors"].keys() == used
    for key in used:
        np.testing.assert_array_equal(written.files["model.safetensors"][key], weights[key], err_msg=key)


def test_a_folder_of_transformers_comes_back(params, tmp_path):
    written = export.package(page(), params, "diffusers")
    package.write(tmp_path / "out", written.files)
    back, again = clip.load(tmp_path / "out" / "model.safetensors")
    same(params, again)
    # What transformers calls 2 is the largest token, and stays so.
    assert build(back["model"]["text"]) == build(page()["model"]["text"]) and written.library == "transformers"
    assert json.loads((tmp_path / "out" / "vocab.json").read_text())["!"] == 0
    assert (tmp_path / "out" / "merges.txt").read_text() == "#version: 0.2\n"


def test_without_its_tokenizer_none_is_written(params):
    ours = page()
    for spec, says in ((dict(name="diffusion_jax.data.words:Words", words=("a",), length=16), "without CLIP's"),
                       (TOKENIZER | {"merges": "/nowhere.gz"}, "No tokenizer is written: ")):
        ours["data"]["decode"]["tokenizer"] = spec
        files, notes = clip_export.tokenizer(ours)
        assert files == {} and says in notes[0]
    written = export.package(ours, params, "diffusers")
    assert "vocab.json" not in written.files and "Processor" not in written.code


@pytest.mark.parametrize("changes, to, says", [
    ({"text": {"act": "quick_gelu", "hidden": None}}, "original", "OpenCLIP has no act 'gelu', only 'quick_gelu'"),
    ({"text": {"act": "gelu", "hidden": 100}}, "original", "4 hidden channels for each of its 48, hidden is 100"),
    ({"text": {"end": "last"}}, "diffusers", "reads a text at its largest token"),
    ({"text": {"is_causal": False}}, "diffusers", "has no is_causal False"),
])
def test_what_they_lack_is_named(params, changes, to, says):
    refused(page(**changes), params, to, says)


def test_grey_pictures_are_refused(params):
    ours = page()
    ours["task"]["shape"] = (16, 16, 1)
    refused(ours, params, "diffusers", "sees 3 channels, task.shape has 1")


@pytest.mark.slow
def test_transformers_sees_the_same(params, tmp_path):
    torch, _ = (pytest.importorskip(name) for name in ("torch", "transformers"))
    ours = page()
    written = export.package(ours, params, "diffusers")
    package.write(tmp_path / "out", written.files)
    names: dict = {}
    exec(written.code.replace("FOLDER", str(tmp_path / "out")), names)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    texts = ["a cat", "two dogs"]
    tokens = np.stack([build(TOKENIZER)(text) for text in texts])
    model = task_of(ours).model
    found = model.apply({"params": params["model"]}, images, jnp.asarray(tokens))
    pixels = (images * 0.5 + 0.5 - np.float32(model.mean)) / np.float32(model.std)
    with torch.no_grad():
        want = names["model"](input_ids=torch.tensor(tokens.astype(np.int64)), pixel_values=channels_first(pixels))
    for theirs, mine in zip((want.image_embeds, want.text_embeds), found, strict=False):
        mine = np.asarray(mine)
        np.testing.assert_allclose(theirs.numpy(), mine / np.linalg.norm(mine, axis=-1, keepdims=True), atol=1e-5, rtol=0)
    inputs = names["processor"](text=texts, padding="max_length", max_length=16, return_tensors="pt")
    np.testing.assert_array_equal(inputs.input_ids.numpy(), tokens)
