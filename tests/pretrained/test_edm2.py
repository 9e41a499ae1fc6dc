"""EDM2's options and layouts. The published pickles are in test_persistent.py, the numbers are goldens."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import edm2
from diffusion_jax.pretrained.rules import structs
from diffusion_jax.train.state import task_of

OFFICIAL = dict(img_resolution=64, img_channels=4, label_dim=1000, model_channels=192)
"""Of EDM2-S for ImageNet of 512 pixels."""


def test_a_block_is_named_by_its_level():
    for key, ours in (
        ("unet.enc.64x64_conv.weight", "unet.enc_0_conv.weight"), ("unet.enc.32x32_down.emb_gain", "unet.enc_1_down.emb_gain"),
        ("unet.dec.8x8_in0.conv_res0.weight", "unet.dec_3_in0.conv_res0.weight"), ("unet.out_gain", "unet.out_gain"),
    ):
        assert edm2.rename(key, 64) == ours


def test_queries_keys_and_values_of_a_head_lie_together_in_the_file():
    """Two heads of three channels: row (head * 3 + channel) * 3 + part."""
    weight = np.random.default_rng(0).normal(size=(18, 6, 1, 1))
    ours = edm2.QKV.ours(weight)
    assert ours.shape == (6, 18)
    for part in range(3):
        for head in range(2):
            for channel in range(3):
                row = weight[(head * 3 + channel) * 3 + part, :, 0, 0]
                np.testing.assert_array_equal(ours[:, part * 6 + head * 3 + channel], row)
    np.testing.assert_array_equal(edm2.QKV.official(ours, weight.shape), weight)


def test_options_of_the_constructor_become_the_modules():
    model, cond, uncertainty = edm2.modules(OFFICIAL)
    assert (model.attend, model.head_channels, model.mults) == ((4, 8), 64, (1, 2, 3, 4))       # sides of 16 and 8
    assert (cond.num_classes, cond.width, uncertainty.features) == (1000, 768, 128)
    assert edm2.config(OFFICIAL | {"label_dim": 0})[1] == {}
    for key in OFFICIAL:
        with pytest.raises(ConfigError, match=f"the official options lack '{key}'"):
            edm2.config({name: value for name, value in OFFICIAL.items() if name != key})


@pytest.mark.parametrize(("channels", "mean", "std"), [(4, -0.4, 1.0), (3, -0.8, 1.6)])
def test_the_page_draws_noise_as_published_for_latents_or_pixels(channels, mean, std):
    page = edm2.page(edm2.DEFAULTS | OFFICIAL | {"img_channels": channels})
    times = build(page["task"]["times"])
    assert (times.mean, times.std) == (mean, std) and task_of(page).forced and page["sample"]["sampler"] == "edm"


def test_a_state_dict_tells_its_options_by_names_and_shapes():
    """Two levels of 16 and 32 channels, one block each, attention at the lower one."""
    shapes = {
        "unet.enc.8x8_conv.weight": (16, 4, 3, 3), "unet.out_conv.weight": (3, 16, 3, 3), "unet.emb_noise.weight": (32, 16),
        "unet.emb_label.weight": (32, 10), "logvar_linear.weight": (1, 24), "unet.enc.4x4_block0.attn_qkv.weight": (96, 32, 1, 1),
    }
    for side, width in ((8, 16), (4, 32)):
        shapes |= {f"unet.enc.{side}x{side}_block0.conv_res0.weight": (width, width, 3, 3),
                   f"unet.enc.{side}x{side}_block0.emb_gain": ()}
    assert edm2.options(structs(shapes)) == dict(
        img_resolution=8, img_channels=3, model_channels=16, label_dim=10, channel_mult=[1, 2], channel_mult_noise=1,
        channel_mult_emb=2, num_blocks=1, attn_resolutions=[4], logvar_channels=24)
    with pytest.raises(ConfigError, match="no state dict of an EDM2 network"):
        edm2.options(structs({"unet.out_conv.weight": (1,)}))


def test_shapes_of_the_parameters_are_had_without_numbers():
    small = dict(img_resolution=8, label_dim=4, model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    shapes = edm2.shapes(*edm2.modules(OFFICIAL | small))
    assert shapes["cond"]["emb"]["weight"].shape == (4, 8)
    assert {type(leaf) for leaf in jax.tree.leaves(shapes)} == {jax.ShapeDtypeStruct}
