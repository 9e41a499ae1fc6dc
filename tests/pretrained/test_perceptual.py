"""The files of LPIPS, whose layers are numbered in one row, and those of the patch discriminator. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.lpips import LPIPS
from diffusion_jax.pretrained import perceptual

RNG = np.random.default_rng(0)
NUMBERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Of the convolutions among all layers of torchvision's vgg16().features, by stage."""
WIDTHS = (2, 4, 8, 16, 16)
MODEL = LPIPS(width=2)


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
