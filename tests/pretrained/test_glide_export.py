"""GLIDE, written: networks with their text, and the noised CLIP in its two files."""
import numpy as np
import pytest
from exports import GOLDENS, golden, refused, there_and_back
from golden_case import load as load_case

from diffusion_jax.build import build
from diffusion_jax.pretrained import glide


@pytest.mark.parametrize("case, kind", [
    ("inpaint_text2im_unet", "InpaintText2ImUNet"),
    pytest.param("text2im_unet_base", "Text2ImUNet", marks=pytest.mark.slow),
    pytest.param("superres_text2im_unet", "SuperResText2ImUNet", marks=pytest.mark.slow),
])
def test_there_and_back(tmp_path, case, kind):
    page, params, weights = golden(tmp_path, "glide", f"glide/{case}", "kwargs")
    written, back = there_and_back(tmp_path / "out", page, params)
    assert written.files["config.json"]["class"] == kind and written.files["model.safetensors"].keys() == weights.keys()
    assert back["task"]["cond"] == page["task"]["cond"] and back["task"]["process"] == page["task"]["process"]
    refused(page | {"model": page["model"] | {"groups": 4}}, params, "original", "GLIDE has no groups 4")
    refused(page, params, "diffusers", "has a class for system glide: give --to original")


def test_the_noised_clip_is_two_files(tmp_path):
    case = load_case(GOLDENS / "glide" / "noised_clip.json")
    towers = {
        name: {key.removeprefix(f"{name}/"): w for key, w in case.weights.items() if key.startswith(f"{name}/")}
        for name in ("image", "text")
    }
    model = glide.noised_config(case.config["image"], case.config["text"])
    params = {"model": glide.noised_convert(towers["image"], towers["text"], build(model), 37.5)}
    page = {"model": model, "task": dict(name="diffusion_jax.tasks.clip:Contrastive", shape=(8, 8, 3))}
    written, _ = there_and_back(tmp_path / "out", page, params, "clip_image_enc.safetensors")
    for name, weights in towers.items():
        found = written.files[f"clip_{name}_enc.safetensors"]
        assert found.keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    refused(page | {"task": page["task"] | {"shape": (8, 8, 1)}}, params, "original", "sees 3 channels, task.shape has 1")
    refused(page | {"model": model | {"mean": (0.5,) * 3}}, params, "original", "has no mean")
