"""Karlo's two layouts: one prior in both, and the options that each of them tells. The numbers are goldens."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.prior import Prior
from diffusion_jax.models.unclip import ImageText
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import unclip
from diffusion_jax.pretrained.rules import structs

RNG = np.random.default_rng(0)
MODEL = Prior(features=3, context=2, width=8, layers=1, heads=2)
SHARED = {          # key of the original layout, of diffusers', shape of the weight; biases as long
    "text_enc_proj": ("encoder_hidden_states_proj", (8, 5)), "text_emb_proj": ("embedding_proj", (8, 3)),
    "clip_img_proj": ("proj_in", (8, 3)), "time_embed.0": ("time_embedding.linear_1", (8, 8)),
    "time_embed.2": ("time_embedding.linear_2", (8, 8)), "out_proj": ("proj_to_clip_embeddings", (3, 8)),
    "final_ln": ("norm_out", (8,)),
    "transformer.resblocks.0.ln_1": ("transformer_blocks.0.norm1", (8,)),
    "transformer.resblocks.0.ln_2": ("transformer_blocks.0.norm3", (8,)),
    "transformer.resblocks.0.attn.c_proj": ("transformer_blocks.0.attn1.to_out.0", (8, 8)),
    "transformer.resblocks.0.mlp.c_fc": ("transformer_blocks.0.ff.net.0.proj", (32, 8)),
    "transformer.resblocks.0.mlp.c_proj": ("transformer_blocks.0.ff.net.2", (8, 32)),
}


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def both_layouts():
    """The same prior twice; the original layout has q, k and v of a head side by side."""
    position, query = draw(1, 6, 8), draw(1, 1, 8)
    original = {"positional_embedding": position, "prd_emb": query}
    diffusers = {"positional_embedding": position, "prd_embedding": query, "clip_mean": draw(1, 3), "clip_std": draw(1, 3)}
    for one, (other, shape) in SHARED.items():
        for end, value in (("weight", draw(*shape)), ("bias", draw(shape[0]))):
            original[f"{one}.{end}"] = diffusers[f"{other}.{end}"] = value
    for end, shape in (("weight", (8, 8)), ("bias", (8,))):
        q, k, v = (draw(*shape) for _ in range(3))
        diffusers |= {f"transformer_blocks.0.attn1.to_{name}.{end}": part for name, part in zip("qkv", (q, k, v), strict=True)}
        rows = [part[4 * head : 4 * head + 4] for head in range(2) for part in (q, k, v)]
        original[f"transformer.resblocks.0.attn.c_qkv.{end}"] = np.concatenate(rows)
    return {f"model.{key}": value for key, value in original.items()}, diffusers


def test_one_prior_in_both_layouts():
    original, diffusers = both_layouts()
    params = unclip.convert_prior(diffusers, MODEL)
    jax.tree.map(np.testing.assert_array_equal, unclip.convert_prior(original, MODEL), params)
    q = diffusers["transformer_blocks.0.attn1.to_q.weight"].T
    np.testing.assert_array_equal(params["transformer"]["blocks_0"]["qkv"]["kernel"][:, :8], q)
    with pytest.raises(ConfigError, match="left over: more"):
        unclip.convert_prior(diffusers | {"more": draw(1)}, MODEL)


def test_a_published_prior_tells_its_size_in_both_layouts():
    """Karlo's: 77 tokens and four places more, heads of 64 channels."""
    want = dict(features=768, context=77, layers=20, heads=32, width=2048)
    row = {"positional_embedding": (1, 81, 2048)}
    original = row | {"clip_img_proj.weight": (2048, 768), "transformer.resblocks.19.ln_1.weight": (2048,)}
    diffusers = row | {"proj_in.weight": (2048, 768), "transformer_blocks.19.norm1.weight": (2048,)}
    for shapes in (original, {f"model.{key}": shape for key, shape in original.items()}, diffusers):
        assert unclip.prior_published(structs(shapes)) == want
    official = dict(clip_dim=768, text_ctx=77, xf_layers=20, xf_heads=32, xf_width=2048)
    folder = dict(embedding_dim=768, num_embeddings=77, num_layers=20, num_attention_heads=32, attention_head_dim=64)
    assert Prior(**unclip.prior_config(official)) == Prior(**unclip.prior_config(folder)) == Prior(**want)


def test_three_weights_become_one_and_two_another():
    parts = {f"a.to_{name}.weight": np.full((2, 3), i) for i, name in enumerate("qkv")}
    added = {f"a.add_{name}_proj.bias": np.full(2, i) for i, name in enumerate("kv")}
    merged = unclip.merged(parts | added | {"a.to_out.0.weight": np.ones(1), "bare": np.ones(1)})
    assert set(merged) == {"a.qkv.weight", "a.encoder_kv.bias", "a.to_out.0.weight", "bare"}
    assert merged["a.qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2] and merged["a.encoder_kv.bias"].tolist() == [0, 0, 1, 1]


def test_the_decoders_hparams_of_both_layouts():
    official = dict(num_channels=320, num_res_blocks=3, image_size=64, attention_resolutions="32,16,8", num_head_channels=64,
                    resblock_updown=True)
    folder = dict(
        block_out_channels=[320, 640, 960, 1280], layers_per_block=3, out_channels=6, attention_head_dim=64,
        resnet_time_scale_shift="scale_shift",
        down_block_types=["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3)
    one, other = (UNet(**unclip.unet_config(options)) for options in (official, folder))
    for name in ("width", "mults", "depth", "attend", "head_channels", "scale_shift", "learn_sigma"):
        assert getattr(one, name) == getattr(other, name), name
    small = UNet(**unclip.unet_config(dict(channels=320, channels_multiple=[1, 2, 3, 4], depth=3)))
    assert (small.attend, small.learn_sigma, small.mid_attention) == ((), False, False)


def test_the_conditioners_hparams_of_both_layouts():
    official = dict(clip_dim=768, num_channels=320, xf_width=1536, clip_emb_mult=10)
    folder = dict(clip_embeddings_dim=768, time_embed_dim=1280, cross_attention_dim=1536, clip_extra_context_tokens=10)
    assert ImageText(**unclip.cond_config(official)) == ImageText(**unclip.cond_config(folder))
