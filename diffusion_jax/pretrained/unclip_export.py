"""unCLIP's networks under their names in Karlo's files and in diffusers': the way back of pretrained/unclip.py.

Where query, key and value were joined they are parted again: diffusers has a matrix for each, Karlo those of a head side by side.
Either program has options that ours have not, and the other way round: each function here refuses what its class cannot be.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusion_jax.models.prior import OTHERS, Prior
from diffusion_jax.models.unclip import ImageText, Relay
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import adm_export, ldm_unet, names, rules, unclip
from diffusion_jax.pretrained.package import Spec, only, refuse
from diffusion_jax.types import Array, Params

TITLE = "Karlo's own code"
PRIOR, UNET, LARGE = "diffusers' PriorTransformer", "diffusers' UNet2DConditionModel", "diffusers' UNet2DModel"
BOTTOM = 8
"""Pixels of a side of the lowest level of Karlo's decoders, whatever their size."""
RANKS = {r".*\.skip_connection\.weight": 4}
"""Of diffusers' layout, whose attention has matrices; see `names.shapes`."""
DROPPED = 0.1
"""How often Karlo's decoder was trained without an embedding: without such a rate its class has no `cf_param`."""


# The weights ----------------------------------------------------------------------------------------------------------------


def prior_weights(params: Params, model: Prior, diffusers: bool) -> dict[str, Array]:
    """A prior's parameters under their names in a layout, without the statistics of embeddings."""
    table = unclip.prior_table(model, diffusers)
    state_dict = rules.revert(params, table, names.shapes(params, table))
    return unclip.parted(state_dict) if diffusers else {f"model.{key}": value for key, value in state_dict.items()}


def unet_weights(params: Params, model: UNet, diffusers: bool) -> dict[str, Array]:
    """The parameters {'model': ...} of a network, {'cond': ...} of a conditioner, or both, under their names in a layout."""
    table = unclip.table(model, diffusers)
    shapes = names.shapes(params, table, RANKS if diffusers else adm_export.RANKS, fixes=adm_export.FIXES)
    state_dict = rules.revert(params, table, shapes)
    if diffusers:
        return unclip.parted({_diffusers_name(key, model): value for key, value in state_dict.items()})
    official = adm_export.official_names(state_dict, model)
    # Karlo numbers the blocks that there are.
    return official if model.mid_attention else {re.sub(r"^middle_block\.2\.", "middle_block.1.", key): value
                                                 for key, value in official.items()}


def _diffusers_name(key: str, model: UNet) -> str:
    """A key whose block has our name under diffusers' name."""
    return re.sub(r"^down_(\d+)_resize\.", r"down_blocks.\1.downsamplers.0.", ldm_unet.diffusers_name(key, model))


# The options of Karlo's classes ---------------------------------------------------------------------------------------------


def prior_hparams(model: Prior, params: Params, drop: Mapping[str, float]) -> Spec:
    """Those of PriorDiffusionModel."""
    _states(TITLE, params, model.features)
    return dict(text_ctx=model.context, xf_width=model.width, xf_layers=model.layers, xf_heads=model.heads,
                xf_final_ln=model.norm, clip_dim=model.features, text_drop=drop.get("with_text", 0.0))


def decoder_hparams(model: UNet, cond: ImageText, params: Params, side: int, drop: Mapping[str, float]) -> Spec:
    """Those of Text2ImProgressiveModel, for images of side x side; `params` are the conditioner's."""
    _unet(TITLE, model, channels=3, groups=32, mid_attention=True)
    _states(TITLE, params, cond.features)
    bottom = side / 2 ** (len(model.mults) - 1)
    refuse(TITLE, {
        f"has whole multiples of its width (model.mults), not {model.mults}": any(mult != int(mult) for mult in model.mults),
        f"halves images down to {BOTTOM} pixels (model.mults), not to {bottom:g}": bottom != BOTTOM,
        "changes sizes with layers (model.resample)": model.resample == "pool",
        "attends on a level (model.attend)": not model.attend,
    })
    return dict(
        image_size=side, num_channels=model.width, num_res_blocks=model.depth,
        channel_mult=",".join(f"{mult:g}" for mult in model.mults),
        attention_resolutions=",".join(str(side // factor) for factor in model.attend), num_heads=model.heads,
        num_head_channels=model.head_channels or -1, num_heads_upsample=-1, use_scale_shift_norm=model.scale_shift,
        dropout=model.dropout, clip_dim=cond.features, clip_emb_mult=cond.tokens, xf_width=cond.width,
        resblock_updown=model.resample == "res", learn_sigma=model.learn_sigma, text_drop=drop.get("with_text", 0.0),
        clip_emb_type="image", clip_emb_drop=drop.get("with_image") or DROPPED,
    )


def super_hparams(relay: Relay) -> Spec:
    """Those of ImprovedSupRes64to256ProgressiveModel."""
    model = relay.first
    _relay(TITLE, relay, channels=3, groups=32, scale_shift=False, resample="res")
    refuse(TITLE, {"has two networks with the same options (model.first, model.last)": relay.first != relay.last})
    return dict(channels=model.width, depth=model.depth, channels_multiple=list(model.mults), dropout=model.dropout)


# The options of diffusers' classes ------------------------------------------------------------------------------------------


def prior_config(model: Prior, params: Params) -> Spec:
    """Those of PriorTransformer."""
    only(PRIOR, model, norm=True)
    _states(PRIOR, params, model.features)
    return dict(
        _class_name="PriorTransformer", num_attention_heads=model.heads, attention_head_dim=model.width // model.heads,
        num_layers=model.layers, embedding_dim=model.features, num_embeddings=model.context, additional_embeddings=OTHERS,
        dropout=0.0,
    )


def decoder_config(model: UNet, cond: ImageText, side: int) -> Spec:
    """Those of UNet2DConditionModel, for images of side x side."""
    _unet(UNET, model, mid_attention=True, resample="res")
    _first_level(UNET, model)
    widths = [model.channels_at(level) for level in range(len(model.mults))]
    attends = [model.attends(level) for level in range(len(widths))]
    heads = {width // model.heads_for(width, model.heads)
             for width, attending in zip(widths, [*attends[:-1], True], strict=True) if attending}
    refuse(UNET, {f"has heads of one size on all levels (model.head_channels), not of {sorted(heads)}": len(heads) > 1})
    down = ["SimpleCrossAttnDownBlock2D" if attending else "ResnetDownsampleBlock2D" for attending in attends]
    up = ["SimpleCrossAttnUpBlock2D" if attending else "ResnetUpsampleBlock2D" for attending in reversed(attends)]
    return dict(
        _class_name="UNet2DConditionModel", sample_size=side, in_channels=model.channels,
        out_channels=model.channels * (1 + model.learn_sigma), block_out_channels=widths, down_block_types=down,
        up_block_types=up, mid_block_type="UNetMidBlock2DSimpleCrossAttn", layers_per_block=model.depth,
        attention_head_dim=heads.pop(), cross_attention_dim=cond.width, class_embed_type="identity", **_shared(model),
    )


def text_config(cond: ImageText, params: Params) -> Spec:
    """Those of UnCLIPTextProjModel."""
    title = "diffusers' UnCLIPTextProjModel"
    _states(title, params, cond.features)
    return dict(_class_name="UnCLIPTextProjModel", clip_embeddings_dim=cond.features, clip_extra_context_tokens=cond.tokens,
                time_embed_dim=cond.out, cross_attention_dim=cond.width)


def super_config(relay: Relay, model: UNet, side: int) -> Spec:
    """Those of UNet2DModel for one of the two networks, for images of side x side."""
    _relay(LARGE, relay, resample="res")
    _first_level(LARGE, model)
    levels = len(model.mults)
    return dict(
        _class_name="UNet2DModel", sample_size=side, in_channels=2 * model.channels, out_channels=model.channels,
        block_out_channels=[model.channels_at(level) for level in range(levels)],
        down_block_types=["ResnetDownsampleBlock2D"] * levels, up_block_types=["ResnetUpsampleBlock2D"] * levels,
        layers_per_block=model.depth, add_attention=False, **_shared(model),
    )


def _shared(model: UNet) -> Spec:
    """What both classes of UNets have."""
    return dict(
        norm_num_groups=model.groups, dropout=model.dropout, act_fn="silu", norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0,
        resnet_time_scale_shift="scale_shift" if model.scale_shift else "default",
    )


# What they have in common ---------------------------------------------------------------------------------------------------


def _unet(title: str, model: Any, **values: Any) -> None:
    """Refuses what no UNet of an unCLIP is, and other values than these."""
    only(title, model, ddpm=False, attention="softmax", transformer=0, codes=0, out_channels=None, heads_up=None, **values)


def _relay(title: str, relay: Relay, **values: Any) -> None:
    """Refuses what the networks of super-resolution are not."""
    only(title, relay, until=0.0)
    for model in (relay.first, relay.last):
        _unet(title, model, attend=(), mid_attention=False, learn_sigma=False, **values)


def _first_level(title: str, model: UNet) -> None:
    """Refuses a network that embeds times in other channels than those of its first level."""
    refuse(title, {f"embeds times in the channels of the first level (model.mults begins with 1), mults are {model.mults}":
                   model.channels_at(0) != model.width})


def _states(title: str, params: Params, features: int) -> None:
    """Refuses texts whose tokens have other channels than their embedding; `params` hold the layer that reads them."""
    width = params["text_seq"]["kernel"].shape[0]
    refuse(title, {f"reads texts whose tokens have as many channels as their embedding, {features}, these have {width} (the "
                   "CLIP's text.width)": width != features})
