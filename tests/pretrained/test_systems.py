"""The table of systems: every entry resolves, both ways meet, and what cannot be is refused in one line."""
import inspect
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from golden_case import load as load_case

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import adm, glide, perceptual, systems
from diffusion_jax.pretrained.rules import structs

GOLDENS = Path(__file__).parent.parent / "goldens"
FILES = {path.stem for path in Path(systems.__file__).parent.glob("*.py")}


def shapes_of(weights):
    return {key: w.shape for key, w in weights.items()}


@pytest.mark.parametrize("system", systems.SYSTEMS.values(), ids=lambda system: system.name)
def test_what_an_entry_names_is_there(system):
    assert system.name in FILES
    assert list(inspect.signature(systems.resolve(system.load)).parameters) == ["path", "official"]
    for entry, wanted in (
        (system.export, ["page", "params", "shapes"]), (system.write, ["page", "params"]),
        (system.diffusers, ["page", "params", "class_names"]),
    ):
        if entry is not None:
            assert list(inspect.signature(systems.resolve(entry)).parameters) == wanted
    for phrase in (system.weights, system.source, system.official):
        assert not set(phrase) & set(":;|\n") and not phrase.endswith("."), "phrases are joined with these"


def test_the_table_brings_no_network():
    program = "import json, sys; from diffusion_jax.pretrained import systems; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    slow = ("torch", "diffusion_jax.models", "diffusion_jax.tasks", "diffusion_jax.data", "orbax")
    assert [name for name in json.loads(done.stdout) if name.startswith(slow)] == []


def test_the_help_names_every_system():
    for name in systems.SYSTEMS:
        assert name in systems.SYSTEM_HELP and name in systems.SOURCE_HELP
    assert systems.WITH_LATENTS == ("diffit", "dit", "edm2")
    assert "diffit, dit, edm2" in systems.FIRST_STAGE_HELP


def test_the_markdown_has_a_short_row_for_each_system():
    lines = systems.markdown().splitlines()
    assert len(lines) == 2 + len(systems.SYSTEMS)
    assert {line.count("|") for line in lines} == {4}
    assert max(map(len, lines)) <= 140
    assert [line.split("`")[1] for line in lines[2:]] == sorted(systems.SYSTEMS)


def test_how_a_system_uses_a_first_stage():
    assert systems.latents("dit") == systems.latents("diffit") == {"scale": 0.18215}
    assert set(systems.latents("edm2")) == {"scale", "shift", "black"}
    with pytest.raises(ConfigError, match="--first_stage is for diffit, dit, edm2: sd brings its own or needs none"):
        systems.latents("sd")


@pytest.mark.parametrize("call", [
    lambda: systems.find("ditt"), lambda: systems.load("ditt", "x"), lambda: systems.latents("ditt"),
    lambda: systems.export("ditt", {}, {}, {}),
])
def test_an_unknown_system_names_the_nearest(call):
    with pytest.raises(ConfigError, match="unknown system 'ditt': did you mean 'dit'"):
        call()


@pytest.mark.parametrize("name, content, message", [
    ("dit", "{", "o.json does not read as JSON"), ("dit", "[1]", "o.json holds a list, not a mapping of options"),
    ("dit", None, "there is no .*o.json: check the name"),
    ("perceptual", "{}", "--official is not for perceptual: its weights say everything"),
])
def test_official_options_that_cannot_be_used_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / "o.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        systems.load(name, tmp_path / "x.npz", tmp_path / "o.json")
    assert "\n" not in str(error.value)


def test_a_key_that_the_weights_lack_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", **{"model.diffusion_model.x": np.zeros(1), "first_stage_model.x": np.zeros(1)})
    (tmp_path / "o.json").write_text('{"unet_config": {}}')
    with pytest.raises(ConfigError, match="there is no 'params' in --official .*o.json, or in .*x.npz: system sd needs it"):
        systems.load("sd", tmp_path / "x.npz", tmp_path / "o.json")


@pytest.mark.parametrize("name, case, options", [
    ("clip", "clip/clip_vit", "kwargs"), ("dalle", "dalle/ar_rudalle_v3", "kwargs"),
    ("dvae", "dalle/dvae_train_lucidrains", "kwargs"), ("vae", "ldm/autoencoder_kl_attn", None),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ("dalle", "dalle/ar_mindalle", "hparams"), ("diffit", "diffit/sample_ddpm10", None),
        ("dit", "dit/dit_psample_8_fixedlarge_clip", "model"), ("edm2", "edm2/edm2_precond_labels", ""),
        ("glide", "glide/text2im_unet_base", "kwargs"))),
])
def test_export_is_the_inverse_of_load(tmp_path, name, case, options):
    golden = load_case(GOLDENS / f"{case}.json")
    official = None
    if options is not None:
        official = tmp_path / "o.json"
        official.write_text(json.dumps({"image_size": 8} | (golden.config[options] if options else golden.config)))
    np.savez(tmp_path / "x.npz", **golden.weights)
    page, params = systems.load(name, tmp_path / "x.npz", official)
    weights = systems.export(name, page, params, shapes_of(golden.weights))
    assert weights.keys() == golden.weights.keys()
    for key, value in golden.weights.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=1e-6, err_msg=key)   # positions are made again


def test_a_published_adm_goes_back_and_others_do_not():
    case = load_case(GOLDENS / "adm" / "adm_128x128_classifier_keys.json")
    [keys] = case.doc["keys"].values()
    shapes = {key: tuple(shape) for key, shape in keys.items()}
    model, cond, new_order = adm.published(structs(shapes))
    page = adm.page(model, cond, 128, "linear")
    params = jax.eval_shape(lambda w: adm.convert(w, build(model), build(cond), new_order), structs(shapes))
    back = jax.eval_shape(lambda p: systems.export("adm", page, p, shapes), params)
    assert shapes_of(back) == shapes
    with pytest.raises(ConfigError, match="no state dict that was published with ADM"):
        systems.export("adm", page, params, {"x": (1,)})


def test_the_noised_clip_goes_back_tower_by_tower():
    case = load_case(GOLDENS / "glide" / "noised_clip.json")
    towers = {
        tower: {key.removeprefix(f"{tower}/"): w for key, w in case.weights.items() if key.startswith(f"{tower}/")}
        for tower in ("image", "text")
    }
    model = glide.noised_config(case.config["image"], case.config["text"])
    params = {"model": glide.noised_convert(towers["image"], towers["text"], build(model))}
    for weights in towers.values():
        back = systems.export("glide", {"model": model}, params, shapes_of(weights))
        for key, value in weights.items():
            np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_the_two_files_of_a_discrete_vae_go_back_together(tmp_path):
    weights = load_case(GOLDENS / "dalle" / "dvae.json").weights
    for half in ("encoder", "decoder"):
        part = {key.removeprefix(f"{half}/"): w for key, w in weights.items() if key.startswith(f"{half}/")}
        np.savez(tmp_path / f"{half}.npz", **part)
    page, params = systems.load("dvae", tmp_path)
    back = systems.export("dvae", page, params, shapes_of(weights))
    for key, value in weights.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_lpips_goes_back_without_what_it_does_not_use():
    model = perceptual.LPIPS()
    x = np.zeros((1, perceptual.SMALLEST, perceptual.SMALLEST, 3), np.float32)
    params = {"model": jax.eval_shape(model.init, jax.random.key(0), x, x)["params"]}
    vgg = {f"features.{n}": params["model"]["vgg"][f"stage_{k}_conv_{i}"]["kernel"].shape
           for n, k, i in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5),
                              (0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2), strict=True)}
    shapes = {f"lin{k - 1}.model.1.weight": (1, *params["model"][f"w_{k}"].shape, 1, 1) for k in range(1, 6)}
    shapes |= {f"{key}.weight": (w[3], w[2], w[0], w[1]) for key, w in vgg.items()}
    shapes |= {f"{key}.bias": w[3:] for key, w in vgg.items()}
    unused = {"classifier.0.bias": (3,)}
    back = jax.eval_shape(lambda p: systems.export("perceptual", {}, p, shapes | unused), params)
    assert shapes_of(back) == shapes
