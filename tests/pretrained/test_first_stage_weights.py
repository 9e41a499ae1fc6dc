"""System vae: what latents are scaled and shifted by; the golden of Stable Diffusion 3's; FLUX's; there and back."""
import json
from pathlib import Path

import numpy as np
import pytest
from exports import filled, same
from golden_case import load as load_case
from safetensors.numpy import save_file

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import export, package, systems, vae
from diffusion_jax.tasks.autoencoder import Autoencoder

GOLDEN = Path(__file__).parent.parent / "goldens" / "sd3" / "vae.json"
FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The autoencoder of the golden as a folder of diffusers."""
    case, out = load_case(GOLDEN), tmp_path_factory.mktemp("vae")
    weights = {key: np.ascontiguousarray(value) for key, value in case.weights.items()}
    save_file(weights, out / "diffusion_pytorch_model.safetensors")
    (out / "config.json").write_text(json.dumps(case.config["kwargs"]))
    return out


def test_the_folder_of_stable_diffusion_3_s_autoencoder_makes_the_golden_s_latents(folder):
    case = load_case(GOLDEN)
    page, params = systems.load("vae", folder)
    assert {name: page["task"][name] for name in ("scale", "shift")} == {"scale": 1.5305, "shift": 0.0609}
    image = np.moveaxis(case.inputs["image"], 1, -1)
    scales = {name: page["task"][name] for name in ("scale", "shift")}
    task = Autoencoder(build(page["model"]), image.shape[1:], **scales)
    latents = (np.moveaxis(case.want["mean"], 1, -1) - 0.0609) * 1.5305
    np.testing.assert_allclose(task.encode(params, image), latents, atol=1e-4)
    z = np.moveaxis(case.inputs["z"], 1, -1)
    np.testing.assert_allclose(task.decode(params, z), np.moveaxis(case.want["decoded"], 1, -1), atol=1e-4)


def test_it_goes_back_as_it_came(folder, tmp_path):
    page, params = systems.load("vae", folder)
    page["task"]["shape"] = (16, 16, 3)
    written = export.package(page, params, "diffusers")
    options = written.files["config.json"]
    assert (options["scaling_factor"], options["shift_factor"], options["use_quant_conv"]) == (1.5305, 0.0609, False)
    package.write(tmp_path / "back", written.files)
    again, same_params = systems.load("vae", tmp_path / "back")
    same(params, same_params)
    assert again["task"]["scale"] == 1.5305 and again["model"] == page["model"]


def of_file(tmp_path, latent, maps, official=None):
    """The scale and the shift of a single file in CompVis's names."""
    spec = dict(name=vae.KL, channels=3, latent=latent, inner=latent, width=32, mults=(1, 2), depth=1)
    params = filled(vae.shapes(build(spec)))
    weights = vae.revert(params, vae.official_shapes(params))
    kept = {key: np.ascontiguousarray(value) for key, value in weights.items() if maps or "quant_conv" not in key}
    save_file(kept, tmp_path / "x.safetensors")
    if official is not None:
        (tmp_path / "official.json").write_text(json.dumps(official))
    options = None if official is None else tmp_path / "official.json"
    page, _ = systems.load("vae", tmp_path / "x.safetensors", options)
    return page["task"]["scale"], page["task"].get("shift", 0.0)


@pytest.mark.parametrize(("latent", "maps", "official", "wanted"), [
    (4, True, None, (0.18215, 0.0)),
    (4, True, {"scaling_factor": 0.13025}, (0.13025, 0.0)),
    (16, False, None, (1.5305, 0.0609)),
    pytest.param(16, False, FLUX, (0.3611, 0.1159), marks=pytest.mark.slow),
    pytest.param(3, True, None, (1.0, 0.0), marks=pytest.mark.slow),
], ids=["sd", "sdxl", "sd3", "flux", "ldm"])
def test_what_a_single_file_does_not_say(tmp_path, latent, maps, official, wanted):
    assert of_file(tmp_path, latent, maps, official) == wanted


def test_what_is_no_autoencoder_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ConfigError, match="this is no state dict of an autoencoder"):
        systems.load("vae", tmp_path / "x.npz")
