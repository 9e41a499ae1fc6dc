"""Whose network a page has, and what is refused before anything is written."""
import jax
import numpy as np
import pytest
from exports import GOLDENS, golden, refused, there_and_back
from golden_case import load as load_case
from pages import page as config

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained import export, perceptual, systems

NET, COND = "diffusion_jax.models.", "diffusion_jax.models.cond:"
PAGES = [                                       # (network, conditioner, first stage, the system that it belongs to)
    (dict(name=f"{NET}dit:DiT"), None, None, "dit"), (dict(name=f"{NET}tae:TAE"), None, None, "tae"),
    (dict(name=f"{NET}vae:VQ"), None, None, "vae"),
    (dict(name=f"{NET}clip:CLIP", image=dict(steps=0)), None, None, "clip"),
    (dict(name=f"{NET}clip:CLIP", image=None), None, None, "clip"),
    (dict(name=f"{NET}clip:CLIP", image=dict(steps=1000)), None, None, "glide"),
    (dict(name=f"{NET}classifier:Classifier"), None, None, "adm"), (dict(name=f"{NET}unet:UNet"), f"{COND}Label", None, "adm"),
    (dict(name=f"{NET}unet:UNet"), f"{NET}glide:Text", None, "glide"),
    (dict(name=f"{NET}unet:UNet"), f"{NET}unclip:ImageText", {}, "karlo"),
    (dict(name=f"{NET}unet:UNet"), f"{COND}Nothing", {"model": {}}, "sd"),
    (dict(name=f"{NET}unet:UNet", transformer=1), f"{NET}text_cond:TowerText", None, "sd"),
    (dict(name=f"{NET}unclip:Relay"), None, None, "karlo"), (dict(name=f"{NET}edm2:EDM2"), None, {"model": {}}, "edm2"),
]


@pytest.mark.parametrize("model, cond, first, system", PAGES)
def test_a_page_tells_its_system(model, cond, first, system):
    task = {"name": "t:Task", **({"cond": {"name": cond}} if cond else {}), **({} if first is None else {"first_stage": first})}
    assert export.of_page(dict(model=model, task=task)).name == system
    if cond:
        joint = task | {"cond": {"name": f"{COND}Joint", "parts": [{"name": cond}, {"name": f"{COND}LowRes"}]}}
        assert export.of_page(dict(model=model, task=joint)).name == system


def test_a_first_stage_that_came_with_its_model_is_one_too():
    assert export.of_page(dict(task=dict(name="t:Autoencoder", model=dict(name=f"{NET}vae:KL")))).name == "vae"


def test_a_network_of_ones_own_is_no_systems():
    with pytest.raises(ConfigError, match="nobody has published a network like this Mine: there is no layout to write it in"):
        export.of_page(dict(model=dict(name="mypkg.nets:Mine"), task=dict(name="t:Task")))


def test_an_autoregressive_prior_has_no_layout():
    page = dict(model=dict(name=f"{NET}prior_ar:ARPrior"), task=dict(name="t:Task"))
    for to in export.TARGETS:
        refused(page, {}, to, "nobody has published a network like this ARPrior")


def test_lpips_is_one_file_of_taming_transformers():
    model = perceptual.LPIPS()
    x = np.zeros((1, perceptual.SMALLEST, perceptual.SMALLEST, 3), np.float32)
    params = {"model": jax.eval_shape(model.init, jax.random.key(0), x, x)["params"]}
    page = dict(model=dict(name="diffusion_jax.models.lpips:LPIPS"), task={})
    weights = jax.eval_shape(lambda p: export.package(page, p, "original").files, params)["model.safetensors"]
    assert weights["lin4.model.1.weight"].shape == (1, 512, 1, 1) and weights["net.slice5.28.weight"].shape == (512, 512, 3, 3)
    assert len(weights) == 5 + 2 * 13


def test_what_imports_a_package_again_is_said():
    assert export._command("dvae", "FOLDER", "FOLDER/config.json").endswith(
        "--system dvae --source FOLDER --official FOLDER/config.json --workdir runs/dvae")
    assert export._command("dit", "", "") == ""


@pytest.mark.parametrize("system, case, options", [
    ("edm2", "edm2/edm2_precond_labels", ""), ("dalle", "dalle/ar_mindalle", "hparams"),
    ("dalle", "dalle/ar_rudalle_v3", "kwargs"), ("dvae", "dalle/dvae_train_lucidrains", "kwargs"),
    pytest.param("edm2", "edm2/edm2_precond_uncond_clip", "", marks=pytest.mark.slow),
])
def test_there_and_back(tmp_path, system, case, options):
    page, params, weights = golden(tmp_path, system, case, options)
    written, back = there_and_back(tmp_path / "out", page, params)
    found = written.files["model.safetensors"]
    assert found.keys() == weights.keys() and back["task"] == page["task"]
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    refused(page, params, "diffusers", f"has a class for system {system}: give --to original")


def test_openais_discrete_vae_is_two_files(tmp_path):
    weights = load_case(GOLDENS / "dalle" / "dvae.json").weights
    for half in ("encoder", "decoder"):
        part = {key.removeprefix(f"{half}/"): w for key, w in weights.items() if key.startswith(f"{half}/")}
        np.savez(tmp_path / f"{half}.npz", **part)
    page, params = systems.load("dvae", tmp_path)
    written, back = there_and_back(tmp_path / "out", page, params, file="")
    assert back == page and written.command.split()[-5:-2] == ["FOLDER", "--official", "FOLDER/config.json"]
    found = {f"{half}/{key}" for half in ("encoder", "decoder") for key in written.files[f"{half}.safetensors"]}
    assert found == set(weights)
    other = page | {"model": page["model"] | {"mults": (1, 2)}}
    refused(other, params, "original", r"has no mults \(1, 2\), only \(1, 2, 4, 8\)")


@pytest.mark.parametrize("name, says", [
    ("digits_dalle", "minDALL-E has no layout 'dalle', only 'dense'|ru-DALL-E has no layout 'dalle'"),
    ("digits_adm", "the official ADM has no groups"), ("digits_clip", "sees 3 channels, task.shape has 1"),
    ("digits_unclip", "Karlo's own code has the CLIP beside its networks"),
])
def test_pages_that_no_official_code_has_are_refused(name, says):
    refused(config(name).to_dict(), {"model": {}}, "original", says)


def test_augmentation_is_of_training_and_left_out():
    label = dict(name=f"{COND}Label", num_classes=3, width=8)
    cond = dict(name=f"{NET}augment:Augmented", width=8, cond=label)
    page = dict(model=dict(name=f"{NET}dit:DiT"), task=dict(cond=cond, drop={}))
    params = dict(model=1, cond=dict(cond=dict(table=2), emb=dict(kernel=3)))
    plain, kept = export.not_augmented(page, params)
    assert plain["task"] == dict(cond=label, drop={}) and kept == dict(model=1, cond=dict(table=2))
    assert export.not_augmented(plain, kept) == (plain, kept)
    page["task"]["cond"]["cond"] = dict(name=f"{COND}Nothing")
    assert export.not_augmented(page, dict(model=1, cond=dict(emb=3)))[1] == dict(model=1, cond={})
    page["model"]["name"] = f"{NET}edm2:EDM2"
    with pytest.raises(ConfigError, match="train it with labels, or without Augmented"):
        export.not_augmented(page, params)
