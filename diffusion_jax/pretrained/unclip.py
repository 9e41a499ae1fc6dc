"""Karlo's published weights (kakaobrain/karlo 1.0 alpha, an unCLIP) as our Prior, UNet and ImageText, in both published layouts.

    prior-ckpt-step=01000000-of-01000000.ckpt  decoder-ckpt-step=01000000-of-01000000.ckpt  improved-sr-ckpt-step=1.2M.ckpt
    the folders prior, text_proj, decoder, super_res_first and super_res_last of diffusers' kakaobrain/karlo-v1-alpha

The first layout numbers the UNet's blocks as ADM does and has q, k and v of a head side by side; diffusers counts by level, from
the other end on the way up, and has a matrix for each of them. Both are renamed to our blocks; then one table serves.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.prior import Prior
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import adm, ldm_unet, rules
from diffusion_jax.pretrained.rules import ROW, UNBATCHED, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

JOINED = {("to_q", "to_k", "to_v"): "qkv", ("add_k_proj", "add_v_proj"): "encoder_kv"}
"""Layers of diffusers, and what they are called together."""
STATISTICS = ("clip_mean", "clip_std")
"""Of CLIP's embeddings in diffusers' prior; the original layout has them in a file of their own, ViT-L-14_stats.th."""


# The prior ------------------------------------------------------------------------------------------------------------------

_PRIOR = {
    "text_enc_proj": "text_seq", "text_emb_proj": "text_vec", "clip_img_proj": "x", r"time_embed\.0": "time1",
    r"time_embed\.2": "time2", "out_proj": "out",
}
_PRIOR_DIFFUSERS = {
    "encoder_hidden_states_proj": "text_seq", "embedding_proj": "text_vec", "proj_in": "x", r"time_embedding\.linear_1": "time1",
    r"time_embedding\.linear_2": "time2", "proj_to_clip_embeddings": "out",
}
_BLOCK = r"transformer/blocks_\1"


def prior_table(model: Prior, diffusers: bool) -> list[Rule]:
    """The rules of a prior."""
    heads = adm.per_head(3, lambda channels: model.heads)
    if diffusers:
        key = r"transformer_blocks\.(\d+)"
        return [
            *(rule for name, path in _PRIOR_DIFFUSERS.items() for rule in layer(name, path)),
            Rule("positional_embedding", "position", UNBATCHED),
            Rule("prd_embedding", "query", ROW),
            *norm("norm_out", "norm"),
            *layer(rf"{key}\.attn1\.qkv", f"{_BLOCK}/qkv"),
            *layer(rf"{key}\.attn1\.to_out\.0", f"{_BLOCK}/proj"),
            *norm(rf"{key}\.norm1", f"{_BLOCK}/norm1"),
            *norm(rf"{key}\.norm3", f"{_BLOCK}/norm2"),
            *layer(rf"{key}\.ff\.net\.0\.proj", f"{_BLOCK}/fc1"),
            *layer(rf"{key}\.ff\.net\.2", f"{_BLOCK}/fc2"),
        ]
    key = r"transformer\.resblocks\.(\d+)"
    return [
        *(rule for name, path in _PRIOR.items() for rule in layer(name, path)),
        Rule("positional_embedding", "position", UNBATCHED),
        Rule("prd_emb", "query", ROW),
        *norm("final_ln", "norm"),
        *layer(rf"{key}\.attn\.c_qkv", f"{_BLOCK}/qkv", heads, bias=heads),
        *layer(rf"{key}\.attn\.c_proj", f"{_BLOCK}/proj"),
        *norm(rf"{key}\.ln_1", f"{_BLOCK}/norm1"),
        *norm(rf"{key}\.ln_2", f"{_BLOCK}/norm2"),
        *layer(rf"{key}\.mlp\.c_fc", f"{_BLOCK}/fc1"),
        *layer(rf"{key}\.mlp\.c_proj", f"{_BLOCK}/fc2"),
    ]


def prior_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `Prior` for the hparams of Karlo's PriorDiffusionModel, or for diffusers' PriorTransformer's."""
    o = official
    if "embedding_dim" in o:
        heads = o["num_attention_heads"]
        return dict(features=o["embedding_dim"], context=o["num_embeddings"], layers=o["num_layers"], heads=heads,
                    width=heads * o["attention_head_dim"])
    return dict(features=o["clip_dim"], context=o["text_ctx"], layers=o["xf_layers"], heads=o["xf_heads"], width=o["xf_width"],
                norm=o.get("xf_final_ln", True))


def prior_published(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `Prior` for a state dict (of arrays or shapes) whose heads have 64 channels, as Karlo's."""
    weights = {key.removeprefix("model."): value for key, value in state_dict.items()}
    _, row, width = weights["positional_embedding"].shape
    features = weights["proj_in.weight" if "proj_in.weight" in weights else "clip_img_proj.weight"].shape[1]
    numbers = [re.match(r"transformer\w*\.(?:resblocks\.)?(\d+)\.", key) for key in weights]
    layers = 1 + max(int(match[1]) for match in numbers if match)
    return dict(features=features, context=row - 4, layers=layers, heads=width // 64, width=width)


def convert_prior(state_dict: Mapping[str, Array], model: Prior) -> Params:
    """A prior of either layout as the parameters of `Prior`; the statistics of diffusers' are left out.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    weights = merged({key.removeprefix("model."): w for key, w in state_dict.items() if key not in STATISTICS})
    diffusers = "proj_in.weight" in weights
    tokens, vec = (weights[f"{name}.weight"].shape[1] for name in (
        ("encoder_hidden_states_proj", "embedding_proj") if diffusers else ("text_enc_proj", "text_emb_proj")))
    cond = {"vec": jnp.zeros((1, vec)), "seq": jnp.zeros((1, model.context, tokens))}
    target = shapes_of(model.init, jax.random.key(0), jnp.zeros((1, model.features)), jnp.zeros(1), cond)["params"]
    return rules.convert(weights, prior_table(model, diffusers), target)


def merged(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict whose to_q, to_k and to_v have become one qkv, and add_k_proj and add_v_proj one encoder_kv."""
    joined: dict[str, Any] = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"(.*\.)?([^.]*)\.([^.]*)", key)
        before, name, end = match.groups(default="") if match else ("", key, "")
        parts = next((parts for parts in JOINED if name in parts), ())
        if not parts:
            joined[key] = value
        elif name == parts[0]:                                           # the others come with it
            rows = [state_dict[f"{before}{part}.{end}"] for part in parts]
            join = np.concatenate if isinstance(value, np.ndarray) else jnp.concatenate
            joined[f"{before}{JOINED[parts]}.{end}"] = join(rows)
    return joined


def parted(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `merged`."""
    parts: dict[str, Any] = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"(.*\.)?([^.]*)\.([^.]*)", key)
        before, name, end = match.groups(default="") if match else ("", key, "")
        own = next((own for own, whole in JOINED.items() if whole == name), ())
        rows = len(value) // len(own) if own else 0
        parts |= {f"{before}{part}.{end}": value[i * rows : (i + 1) * rows] for i, part in enumerate(own)} or {key: value}
    return parts


# The UNets ------------------------------------------------------------------------------------------------------------------

_ATTENTION = r"(\w*_attn\w*)"
_COND = {
    "clip_emb": "image_vec", "text_feat_proj": "text_vec", "clip_tok_proj": "image_seq", r"text_seq_proj\.0": "text_seq",
}
_COND_DIFFUSERS = {
    "clip_image_embeddings_project_to_time_embeddings": "image_vec", "embedding_proj": "text_vec",
    "clip_extra_context_tokens_proj": "image_seq", "encoder_hidden_states_proj": "text_seq",
}
_DIFFUSERS = [
    *norm(rf"{_ATTENTION}\.group_norm", r"model/\1/norm"),
    *layer(rf"{_ATTENTION}\.qkv", r"model/\1/qkv"),
    *layer(rf"{_ATTENTION}\.encoder_kv", r"model/\1/kv"),
    *layer(rf"{_ATTENTION}\.to_out\.0", r"model/\1/proj"),
]


def _cond_table(diffusers: bool) -> list[Rule]:
    null, text_norm = "cf_param", r"text_seq_proj\.1"
    if diffusers:
        null, text_norm = "learned_classifier_free_guidance_embeddings", "text_encoder_hidden_states_norm"
    layers = _COND_DIFFUSERS if diffusers else _COND
    return [
        Rule(null, "cond/null"),
        *(rule for name, path in layers.items() for rule in layer(name, f"cond/{path}")),
        *norm(text_norm, "cond/text_norm"),
    ]


def table(model: UNet, diffusers: bool) -> list[Rule]:
    """The rules of a decoder with its conditioner, or of a super-resolution network, for keys whose blocks have our names."""
    return [*adm.BLOCKS, *adm.FINAL, *_cond_table(diffusers), *(_DIFFUSERS if diffusers else adm.attention_rules(model))]


def renamed(state_dict: Mapping[str, Any], model: UNet) -> dict[str, Any]:
    """A state dict of either layout whose blocks have our names."""
    weights = {re.sub(r"^model\.", "", key): value for key, value in state_dict.items()}
    if "conv_in.weight" in weights:
        blocks = {re.sub(r"(down|up)samplers\.0\.(norm|conv|time)", r"\1samplers.0.res.\2", key): w for key, w in weights.items()}
        weights = ldm_unet.renamed(merged(blocks), model)
        return {_resized(key): value for key, value in weights.items()}
    weights = adm.rename(weights, model)
    return weights if model.mid_attention else {key.replace("mid_attn.", "mid_res_1."): value for key, value in weights.items()}


def _resized(key: str) -> str:
    """The layers of diffusers' resizing residual blocks under ADM's names."""
    match = re.match(r"(?:down_blocks\.(\d+)\.downsamplers\.0|(up_\d+_resize))\.res\.(.*)", key)
    if not match:
        return key
    level, up, rest = match.groups()
    key = f"{up or f'down_{level}_resize'}.{rest}"
    for pattern, name in ldm_unet.LAYERS:
        key = re.sub(pattern, name, key)
    return key


def unet_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `UNet` for Karlo's hparams of a decoder or a super-resolution network, or for a diffusers config."""
    o = official
    if "block_out_channels" in o:
        attends = [("Attn" in kind) for kind in o["down_block_types"]]
        scale_shift = o.get("resnet_time_scale_shift", "default") == "scale_shift"
        middle = o.get("add_attention", True)
        out = o["out_channels"]
        channels = min(o.get("in_channels", 3), out)                 # beside x a picture comes in, or its variances come out
        return dict(
            width=o["block_out_channels"][0], mults=tuple(c / o["block_out_channels"][0] for c in o["block_out_channels"]),
            depth=o["layers_per_block"], attend=tuple(2**i for i, attending in enumerate(attends) if attending),
            head_channels=o.get("attention_head_dim", 8) if middle or any(attends) else None, scale_shift=scale_shift,
            groups=o.get("norm_num_groups", 32), mid_attention=middle, channels=channels, learn_sigma=out == 2 * channels,
            dropout=float(o.get("dropout", 0)),
        )
    if "channels_multiple" in o:
        return dict(width=o["channels"], mults=tuple(o["channels_multiple"]), depth=o["depth"], attend=(), scale_shift=False,
                    mid_attention=False, learn_sigma=False, dropout=float(o.get("dropout", 0)))
    size = o["image_size"]
    listed = o.get("channel_mult")
    mults = tuple(float(part) for part in listed.split(",")) if listed else (1, 2, 3, 4)
    sides = o["attention_resolutions"].split(",")
    heads = o.get("num_head_channels", -1)
    attend = {size // int(side) for side in sides} & {2**level for level in range(len(mults))}
    return dict(
        width=o["num_channels"], mults=mults, depth=o["num_res_blocks"], head_channels=heads if heads > 0 else None,
        heads=max(o.get("num_heads", 1), 1), attend=tuple(sorted(attend)),
        scale_shift=o.get("use_scale_shift_norm", True), resample="res" if o.get("resblock_updown") else "conv",
        learn_sigma=o.get("learn_sigma", True), dropout=float(o.get("dropout", 0)),
    )


def cond_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `ImageText` for the hparams of Karlo's decoder, or for diffusers' UnCLIPTextProjModel's."""
    o = official
    if "clip_embeddings_dim" in o:
        return dict(features=o["clip_embeddings_dim"], out=o["time_embed_dim"], width=o["cross_attention_dim"],
                    tokens=o["clip_extra_context_tokens"])
    return dict(features=o["clip_dim"], out=4 * o["num_channels"], width=o["xf_width"], tokens=o["clip_emb_mult"])


def convert(state_dict: Mapping[str, Array], model: UNet, cond: nn.Module | None = None) -> Params:
    """A decoder, in diffusers' layout with the weights of its text_proj beside its own, or a super-resolution network.

    Args:
      state_dict: official key -> array.
      model: see `unet_config`.
      cond: `ImageText`; None for super-resolution.

    Returns:
      {'model': ..., 'cond': ...}.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    weights = renamed(state_dict, model)
    side = 2 ** (len(model.mults) - 1)
    conditions: dict[str, Array] = {}
    channels = weights["stem.weight"].shape[1]
    if channels > model.channels:
        conditions["cat"] = jnp.zeros((1, side, side, channels - model.channels))
    text = {}
    if cond is not None:
        name = next(key for key in weights if re.fullmatch(r"(text_seq_proj\.0|encoder_hidden_states_proj)\.weight", key))
        states = weights[name].shape[1]
        pooled = cond.features
        raw = {"clip_image": jnp.zeros((1, pooled)), "clip_text": jnp.zeros((1, pooled)), "text_mask": jnp.ones((1, 1)),
               "text_states": jnp.zeros((1, 1, states))}
        text = shapes_of(cond.init, jax.random.key(0), raw)["params"]
        conditions |= {"vec": jnp.zeros((1, cond.out)), "seq": jnp.zeros((1, 1, cond.width))}
    x = jnp.zeros((1, side, side, model.channels))
    network = shapes_of(model.init, jax.random.key(0), x, jnp.zeros(1), conditions)["params"]
    target = {"model": network} | ({"cond": text} if text else {})
    return {"cond": {}} | rules.convert(weights, table(model, "conv_in.weight" in state_dict), target)
