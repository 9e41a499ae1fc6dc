"""First stages, written for CompVis's code and for diffusers."""
import numpy as np
import pytest
from exports import channels_first, channels_last, drawn, golden, refused, same, there_and_back

from diffusion_jax.pretrained import export, package, systems, vae, vae_export
from diffusion_jax.train.state import task_of


def page(**model):
    """A small KL's."""
    spec = dict(name="diffusion_jax.models.vae:KL", channels=3, latent=4, width=32, mults=(1, 2, 2), depth=1, groups=8) | model
    return dict(model=spec, task=dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(16, 16, 3), scale=0.5))


@pytest.fixture(scope="module")
def params():
    return drawn(task_of(page()))


@pytest.mark.parametrize("case", ["autoencoder_kl_attn", "vqmodel"])
def test_there_and_back(tmp_path, case):
    ours, params, weights = golden(tmp_path, "vae", f"ldm/{case}")
    written, back = there_and_back(tmp_path / "out", ours, params)
    assert written.files["model.safetensors"].keys() == weights.keys() and back["task"]["scale"] == ours["task"]["scale"]
    for key, value in weights.items():
        np.testing.assert_array_equal(written.files["model.safetensors"][key], value, err_msg=key)
    refused(ours, params, "diffusers", "is no VQ" if case == "vqmodel" else "has no attend")


def test_a_folder_of_diffusers_comes_back(params, tmp_path):
    written = export.package(page(), params | {"disc": {"kernel": np.zeros(1)}}, "diffusers")      # the discriminator stays
    package.write(tmp_path / "out", written.files)
    back, again = systems.load("vae", tmp_path / "out")
    same(params, again)
    assert back["task"]["scale"] == 0.5 and back["model"]["groups"] == 8
    assert vae.compvis(written.files[vae_export.HF_WEIGHTS]).keys() == vae_export.weights(params["model"]).keys()


@pytest.mark.parametrize("model, task, to, says", [
    ({}, {}, "original", "has no groups 8, only 32"),
    (dict(name="diffusion_jax.models.vae:VQ", codes=8, groups=32), dict(scale=(1.0, 2.0, 1.0, 1.0)), "original",
     "one scale and no shift for the codes of a VQ"),
    ({}, dict(black=0.0), "diffusers", "-1 for black"),
    (dict(resample="pool"), {}, "diffusers", "has no resample 'pool'"), (dict(inner=3), {}, "diffusers", "inner is 3"),
])
def test_what_they_lack_is_named(params, model, task, to, says):
    ours = page(**model)
    refused(ours | {"task": ours["task"] | task}, params, to, says)


@pytest.mark.slow
def test_scales_of_channels_go_into_the_maps(params, tmp_path):
    """Encoding and decoding are what they were, as modes `encode` and `sample` have them: x = (z - shift) scale."""
    ours = page()
    ours["task"] |= dict(scale=(0.5, 2.0, 1.0, 3.0), shift=(0.1, 0.0, -0.3, 2.0))
    written = export.package(ours, params, "diffusers")
    assert "the scaling factor is 1" in written.notes[0]
    package.write(tmp_path / "out", written.files)
    back, again = systems.load("vae", tmp_path / "out")
    image, x = np.full((1, 16, 16, 3), 0.3, np.float32), np.full((1, 4, 4, 4), 0.7, np.float32)
    made = [
        (task.encode(weights, image), task.encode(weights, image, np.ones_like(x)), task.decode(weights, x))
        for task, weights in ((task_of(ours), params), (task_of(back), again))
    ]
    for one, other in zip(*made, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_diffusers_sees_the_same(params, tmp_path):
    torch, _ = (pytest.importorskip(name) for name in ("torch", "diffusers"))
    written = export.package(page(), params, "diffusers")
    package.write(tmp_path / "out", written.files)
    names: dict = {}
    exec(written.code.replace("FOLDER", str(tmp_path / "out")), names)
    rng = np.random.default_rng(0)
    image, z = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32), rng.standard_normal((1, 4, 4, 4)).astype(np.float32)
    with torch.no_grad():
        theirs = (names["vae"].encode(channels_first(image)).latent_dist.mean, names["vae"].decode(channels_first(z)).sample)
    model = task_of(page()).model
    weights = {"params": params["model"]}
    ours = model.apply(weights, image, method="encode").mean, model.apply(weights, z, method="decode")
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(channels_last(one), other, atol=1e-5, rtol=0)
    assert names["vae"].config.scaling_factor == 0.5
