"""Names and options of latent diffusion's UNets in both layouts, by the rule that diffusers converts them with."""
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import ldm_unet
from diffusion_jax.pretrained.rules import structs

OPTIONS = {
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "attention_head_dim": 8, "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
"""Of Stable Diffusion 1's unet/config.json."""
STABLE = {"model_channels": 320, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "num_heads": 8,
          "use_spatial_transformer": True, "num_res_blocks": 2, "in_channels": 4, "out_channels": 4, "image_size": 64}
"""Of its v1-inference.yaml."""
RES = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
       "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}


def pairs():
    """(CompVis's key, that of diffusers) of every block of Stable Diffusion 1, counted as diffusers' script does."""
    for level in range(4):
        for i in range(2):
            here = 3 * level + i + 1
            yield f"input_blocks.{here}.0", f"down_blocks.{level}.resnets.{i}"
            if level < 3:
                yield f"input_blocks.{here}.1", f"down_blocks.{level}.attentions.{i}"
        if level < 3:
            yield f"input_blocks.{3 * level + 3}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        for i in range(3):
            yield f"output_blocks.{3 * level + i}.0", f"up_blocks.{level}.resnets.{i}"
            if level:
                yield f"output_blocks.{3 * level + i}.1", f"up_blocks.{level}.attentions.{i}"
        if level < 3:
            yield f"output_blocks.{3 * level + 2}.{2 if level else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv"
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"),
                ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))


def test_both_layouts_have_the_same_blocks():
    model = build(ldm_unet.config(STABLE)[0])
    compvis, diffusers = {}, {}
    for number, (one, other) in enumerate(pairs()):
        inner = RES.items() if "resnets" in other else [("", "")]
        for name, theirs in inner:
            compvis[".".join(filter(None, (one, name, "weight")))] = (number, name)
            diffusers[".".join(filter(None, (other, theirs, "weight")))] = (number, name)
    ours = ldm_unet.renamed(compvis, model)
    assert ldm_unet.renamed(diffusers, model) == ours and len(ours) == len(compvis) > 100
    assert not [key for key in ours if "blocks." in key]


def test_both_configs_of_stable_diffusion_1_are_one_network():
    one, label = ldm_unet.config(STABLE)
    other, same = ldm_unet.diffusers_config(OPTIONS)
    assert build(one) == build(other) and label == same
    network = build(other)
    assert isinstance(network, UNet) and (network.attend, network.transformer, network.heads) == ((1, 2, 4), 1, 8)


@pytest.mark.parametrize(("change", "option"), [
    ({"only_cross_attention": True}, "only_cross_attention"), ({"act_fn": "gelu"}, "act_fn"), ({"norm_eps": 1e-6}, "norm_eps"),
    ({"freq_shift": 1}, "time embedding"), ({"addition_embed_type": "text_time"}, "class_embed_type"),
    ({"layers_per_block": [2, 2, 2, 2]}, "layers_per_block"), ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
    ({"transformer_layers_per_block": [1, [2, 2], 1, 1]}, "transformer_layers_per_block"),
])
def test_what_no_network_here_has_is_named(change, option):
    with pytest.raises(ConfigError, match=f"no network here has the {option} of this unet/config.json"):
        ldm_unet.diffusers_config(OPTIONS | change)


def test_heads_of_one_width_are_told_from_heads_of_one_number():
    """Stable Diffusion 2: 5, 10, 20, 20 heads of 64 channels."""
    network = build(ldm_unet.diffusers_config(OPTIONS | {"attention_head_dim": [5, 10, 20, 20]})[0])
    assert (network.head_channels, network.heads) == (64, 1)


@pytest.mark.parametrize(("width", "tokens", "heads"), [(320, 768, 8), (192, 512, 1), (256, 0, 8)])
def test_a_published_network_is_told_by_its_width_and_its_tokens(width, tokens, heads):
    shapes = {"time_embed.0.weight": (4 * width, width), "input_blocks.0.0.weight": (width, 7, 3, 3),
              "out.2.weight": (3, width, 3, 3)}
    attention = {"middle_block.1.transformer_blocks.0.attn2.to_k.weight": (width, tokens)} if tokens else {}
    options = ldm_unet.published(structs(shapes | attention))
    assert (options["model_channels"], options["in_channels"], options["out_channels"]) == (width, 7, 3)
    assert options["num_heads"] == heads
    with pytest.raises(ConfigError, match="no published latent diffusion model"):
        ldm_unet.published(structs(shapes | {"time_embed.0.weight": (4, 13)}))
