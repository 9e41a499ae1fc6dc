"""--official, of any system: what it lacks is named in one line; and official options that no published network uses."""
import functools
import importlib
import json
from pathlib import Path

import golden_case
import jax
import numpy as np
import pytest
from dvae_keys import official_shapes
from golden_routines import ldm
from pages import ask

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.pretrained import dvae


@pytest.mark.parametrize("system, official, lacks", [
    ("dit", {"patch_size": 2}, "hidden_size"), ("diffit", {"hiden_size": 8}, "patch_size"),
    ("adm", {"model_channels": 8}, "num_res_blocks"), ("glide", {"model_channels": 8}, "num_res_blocks"),
    ("sd", {"unet_config": {}}, "params"),
])
def test_options_that_lack_something_are_refused(tmp_path, system, official, lacks):
    keys = ("model.diffusion_model.x", "first_stage_model.x") if system == "sd" else ("x",)
    np.savez(tmp_path / "x.npz", **{key: np.zeros(1) for key in keys})
    (tmp_path / "o.json").write_text(json.dumps(official))
    given = {"system": system, "source": str(tmp_path / "x.npz"), "official": str(tmp_path / "o.json")}
    with pytest.raises(ConfigError, match=f"there is no '{lacks}' in --official .*o.json, or in .*: system {system} needs it"):
        ask("import_weights", tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


GOLDENS = Path(__file__).parents[1] / "goldens"
NETWORKS = {                       # case -> (its last convolution, where its options are)
    "adm/adm_unet_classcond": ("out.2", ()),
    "ldm/unet_class_conditional": ("out.2", ("kwargs",)),
    "ldm/diffusers_unet2dcondition": ("conv_out", ("kwargs",)),
}


@pytest.mark.parametrize("name, out", [
    ("ldm/unet_class_conditional", 5),
    *(pytest.param(name, out, marks=pytest.mark.slow) for name, out in (
        ("adm/adm_unet_classcond", 5), ("ldm/unet_class_conditional", 6), ("ldm/diffusers_unet2dcondition", 7))),
])
def test_networks_may_have_other_channels_out_than_in(name, out):
    """Rows of the last convolution, some of them twice, give the official output with these channels."""
    case = golden_case.load(GOLDENS / f"{name}.json")
    last, path = NETWORKS[name]
    options = functools.reduce(lambda part, key: part[key], path, case.config)
    options["out_channels"] = out
    channels = np.arange(out) % len(case.weights[f"{last}.bias"])
    for end in ("weight", "bias"):
        case.weights[f"{last}.{end}"] = case.weights[f"{last}.{end}"][channels]
    want = case.want["out"][:, channels]
    case.doc["outputs"] = {"out": {"shape": list(want.shape)}}
    case.want.clear()
    case.want["out"] = want
    routine = getattr(importlib.import_module(f"golden_routines.{case.doc['system']}"), case.doc["kind"])
    assert not golden_case.compare(case, routine(case))


def test_actnorm_is_initialised_to_the_shape_of_a_channel():
    """The shapes alone: no official numbers of this option are here."""
    case = golden_case.load(GOLDENS / "ldm" / "nlayer_discriminator.json")
    case.config["kwargs"]["use_actnorm"] = True
    rng = np.random.default_rng(0)
    for key in [key for key in case.weights if "running" in key or "num_batches" in key]:
        del case.weights[key]
    for key, weight in list(case.weights.items()):
        layer = key.rpartition(".")[0]
        if f"{layer}.bias" in case.weights and weight.ndim == 1 and key.endswith("weight"):         # a batch norm
            shape = (1, len(weight), 1, 1)
            del case.weights[key], case.weights[f"{layer}.bias"]
            act = {f"{layer}.loc": rng.normal(size=shape), f"{layer}.scale": rng.normal(size=shape),
                   f"{layer}.initialized": np.uint8(0)}
            case.weights.update(act)
            before = f"main.{int(layer.rpartition('.')[2]) - 1}"
            case.weights[f"{before}.bias"] = np.zeros(len(weight), np.float32)
    found = ldm.discriminator(case)
    assert found["init_loc"].shape == found["init_scale"].shape == (1, case.config["kwargs"]["ndf"] * 2, 1, 1)
    assert found["train_init_logits_real"].shape == case.want["train_logits_real"].shape


def half(name, **options):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in official_shapes(name, **options).items()}


@pytest.mark.slow
def test_halves_of_a_discrete_vae_may_differ_in_width():
    """Each half does what it does in a network of its own width."""
    image = np.random.default_rng(1).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    z = jax.nn.softmax(np.random.default_rng(2).normal(size=(1, 4, 4, 12)).astype(np.float32))

    def run(encoder_width, decoder_width):
        halves = half("encoder", width=encoder_width), half("decoder", width=decoder_width)
        net = DVAE(**dvae.options(*halves))
        params = {"params": dvae.convert(*halves, net)}
        apply = functools.partial(net.apply, params)
        return net, lambda: apply(image, method="encode"), lambda: apply(z, method="decode")

    net, encode, decode = run(8, 16)
    assert (net.width, net.decoder_width) == (8, 16)
    np.testing.assert_array_equal(encode(), run(8, 8)[1]())
    np.testing.assert_array_equal(decode(), run(16, 16)[2]())


MISMATCHED = {
    "another codebook": (half("decoder", codes=10), "another number"),
    "no groups": ({key: w for key, w in half("decoder").items() if "group" not in key}, "groups of blocks are not all there"),
    "grey images": (half("decoder") | {"blocks.output.conv.w": np.zeros((2, 8, 1, 1))}, "other channels"),
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_halves_that_do_not_belong_together_are_refused(name):
    decoder, says = MISMATCHED[name]
    with pytest.raises(ConfigError, match=says) as error:
        dvae.options(half("encoder"), decoder)
    assert "\n" not in str(error.value)
