"""Tiny autoencoders: both layouts against a reference in NumPy that reads the official keys, and the published files."""
import io
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from exports import channels_first, channels_last, refused, same, there_and_back

from diffusion_jax.build import ConfigError
from diffusion_jax.models.tae import TAE
from diffusion_jax.pretrained import export, package, systems, tae
from diffusion_jax.tasks.autoencoder import Autoencoder

SHARED = Path(__file__).parents[3] / "shared" / "data"
"""Beside a checkout: the published files, and pictures."""


class Half(NamedTuple):
    """Places in the row of modules of one half, in the official code."""

    length: int
    plain: tuple[int, ...]
    resizes: tuple[int, ...]
    blocks: tuple[int, ...]
    pooled: tuple[int, ...]


PUBLISHED = {
    "encoder": Half(15, (0, 2, 6, 10, 14), (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), (11, 12, 13)),
    "decoder": Half(20, (1, 7, 12, 17, 19), (7, 12, 17), (3, 4, 5, 8, 9, 10, 13, 14, 15, 18), (3, 4, 5)),
}
SMALL = {"encoder": Half(5, (0, 2, 4), (2,), (1, 3), (3,)), "decoder": Half(8, (1, 5, 7), (5,), (3, 6), (3,))}
"""The same with one level and one block on it."""


def official(latent=4, width=64, pool=False, seed=0, halves=None):
    """{half: state dict} of random numbers in the official keys and shapes."""
    rng, made = np.random.default_rng(seed), {}

    def drawn(*shape):
        return np.float32(rng.normal(0, 1, shape) * (np.prod(shape[1:]) if len(shape) > 1 else 25) ** -0.5)

    for half, places in (halves or PUBLISHED).items():
        first, last = {"encoder": ((width, 3), (latent, width)), "decoder": ((width, latent), (3, width))}[half]
        kernels = dict.fromkeys(places.plain, (width, width)) | {places.plain[0]: first, places.plain[-1]: last}
        weights = {f"{place}.weight": drawn(*kernel, 3, 3) for place, kernel in kernels.items()}
        weights |= {f"{place}.bias": drawn(kernel[0]) for place, kernel in kernels.items() if place not in places.resizes}
        for place in places.blocks:
            for i in (0, 2, 4):
                weights |= {f"{place}.conv.{i}.weight": drawn(width, width, 3, 3), f"{place}.conv.{i}.bias": drawn(width)}
        for place in places.pooled if pool else ():
            branch = f"{place}.pool"
            weights |= {f"{branch}.0.weight": drawn(4 * width, width, 1, 1), f"{branch}.3.weight": drawn(width, 4 * width, 1, 1),
                        f"{branch}.1.weight": 1 + drawn(4 * width), f"{branch}.1.bias": drawn(4 * width)}
        made[half] = weights
    return made


def saved(folder, halves, name="taesd"):
    """The two files in a folder."""
    for half, weights in halves.items():
        np.savez(folder / f"{name}_{half}.npz", **weights)
    return folder


def of_diffusers(halves):
    """The same weights in the keys of AutoencoderTiny, whose decoder has no tanh among its layers."""
    return {f"{half}.layers.{int(key.split('.')[0]) - (half == 'decoder')}.{key.partition('.')[2]}": w
            for half, weights in halves.items() for key, w in weights.items()}


# The reference ---------------------------------------------------------------------------------------------------------------


def conv(x, weight, bias=None, stride=1):
    """x [C, H, W] with a kernel [D, C, 3, 3] or [D, C, 1, 1], in float64."""
    pad = weight.shape[-1] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[-2:], (1, 2))[:, ::stride, ::stride]
    y = np.einsum("chwij,dcij->dhw", windows, np.float64(weight))
    return y if bias is None else y + np.float64(bias)[:, None, None]


def block(x, part):
    """A block of the official code, with a pool where it has one."""
    if "pool.0.weight" in part:
        h = conv(x, part["pool.0.weight"])
        groups = h.reshape(4, -1)
        h = ((groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)).reshape(h.shape)
        h = h * part["pool.1.weight"][:, None, None] + part["pool.1.bias"][:, None, None]
        x = x + conv(np.maximum(h, 0), part["pool.3.weight"])
    h = conv(x, part["conv.0.weight"], part["conv.0.bias"])
    h = conv(np.maximum(h, 0), part["conv.2.weight"], part["conv.2.bias"])
    return np.maximum(conv(np.maximum(h, 0), part["conv.4.weight"], part["conv.4.bias"]) + x, 0)


def row(half, places, weights, x):
    """The modules of one half in turn, on x [C, H, W]."""
    for place in range(places.length):
        part = {key.partition(".")[2]: w for key, w in weights.items() if key.split(".")[0] == str(place)}
        if "conv.0.weight" in part:
            x = block(x, part)
        elif part:
            x = conv(x, part["weight"], part.get("bias"), 2 if half == "encoder" and place in places.resizes else 1)
        elif place == 0:
            x = np.tanh(x / 3) * 3
        elif place == 2:
            x = np.maximum(x, 0)
        else:
            x = x.repeat(2, 1).repeat(2, 2)
    return x


@pytest.mark.parametrize("halves, pool", [
    (SMALL, True), pytest.param(PUBLISHED, True, marks=pytest.mark.slow), pytest.param(PUBLISHED, False, marks=pytest.mark.slow),
], ids=["small", "with_pools", "without_pools"])
def test_encoding_and_decoding_are_those_of_the_official_modules(halves, pool, tmp_path):
    weights = official(latent=5, width=8, pool=pool, halves=halves)
    page, params = systems.load("tae", saved(tmp_path, weights, "taef2"))
    assert (page["model"]["pool"], page["model"]["latent"], page["model"]["width"]) == (pool, 5, 8)
    factor = 2 ** len(halves["encoder"].resizes)
    task = task_of(page, (2 * factor, 3 * factor, 3))
    rng = np.random.default_rng(1)
    x, z = rng.uniform(-1, 1, (1, *task.shape)).astype(np.float32), 3 * rng.normal(size=(1, 2, 3, 5)).astype(np.float32)
    z_ref = row("encoder", halves["encoder"], weights["encoder"], (np.moveaxis(np.float64(x[0]), -1, 0) + 1) / 2)
    y_ref = 2 * row("decoder", halves["decoder"], weights["decoder"], np.moveaxis(np.float64(z[0]), -1, 0)) - 1
    np.testing.assert_allclose(jax.jit(task.encode)(params, x)[0], np.moveaxis(z_ref, 0, -1), atol=1e-5)
    np.testing.assert_allclose(jax.jit(task.decode)(params, z)[0], np.moveaxis(y_ref, 0, -1), atol=1e-5)
    assert z_ref.std() > 0.05 and y_ref.std() > 0.05


def task_of(page, shape):
    """The task of an imported page."""
    return Autoencoder(TAE(**{key: value for key, value in page["model"].items() if key != "name"}), shape)


# Files -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, latent, scale, shift", [
    ("taesd", 4, 0.18215, 0.0), ("taesdxl", 4, 0.13025, 0.0), ("taesd3", 16, 1.5305, 0.0609), ("taef1", 16, 0.3611, 0.1159),
    ("taef2", 32, 1.0, 0.0), ("", 4, 0.18215, 0.0), ("mine", 16, 1.0, 0.0),
])
def test_names_say_whose_latents_they_are(name, latent, scale, shift):
    assert tuple(tae._latents(name, latent, {})) == (scale, shift)
    assert tuple(tae._latents(name, latent, {"scaling_factor": 2, "shift_factor": -1})) == (2.0, -1.0)


def test_both_layouts_and_all_sources_are_the_same(tmp_path):
    halves = official(width=4)
    page, params = systems.load("tae", saved(tmp_path, halves))
    assert page["task"] == dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", shape=(256, 256, 3), scale=0.18215, shift=0.0)
    saved(tmp_path, official(width=4, seed=1), "taesdxl")
    np.savez(tmp_path / "taesd.npz", **of_diffusers(halves))
    hub = tmp_path / "hub"
    hub.mkdir()
    package.save_weights(hub / "diffusion_pytorch_model.safetensors", of_diffusers(halves))
    (hub / "config.json").write_text(json.dumps({"act_fn": "relu", "latent_channels": 4, "scaling_factor": 1.0}))
    for source in ("taesd_encoder.npz", "taesd_decoder.npz", "taesd.npz", "hub"):
        other, again = systems.load("tae", tmp_path / source)
        assert other == page
        same(params, again)
    package.save_weights(hub / "encoder.safetensors", halves["encoder"])
    package.save_weights(hub / "decoder.safetensors", halves["decoder"])
    same(params, systems.load("tae", hub)[1])


def test_what_is_no_tiny_autoencoder_is_refused(tmp_path):
    def says(message, source=tmp_path, official=None):
        with pytest.raises(ConfigError, match=message) as error:
            systems.load("tae", source, official)
        assert "\n" not in str(error.value)

    says("holds no taef2_encoder.pth or .safetensors: get both files")
    halves = official(width=4)
    saved(tmp_path, halves)
    saved(tmp_path, {"encoder": halves["encoder"]}, "taef1")
    says("holds the files of taef1, taesd: give the encoder's of one as --source")
    says("holds no taef1_decoder.pth", tmp_path / "taef1_encoder.npz")
    for half, key in (("encoder", "2.bias"), ("decoder", "20.weight")):                 # another row of modules
        strange = {**halves, half: halves[half] | {key: np.zeros(4, np.float32)}}
        saved(tmp_path, strange, "strange")
        says("left over: encoder/down_0_resize.bias|is no encoder and decoder of TAESD", tmp_path / "strange_encoder.npz")
    saved(tmp_path, {"encoder": halves["encoder"], "decoder": official(latent=16, width=4)["decoder"]}, "mixed")
    says("makes latents of 4 channels, the decoder reads 16: take files that belong together", tmp_path / "mixed_encoder.npz")
    saved(tmp_path, {"encoder": halves["encoder"], "decoder": official(width=4, pool=True)["decoder"]}, "mixed")
    says("the weights do not fit the model: left over: decoder/up_3_res_0.pool", tmp_path / "mixed_encoder.npz")
    for keys in (["weight"], ["encoder.0.weight", "encoder.2.weight", f"encoder.{10**15}.weight"]):
        np.savez(tmp_path / "other.npz", **dict.fromkeys(keys, np.zeros((1, 1, 3, 3))))
        says("is no encoder and decoder of TAESD", tmp_path / "other.npz")
    options = tmp_path / "options.json"
    for content, message in (({"scale": 1}, "unknown option of --official for system tae 'scale': known: scaling_factor"),
                             ({"scaling_factor": 0}, "divides latents: give another"), ({"shift_factor": "x"}, "is a number")):
        options.write_text(json.dumps(content))
        says(message, tmp_path / "taesd_encoder.npz", options)
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps({"act_fn": "silu"}))
    says("no network here has act_fn 'silu'", hub)


# The way back ----------------------------------------------------------------------------------------------------------------


def test_there_and_back(tmp_path):
    halves = official(latent=32, pool=True)
    page, params = systems.load("tae", saved(tmp_path, halves, "taef2"))
    written, back = there_and_back(tmp_path / "out", page, params, file="")
    assert back == page and "Encoder, Decoder" in written.code and "(32, use_midblock_gn=True)" in written.code
    for half, weights in halves.items():
        assert written.files[f"{half}.safetensors"].keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_array_equal(written.files[f"{half}.safetensors"][key], value, err_msg=key)
    encoded = page | {"task": page["task"] | {"scale": [1.5] * 32, "shift": [0.1] * 32}}
    assert export.package(page, params, "original").notes == () != export.package(encoded, params, "original").notes
    refused(page, params, "diffusers", "diffusers' AutoencoderTiny has no pool True, only False")
    refused(page | {"model": page["model"] | {"width": 8}}, params, "original", "TAESD has no width 8, only 64")
    refused(page | {"task": page["task"] | {"black": 0.0}}, params, "original", "takes -1 for black")


def test_a_folder_of_diffusers_comes_back(tmp_path):
    halves = official(width=8)
    page, params = systems.load("tae", saved(tmp_path, halves))
    written = export.package(page, params, "diffusers")
    assert written.files["config.json"]["num_decoder_blocks"] == [3, 3, 3, 1] and written.command.split()[-3] == "FOLDER"
    assert written.files["diffusion_pytorch_model.safetensors"].keys() == of_diffusers(halves).keys()
    package.write(tmp_path / "out", written.files)
    back, again = systems.load("tae", tmp_path / "out")
    assert back == page
    same(params, again)


@pytest.mark.slow
def test_diffusers_sees_the_same(tmp_path):
    torch, _ = (pytest.importorskip(name) for name in ("torch", "diffusers"))
    page, params = systems.load("tae", saved(tmp_path, official(width=8)))
    written = export.package(page, params, "diffusers")
    package.write(tmp_path / "out", written.files)
    names: dict = {}
    exec(written.code.replace("FOLDER", str(tmp_path / "out")), names)
    task, rng = task_of(page, (16, 24, 3)), np.random.default_rng(0)
    image, u = rng.uniform(-1, 1, (1, 16, 24, 3)).astype(np.float32), rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    with torch.no_grad():
        theirs = names["vae"].encode(channels_first(image)).latents, names["vae"].decode(channels_first(u)).sample
    # What diffusers' autoencoder makes and takes is u, for its own scaling_factor is 1.
    scale = page["model"]["scale"]
    np.testing.assert_allclose(task.encode(params, image) * scale, channels_last(theirs[0]), atol=1e-5)
    np.testing.assert_allclose(task.decode(params, u / scale), channels_last(theirs[1]), atol=1e-5)


# The published files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taef2():
    """(task, params, the two state dicts of torch) of the published TAEF2."""
    torch = pytest.importorskip("torch")
    files = {half: SHARED / "weights" / f"taef2_{half}.pth" for half in PUBLISHED}
    if not all(map(Path.is_file, files.values())):
        pytest.skip(f"{SHARED / 'weights'} is not here")
    page, params = systems.load("tae", SHARED / "weights")
    return task_of(page, (256, 256, 3)), params, {half: torch.load(file, weights_only=True) for half, file in files.items()}


def pictures(num):
    """The first pictures of ImageNet's classes, uint8 [num, 256, 256, 3]."""
    from PIL import Image

    archive = SHARED / "imagenet_samples256" / "images256.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is not here")
    with zipfile.ZipFile(archive) as files:
        names = sorted(files.namelist())[:num]
        return np.stack([np.asarray(Image.open(io.BytesIO(files.read(name))).convert("RGB")) for name in names])


@pytest.mark.slow
def test_the_published_taef2_restores_pictures(taef2):
    task, params, _ = taef2
    images = pictures(16)
    restored = jax.jit(lambda params, x: task.decode(params, task.encode(params, x)))(params, np.float32(images / 127.5 - 1))
    error = np.clip((np.asarray(restored) + 1) / 2, 0, 1) - images / 255
    assert 29.9 < np.mean(-10 * np.log10(np.square(error).mean((1, 2, 3)))) < 29.94


@pytest.mark.slow
def test_the_published_taef2_is_torchs(taef2):
    """In float32 no further from float64 than torch's own float32 is; some pictures' norms are ill-conditioned."""
    import torch
    import torch.nn.functional as F

    task, params, weights = taef2

    def block(x, part):
        if "pool.0.weight" in part:
            h = F.group_norm(F.conv2d(x, part["pool.0.weight"]), 4, part["pool.1.weight"], part["pool.1.bias"])
            x = x + F.conv2d(F.relu(h), part["pool.3.weight"])
        h = x
        for i in (0, 2, 4):
            h = F.conv2d(F.relu(h) if i else h, part[f"conv.{i}.weight"], part[f"conv.{i}.bias"], padding=1)
        return F.relu(h + x)

    def torch_row(half, x, dtype):
        x, places = torch.tensor(x, dtype=dtype).movedim(-1, 1), PUBLISHED[half]
        for place in range(places.length):
            part = {key.partition(".")[2]: w.to(dtype) for key, w in weights[half].items() if key.split(".")[0] == str(place)}
            if "conv.0.weight" in part:
                x = block(x, part)
            elif part:
                stride = 2 if half == "encoder" and place in places.resizes else 1
                x = F.conv2d(x, part["weight"], part.get("bias"), stride, 1)
            else:
                x = torch.tanh(x / 3) * 3 if place == 0 else F.relu(x) if place == 2 else F.interpolate(x, scale_factor=2)
        return x.movedim(1, -1).numpy()

    images = pictures(4)[:, 64:192, 64:192]
    latents = torch_row("encoder", images / 255, torch.float64)
    decoded = (jax.jit(task.decode)(params, np.float32(latents)) + 1) / 2
    encoded = jax.jit(task.encode)(params, np.float32(images / 127.5 - 1))
    for half, x, ours in (("encoder", images / 255, encoded), ("decoder", latents, decoded)):
        reference = torch_row(half, x, torch.float64)
        theirs = np.abs(torch_row(half, x, torch.float32) - reference).max((1, 2, 3))
        assert (np.abs(ours - reference).max((1, 2, 3)) <= 1e-5 + 2 * theirs).all(), half
