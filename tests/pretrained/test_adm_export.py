"""ADM's networks, written: the golden weights come back under their keys, and what the official constructor lacks is named."""
import numpy as np
import pytest
from exports import GOLDENS, golden, refused, there_and_back
from golden_case import load as load_case

from diffusion_jax.pretrained import adm

UPSAMPLER = {"large_size": 16, "small_size": 4}


@pytest.mark.parametrize("case, more", [
    ("adm_superres_4x", UPSAMPLER),
    *(pytest.param(name, {}, marks=pytest.mark.slow) for name in
      ("adm_unet_classcond", "adm_unet_half_mult", "adm_classifier_attention", "adm_classifier_adaptive")),
])
def test_there_and_back(tmp_path, case, more):
    page, params, weights = golden(tmp_path, "adm", f"adm/{case}", "", **more)
    written, back = there_and_back(tmp_path / "out", page, params)
    assert written.notes == () and back["task"] == page["task"]
    found = written.files["model.safetensors"]
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    assert {"UNetModel", "EncoderUNetModel", "SuperResModel"} & set(written.code.replace("(", " ").split())


@pytest.mark.slow
def test_the_newer_order_of_channels_becomes_the_older_one(tmp_path):
    page, params, weights = golden(tmp_path, "adm", "adm/adm_unet_uncond_neworder", "")
    page["task"]["scale"] = dict(name="diffusion_jax.diffusion.scales:V")
    written, _ = there_and_back(tmp_path / "out", page, params)
    assert "predicts V" in written.notes[0]
    assert written.files["config.json"]["use_new_attention_order"] is False
    assert written.files["model.safetensors"].keys() == weights.keys()


def test_what_the_constructor_lacks_is_named():
    page = adm.page(*adm.config(load_case(GOLDENS / "adm" / "adm_unet_classcond.json").config), 8, "linear")
    params: dict = {}                                                           # nothing of them is looked at before

    def changed(**model):
        return page | {"model": page["model"] | model}

    refused(changed(groups=8), params, "original", "has no groups 8, only 32")
    refused(changed(ddpm=True), params, "original", "has no ddpm True")
    refused(changed(attention="linear"), params, "original", "has no attention 'linear'")
    refused(page | {"task": page["task"] | {"shape": (8, 4, 3)}}, params, "original", "takes squares")
    refused(page, params, "diffusers", "neither diffusers nor transformers has a class for system adm: give --to original")
    tokens = dict(name="diffusion_jax.models.text_cond:LabelToken", num_classes=3, width=8)
    refused(page | {"task": page["task"] | {"cond": tokens}}, params, "original", "no LabelToken")
