"""Official ADM weights: the published key lists, small networks with their numbers, and files. The key lists are goldens too."""
import json
from pathlib import Path

import golden_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.cond import Joint, Label, LowRes, Nothing
from diffusion_jax.models.unet import UNet, preset
from diffusion_jax.pretrained import adm

GOLDENS = Path(__file__).parent.parent / "goldens" / "adm"
KEYS = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDENS.glob("*_keys.json"))}
CASES = {
    name: golden_case.load(GOLDENS / f"adm_{name}.json")
    for name in ("unet_classcond", "unet_uncond_neworder", "superres_4x", "classifier_attention", "classifier_adaptive")
}


def structs(doc):
    (keys,) = doc["keys"].values()
    return {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in keys.items()}


def modules(case):
    """(model, cond, new_order) of a case."""
    model, cond = map(build, adm.config(case.config))
    return model, cond, case.config.get("use_new_attention_order", False)


def same(got, want):
    assert got.keys() == want.keys()
    for key, w in want.items():
        np.testing.assert_array_equal(got[key], w, err_msg=key)


@pytest.mark.parametrize("name, ours, cond", [
    ("64x64_diffusion", "adm-imagenet64", Label(1000, 768, null_row=False)),
    ("128x128_diffusion", "adm-imagenet128", Label(1000, 1024, null_row=False)),
    ("256x256_diffusion", "adm-imagenet256", Label(1000, 1024, null_row=False)),
    ("256x256_diffusion_uncond", "adm-imagenet256-uncond", Nothing()),
    ("512x512_diffusion", "adm-imagenet512", Label(1000, 1024, null_row=False)),
    ("lsun_bedroom", "adm-imagenet256-uncond", Nothing()),
    ("64_256_upsampler", "adm-upsample-64-256", Joint((Label(1000, 768, null_row=False), LowRes(4)))),
    ("128_512_upsampler", "adm-upsample-128-512", Joint((Label(1000, 768, null_row=False), LowRes(4)))),
    *((f"{side}x{side}_classifier", f"adm-imagenet{side}", Nothing()) for side in (64, 128, 256, 512)),
])
def test_a_published_state_dict_tells_its_network(name, ours, cond):
    model, told, new_order = adm.published(structs(KEYS[f"adm_{name}_keys"]))
    model, told = build(model), build(told)
    assert told == cond and new_order == (name == "64x64_diffusion")
    if "classifier" in name:
        assert isinstance(model, Classifier) and model.width == 128
    else:
        assert model == UNet(**preset(ours))


def test_every_key_list_is_told_apart():
    assert len(KEYS) == 12
    assert len({adm.recognised(structs(doc)) for doc in KEYS.values()}) == 11             # LSUN is like ImageNet without labels


@pytest.mark.parametrize("name", CASES)
def test_weights_come_back_exactly(name):
    case = CASES[name]
    model, cond, new_order = modules(case)
    params = adm.convert(case.weights, model, cond, new_order)
    back = adm.revert(jax.device_get(params), {key: w.shape for key, w in case.weights.items()}, model, new_order, cond)
    same(back, case.weights)


def test_tokens_come_back_exactly_and_in_order():
    case = CASES["unet_classcond"]
    model, cond, _ = modules(case)
    rng, weights = np.random.RandomState(0), dict(case.weights)
    for key, w in case.weights.items():
        if key.endswith("qkv.weight"):
            part = key.removesuffix("qkv.weight") + "encoder_kv"
            size = len(w) // 3 * 2
            weights |= {f"{part}.weight": np.float32(rng.randn(size, 5, 1)), f"{part}.bias": np.arange(size, dtype=np.float32)}
    params = jax.device_get(adm.convert(weights, model, cond))
    same(adm.revert(params, {key: w.shape for key, w in weights.items()}, model), weights)
    heads = model.heads_for(64, model.heads)
    official = np.arange(128).reshape(heads, 2, -1)                                    # [head][k, v][channel]
    np.testing.assert_array_equal(params["model"]["mid_attn"]["kv"]["bias"], official.swapaxes(0, 1).reshape(-1))


def test_the_order_of_channels_is_no_matter_of_shapes():
    case = CASES["unet_classcond"]
    model, cond, _ = modules(case)
    old, new = (adm.convert(case.weights, model, cond, new_order)["model"]["mid_attn"]["qkv"] for new_order in (False, True))
    assert (old["kernel"] != new["kernel"]).any() and (jnp.sort(old["bias"]) == jnp.sort(new["bias"])).all()


@pytest.mark.parametrize("change, message", [
    ({"head.weight": np.zeros(2)}, "left over: head.weight"),
    ({"input_blocks.9.0.in_layers.0.weight": np.zeros(2)}, "left over: input_blocks.9.0.in_layers.0.weight"),
    ({"out.2.bias": None}, "missing: model/final_conv/bias"),
    ({"label_emb.weight": np.zeros((3, 128))}, r"wrong shape: label_emb.weight \(3, 128\) does not give cond/table \(\d+, 128\)"),
    ({"out.2.weight": np.zeros((6, 32))}, r"wrong shape: out.2.weight"),
])
def test_refuses_what_does_not_fit(change, message):
    case = CASES["unet_classcond"]
    model, cond, _ = modules(case)
    weights = {key: w for key, w in (case.weights | change).items() if w is not None}
    with pytest.raises(ConfigError, match=message) as error:
        adm.convert(weights, model, cond)
    assert "\n" not in str(error.value)


def test_what_was_not_published_is_asked_for():
    for weights in (CASES["unet_classcond"].weights, {"conv.weight": np.zeros(1)}):
        with pytest.raises(ConfigError, match="no state dict that was published with ADM: give the options of the official"):
            adm.published(weights)


@pytest.mark.parametrize("name, schedule", [("unet_uncond_neworder", "cosine"), ("classifier_adaptive", "linear")])
def test_files_give_a_page_and_parameters(name, schedule, tmp_path):
    case = CASES[name]
    np.savez(tmp_path / "x.npz", **case.weights)
    page, params = adm.load(tmp_path / "x.npz", case.config | {"noise_schedule": schedule})
    model, cond, new_order = modules(case)
    assert build(page["model"]) == model and ("sample" in page) == isinstance(model, UNet)
    assert page["task"]["process"]["schedule"] == {"cosine": "squaredcos", "linear": "linear"}[schedule]
    assert page["task"]["shape"] == (case.config["image_size"],) * 2 + (3,)
    jax.tree.map(np.testing.assert_array_equal, params, adm.convert(case.weights, model, cond, new_order))


def test_a_published_network_at_another_size(monkeypatch):
    keys = {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
            for key, shape in next(iter(KEYS["adm_256x256_diffusion_uncond_keys"]["keys"].values())).items()}
    monkeypatch.setattr(adm, "read", lambda path: keys)
    monkeypatch.setattr(adm, "convert", lambda *given: {})
    assert [adm.load("x.pt", official)[0]["task"]["shape"][0] for official in (None, {"image_size": 128})] == [256, 128]
