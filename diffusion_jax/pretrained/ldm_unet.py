"""The UNets of latent diffusion and Stable Diffusion as our UNet, and their conditioners that are trained with them.

CompVis's files number the blocks of the network in one row, as ADM's do (pretrained/adm.py); diffusers counts them by level, from
the other end on the way up. Both are renamed to our blocks, 'down_1_attn_0' for example, then ADM's table serves both with the
rules of the spatial transformer added. Its projections are convolutions over single pixels or linear layers: the same numbers.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Nothing
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import adm, rules
from diffusion_jax.pretrained.folder import checked
from diffusion_jax.pretrained.rules import POINT, TRANSPOSE, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

NETWORK = "diffusion_jax.models.unet:UNet"


_BLOCK = r"(\w+_attn\w*)\.transformer_blocks\.(\d+)"
_OURS = r"model/\1/block_\2"
TRANSFORMER = [
    *layer(r"(\w+_attn\w*)\.proj_in", r"model/\1/proj_in", POINT),
    Rule(rf"{_BLOCK}\.attn(1|2)\.to_(q|k|v)\.weight", rf"{_OURS}/attn\3/\4/kernel", TRANSPOSE),
    *layer(rf"{_BLOCK}\.attn(1|2)\.to_out\.0", rf"{_OURS}/attn\3/out"),
    *layer(rf"{_BLOCK}\.ff\.net\.0\.proj", rf"{_OURS}/ff_in"),
    *layer(rf"{_BLOCK}\.ff\.net\.2", rf"{_OURS}/ff_out"),
    *norm(rf"{_BLOCK}\.norm(1|2|3)", rf"{_OURS}/norm\3"),
    Rule(r"time_embed\.cond_proj\.weight", "model/time/guidance/kernel", TRANSPOSE),
    *norm(r"id_predictor\.0", "model/final_norm"),
    *layer(r"id_predictor\.1", "model/final_linear", POINT),
]
LAYERS = (
    (r"\.norm1\.(weight|bias)$", r".in_layers.0.\1"), (r"\.conv1\.", ".in_layers.2."), (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.(weight|bias)$", r".out_layers.0.\1"), (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_NAMES = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."), (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^time_embedding\.cond_proj\.", "time_embed.cond_proj."),
    (r"^conv_in\.", "stem."), (r"^conv_norm_out\.", "out.0."), (r"^conv_out\.", "out.2."), (r"^class_embedding\.", "label_emb."),
    (r"^mid_block\.resnets\.", "mid_res_"), (r"^mid_block\.attentions\.0\.", "mid_attn."),
    (r"^(down|up)_blocks\.(\d+)\.resnets\.", r"\1_\2_res_"), (r"^(down|up)_blocks\.(\d+)\.attentions\.", r"\1_\2_attn_"),
    (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv\.", r"down_\1_resize.op."),
    (r"^up_blocks\.(\d+)\.upsamplers\.0\.", r"up_\1_resize."),
)


def renamed(keys: Mapping[str, Any], model: UNet) -> dict[str, Any]:
    """A state dict (of arrays or shapes), of either layout, whose blocks have our names."""
    if "conv_in.weight" not in keys:
        return adm.rename(keys, model)
    last = len(model.mults) - 1

    def ours(key: str) -> str:
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        if re.match(r"\w+_res_\d+\.", key):
            for pattern, name in LAYERS:
                key = re.sub(pattern, name, key)
        return re.sub(r"^up_(\d+)", lambda m: f"up_{last - int(m[1])}", key)

    return {ours(key): value for key, value in keys.items()}


_BACK = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."), (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^time_embed\.cond_proj\.", "time_embedding.cond_proj."),
    (r"^stem\.", "conv_in."), (r"^out\.0\.", "conv_norm_out."), (r"^out\.2\.", "conv_out."),
    (r"\.in_layers\.0\.", ".norm1."), (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."), (r"\.out_layers\.0\.", ".norm2."), (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."), (r"^mid_res_(\d)\.", r"mid_block.resnets.\1."),
    (r"^mid_attn\.", "mid_block.attentions.0."), (r"^(down|up)_(\d+)_res_(\d+)\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)_(\d+)_attn_(\d+)\.", r"\1_blocks.\2.attentions.\3."),
    (r"^down_(\d+)_resize\.op\.", r"down_blocks.\1.downsamplers.0.conv."), (r"^up_(\d+)_resize\.", r"up_blocks.\1.upsamplers.0."),
)


def diffusers_name(key: str, model: UNet) -> str:
    """A key whose block has our name under diffusers' name: the inverse of `renamed`."""
    last = len(model.mults) - 1
    key = re.sub(r"^up_(\d+)", lambda match: f"up_{last - int(match[1])}", key)
    for pattern, name in _BACK:
        key = re.sub(pattern, name, key)
    return key


def config(official: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to `build` the network, and the conditioner of its class labels, from.

    Args:
      official: the options of CompVis's UNetModel; those left out have its defaults.

    Raises:
      ConfigError: an option that has no counterpart here.
    """
    o = dict(official)
    if o.get("dims", 2) != 2 or not isinstance(o["num_res_blocks"], int):
        raise ConfigError("no network here has these options: dims is 2, num_res_blocks one number")
    model, label = adm.config(o | {"in_channels": o["out_channels"]})
    model |= outputs(o["in_channels"], o["out_channels"])
    depth = o.get("transformer_depth", 1) if o.get("use_spatial_transformer") else 0
    return model | {"transformer": depth, "codes": o.get("n_embed") or 0}, label


def outputs(channels: int, out: int) -> dict[str, Any]:
    """The options of a UNet with so many channels in and out; those in that it does not predict are a picture's behind x."""
    plain = dict(channels=min(channels, out), learn_sigma=False)
    return plain if out <= channels else plain | {"out_channels": out}


PLAIN = {
    "dual_cross_attention": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None, "time_embedding_act_fn": None, "timestep_post_act": None,
    "cross_attention_norm": None, "projection_class_embeddings_input_dim": None,
    "class_embeddings_concat": False, "mid_block_only_cross_attention": False, "attention_type": "default",
    "mid_block_type": "UNetMidBlock2DCrossAttn", "reverse_transformer_layers_per_block": None, "addition_time_embed_dim": None,
}
"""Options of diffusers' UNet2DConditionModel with their only value here."""
READ = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block",
    "attention_head_dim", "num_attention_heads", "center_input_sample", "mid_block_scale_factor", "flip_sin_to_cos", "freq_shift",
    "only_cross_attention", "class_embed_type", "addition_embed_type", "addition_embed_type_num_heads", "norm_eps", "act_fn",
    "resnet_time_scale_shift", "downsample_padding", "transformer_layers_per_block", "dropout", "norm_num_groups",
    "num_class_embeds", "cross_attention_dim", "use_linear_projection", "upcast_attention",
    "time_cond_proj_dim",
)
"""Options that are read here or off the weights; upcast_attention is of half precision."""


def diffusers_config(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What to `build` the network of a diffusers unet/config.json, and the conditioner of its class labels, from.

    Raises:
      ConfigError: an option that has no counterpart here.
    """
    o = options
    checked(o, PLAIN, READ, "unet/config.json")
    widths = o["block_out_channels"]
    down = list(o["down_block_types"])
    up = list(o["up_block_types"])
    attends = [kind == "CrossAttnDownBlock2D" for kind in down]
    heads = o.get("num_attention_heads") or o.get("attention_head_dim", 8)
    heads = list(heads) if isinstance(heads, (list, tuple)) else [heads] * len(widths)
    depths = o.get("transformer_layers_per_block", 1)
    depths = tuple(depths) if isinstance(depths, (list, tuple)) else (depths,) * len(widths)
    sizes = {width // n for width, n, attending in zip(widths, heads, [*attends[:-1], True], strict=True) if attending}
    fits = {
        "down_block_types": set(down) <= {"DownBlock2D", "CrossAttnDownBlock2D"},
        "up_block_types": up == [kind.replace("Down", "Up") for kind in reversed(down)],
        "center_input_sample": not o.get("center_input_sample"),
        "mid_block_scale_factor": o.get("mid_block_scale_factor", 1) == 1,
        "time embedding": o.get("flip_sin_to_cos", True) and o.get("freq_shift", 0) == 0,
        "only_cross_attention": not o.get("only_cross_attention"),
        "class_embed_type": o.get("class_embed_type") is None and o.get("addition_embed_type") is None,
        "norm_eps": o.get("norm_eps", 1e-5) == 1e-5, "act_fn": o.get("act_fn", "silu") == "silu",
        "resnet_time_scale_shift": o.get("resnet_time_scale_shift", "default") == "default",
        "downsample_padding": o.get("downsample_padding", 1) == 1,
        "layers_per_block": isinstance(o["layers_per_block"], int),
        "transformer_layers_per_block": all(isinstance(n, int) for n in depths),
    }
    if not all(fits.values()):
        raise ConfigError(f"no network here has the {next(key for key in fits if not fits[key])} of this unet/config.json")
    model = dict(
        name=NETWORK, width=widths[0], mults=tuple(w / widths[0] if w % widths[0] else w // widths[0] for w in widths),
        depth=o["layers_per_block"], attend=tuple(2**i for i, attending in enumerate(attends) if attending), scale_shift=False,
        resample="conv", transformer=depths[0] if len(set(depths)) == 1 else depths, dropout=float(o.get("dropout", 0)),
        groups=o.get("norm_num_groups", 32),
        **outputs(o.get("in_channels", 4), o.get("out_channels", 4)), **_heads(heads, sizes),
    )
    return model, adm.label(o.get("num_class_embeds"), widths[0])


def _heads(heads: list[int], sizes: set[int]) -> dict[str, Any]:
    """The options of a UNet with so many heads on each level, of these sizes where it attends."""
    if len(set(heads)) == 1:
        return {"heads": heads[0], "head_channels": None}
    return {"heads": 1, "head_channels": min(sizes)} if len(sizes) == 1 else {"heads": tuple(heads), "head_channels": None}


def shapes(model: UNet, cond: nn.Module, state_dict: Mapping[str, Any]) -> Params:
    """Shapes and types of the parameters {'model': ..., 'cond': ...} for renamed weights (arrays or shapes); computes nothing."""
    channels = state_dict["stem.weight"].shape[1]
    side = 2 ** (len(model.mults) - 1)
    tokens = [value.shape[1] for key, value in state_dict.items() if key.endswith("attn2.to_k.weight") and key.startswith("mid_")]
    weights = guidance_channels(state_dict)
    one = jnp.zeros(1, jnp.int32)

    def init() -> Params:
        key = jax.random.key(0)
        conditions: dict[str, Array] = {}
        if channels > model.channels:
            conditions["cat"] = jnp.zeros((1, side, side, channels - model.channels))
        if tokens:
            conditions["seq"] = jnp.zeros((1, 1, tokens[0]))
        if weights:
            conditions["guidance"] = jnp.zeros((1, weights))
        params = model.init(key, jnp.zeros((1, side, side, model.channels)), one, conditions)["params"]
        return {"model": params, "cond": cond.init(key, {"label": one}).get("params", {})}

    return shapes_of(init)


def guidance_channels(state_dict: Mapping[str, Any]) -> int:
    """The channels of the embedded weight of guidance that a network reads, 0 for none; of weights in either
    layout, arrays or shapes."""
    projections = [value.shape[1] for key, value in state_dict.items() if key.endswith(".cond_proj.weight")]
    return projections[0] if projections else 0


def table(model: UNet, new_order: bool, cond: nn.Module) -> list[Rule]:
    """The rules for renamed keys; see `adm.table`."""
    return [*adm.table(model, new_order, cond), *TRANSFORMER]


def convert(state_dict: Mapping[str, Array], model: UNet, cond: nn.Module = Nothing(), new_order: bool = False) -> Params:
    """A state dict of either layout as the parameters {'model': ..., 'cond': ...}.

    Args:
      state_dict: official key -> array.
      model, cond: see `config`; a cond without parameters of its own leaves {}.
      new_order: the official option use_new_attention_order.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    weights = renamed(state_dict, model)
    if model.codes:                    # `id_predictor` is used in place of the last layers
        weights = {key: value for key, value in weights.items() if not key.startswith("out.")}
    return {"cond": {}} | rules.convert(weights, table(model, new_order, cond), shapes(model, cond, weights))


def revert(
    params: Params, shapes: Mapping[str, rules.Shape], model: UNet, cond: nn.Module = Nothing(), new_order: bool = False
) -> dict[str, Array]:
    """Parameters (or gradients) as an official state dict of the given shapes, in either layout."""
    names = renamed({key: key for key in shapes}, model)
    params = {"model": params["model"]} | ({"cond": params["cond"]} if params.get("cond") else {})
    return rules.revert_renamed(params, table(model, new_order, cond), shapes, names)


_SD = {"model_channels": 320, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "use_spatial_transformer": True}
_LDM = {"attention_resolutions": [8, 4, 2], "channel_mult": [1, 2, 3, 4], "image_size": 64}
_CHURCHES = {"attention_resolutions": [1, 2, 4, 8], "channel_mult": [1, 2, 2, 4, 4], "num_heads": 8, "use_scale_shift_norm": True,
             "resblock_updown": True, "image_size": 32}
PUBLISHED = {
    # (model_channels, channels of a token) -> the options that the shapes do not tell. No file carries two of them.
    # Stable Diffusion 2 comes in two sizes.
    (320, 768): _SD | {"num_heads": 8, "image_size": 64},                            # Stable Diffusion 1
    (320, 1024): _SD | {"num_head_channels": 64},                                    # Stable Diffusion 2
    (320, 1280): _SD | {"num_heads": 8, "image_size": 32},                           # text2img_1p4B
    (192, 512): _LDM | {"channel_mult": [1, 2, 3, 5], "use_spatial_transformer": True, "num_heads": 1},          # cin256_v2
    (192, 0): _CHURCHES,                                                             # lsun_churches256
    (224, 0): _LDM | {"num_head_channels": 32},                                      # celeba256, ffhq256, lsun_beds256
    (256, 0): _LDM | {"num_heads": 8, "resblock_updown": True},                      # inpainting_big
    (160, 0): _LDM | {"attention_resolutions": [8], "channel_mult": [1, 2, 2, 4], "num_head_channels": 32},      # bsr_sr
}


def published(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the official constructor for a published network in CompVis's names (of arrays or shapes).

    Raises:
      ConfigError: none, so that its heads are not known.
    """
    tokens = [value.shape[1] for key, value in state_dict.items() if re.match(r"middle_block\.1\..*attn2\.to_k\.weight", key)]
    width = state_dict["time_embed.0.weight"].shape[1] if "time_embed.0.weight" in state_dict else 0
    sizes = (width, *(tokens or [0]))
    if sizes not in PUBLISHED:
        raise ConfigError("this is no published latent diffusion model: give the options of its network (--official)")
    return PUBLISHED[sizes] | {
        "model_channels": width,
        "num_res_blocks": 2,
        "in_channels": state_dict["input_blocks.0.0.weight"].shape[1],
        "out_channels": state_dict["out.2.weight"].shape[0],
    }
