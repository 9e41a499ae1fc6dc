"""The published first stages of latent diffusion (CompVis/latent-diffusion, Stable Diffusion) as our KL and VQ.

Two layouts of the same weights are read: CompVis's own, of the .ckpt files (encoder.down.0.block.1.conv1.weight), and that of
diffusers (encoder.down_blocks.0.resnets.1.conv1.weight), which counts the levels of the decoder from the other end. The second is
renamed to the first (`compvis`), then one table serves both. Attention is a convolution over single pixels in the first and a
linear layer in the second; its layers have two sets of names in diffusers, by the year of the file.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError
from diffusion_jax.models.vae import Autoencoder
from diffusion_jax.pretrained import folder, names, rules
from diffusion_jax.pretrained.rules import CONV, POINT, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

FIRST = "first_stage_model."
"""What the keys of an autoencoder begin with inside the file of a whole model."""
SCALE = 0.18215
"""Of the latents of Stable Diffusion, where a file does not say it."""
KL, VQ = "diffusion_jax.models.vae:KL", "diffusion_jax.models.vae:VQ"


def _table() -> list[Rule]:
    side = r"(encoder|decoder)"
    table: list[Rule] = []
    blocks = (
        (rf"{side}\.mid\.block_1", r"\1/mid_res_0"), (rf"{side}\.mid\.block_2", r"\1/mid_res_1"),
        (rf"{side}\.(down|up)\.(\d+)\.block\.(\d+)", r"\1/\2_\3_res_\4"),
    )
    for key, path in blocks:
        for i in (1, 2):
            table += norm(rf"{key}\.norm{i}", f"{path}/norm{i}")
            table += layer(rf"{key}\.conv{i}", f"{path}/conv{i}", CONV)
        table += layer(rf"{key}\.nin_shortcut", f"{path}/skip", POINT)
    for key, path in (
        (rf"{side}\.mid\.attn_1", r"\1/mid_attn"), (rf"{side}\.(down|up)\.(\d+)\.attn\.(\d+)", r"\1/\2_\3_attn_\4"),
    ):
        table += norm(rf"{key}\.norm", f"{path}/norm")
        for official, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "proj")):
            table += layer(rf"{key}\.{official}", f"{path}/{ours}", POINT)
    return [
        *table,
        *layer(rf"{side}\.conv_in", r"\1/stem", CONV),
        *norm(rf"{side}\.norm_out", r"\1/final_norm"),
        *layer(rf"{side}\.conv_out", r"\1/final_conv", CONV),
        *layer(rf"{side}\.(down|up)\.(\d+)\.(?:down|up)sample\.conv", r"\1/\2_\3_resize", CONV),
        *layer("quant_conv", "quant", POINT),
        *layer("post_quant_conv", "post_quant", POINT),
        Rule(r"quantize\.embedding\.weight", "codebook"),
    ]


RULES = _table()
_NAMES = (
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"conv_norm_out", "norm_out"),
    (r"(down|up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block."), (r"(down|up)_blocks\.(\d+)\.attentions\.", r"\1.\2.attn."),
    (r"(down|up)_blocks\.(\d+)\.(down|up)samplers\.0", r"\1.\2.\3sample"), (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"), (r"\.(?:to_q|query)\.", ".q."), (r"\.(?:to_k|key)\.", ".k."), (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
)


def compvis(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict (of arrays or shapes) of diffusers under CompVis's names; one that has them already stays as it is."""
    levels = 1 + max((int(m[1]) for key in keys if (m := re.match(r"decoder\.up_blocks\.(\d+)", key))), default=-1)

    def renamed(key: str) -> str:
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        return re.sub(r"(?<=decoder\.up\.)\d+", lambda m: str(levels - 1 - int(m[0])), key) if levels else key

    return {renamed(key): value for key, value in keys.items()}


def config(ddconfig: Mapping[str, Any], embed_dim: int, n_embed: int | None = None) -> dict[str, Any]:
    """What to `build` the autoencoder from.

    Args:
      ddconfig, embed_dim, n_embed: the options of the official constructor; n_embed for a VQ.

    Raises:
      ConfigError: an option that has no counterpart here.
    """
    d = ddconfig
    if d.get("attn_type", "vanilla") not in ("vanilla", "none") or d.get("out_ch", 3) != d.get("in_channels", 3):
        raise ConfigError(f"no autoencoder here has the options {dict(d)}: attn_type is 'vanilla' or 'none', out_ch in_channels")
    attends = d.get("attn_type", "vanilla") == "vanilla"
    spec = dict(
        name=KL if n_embed is None else VQ, channels=d["in_channels"], latent=embed_dim, inner=d["z_channels"], width=d["ch"],
        mults=tuple(d["ch_mult"]), depth=d["num_res_blocks"], mid_attention=attends, dropout=float(d.get("dropout", 0)),
        attend=tuple(sorted(d["resolution"] // side for side in d["attn_resolutions"])) if attends else (),
        resample="conv" if d.get("resamp_with_conv", True) else "pool",
    )
    return spec if n_embed is None else spec | {"codes": n_embed}


PLAIN = {
    "act_fn": "silu", "shift_factor": 0.0, "latents_mean": None, "latents_std": None, "use_quant_conv": True,
    "use_post_quant_conv": True,
}
"""Options of diffusers' AutoencoderKL with their only value here."""
READ = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "latent_channels", "norm_num_groups", "sample_size", "scaling_factor", "force_upcast", "mid_block_add_attention",
)
"""Options that are read, and two of half precision and of the size it was trained at."""


def diffusers_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """What to `build` the autoencoder of a diffusers vae/config.json from.

    Raises:
      ConfigError: an option that has no counterpart here.
    """
    folder.checked(options, PLAIN, READ, "the autoencoder's config.json")
    if options.get("out_channels", options["in_channels"]) != options["in_channels"]:
        raise ConfigError("no autoencoder here has other out_channels than in_channels")
    widths = options["block_out_channels"]
    plain = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
    if not plain >= {*options["down_block_types"], *options["up_block_types"]} or any(w % widths[0] for w in widths):
        raise ConfigError("no autoencoder here has such levels: they are DownEncoderBlock2D, their widths multiples of the first")
    return dict(
        name=KL, channels=options["in_channels"], latent=options["latent_channels"], width=widths[0],
        inner=options["latent_channels"], mults=tuple(w // widths[0] for w in widths), depth=options["layers_per_block"],
        groups=options.get("norm_num_groups", 32),
        mid_attention=options.get("mid_block_add_attention", True),
    )


def published(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What to `build` the autoencoder of a state dict (of arrays or shapes) in CompVis's names from, read off its shapes.

    Raises:
      ConfigError: it is not one.
    """
    keys = set(state_dict)
    if "encoder.conv_in.weight" not in keys or "post_quant_conv.weight" not in keys:
        raise ConfigError("this is no state dict of an autoencoder: it lacks encoder.conv_in.weight or post_quant_conv.weight")
    width, channels = state_dict["encoder.conv_in.weight"].shape[:2]
    levels = 1 + max(int(m[1]) for key in keys if (m := re.match(r"encoder\.down\.(\d+)\.block", key)))
    depth = 1 + max(int(m[1]) for key in keys if (m := re.match(r"encoder\.down\.0\.block\.(\d+)", key)))
    inner, latent = state_dict["post_quant_conv.weight"].shape[:2]
    codebook = state_dict.get("quantize.embedding.weight")
    spec = dict(
        name=KL if codebook is None else VQ, channels=channels, latent=latent, inner=inner, width=width, depth=depth,
        mults=tuple(state_dict[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // width for i in range(levels)),
        attend=tuple(2**i for i in range(levels) if f"encoder.down.{i}.attn.0.q.weight" in keys),
        mid_attention="encoder.mid.attn_1.q.weight" in keys,
        resample="conv" if levels == 1 or "encoder.down.0.downsample.conv.weight" in keys else "pool",
    )
    return spec if codebook is None else spec | {"codes": codebook.shape[0]}


def shapes(model: Autoencoder) -> Params:
    """Shapes and types of the parameters; computes nothing."""
    side = model.factor
    return shapes_of(model.init, jax.random.key(0), jnp.zeros((1, side, side, model.channels)))["params"]


RANKS = {r".*\.(?:q|k|v|proj_out|nin_shortcut)\.weight|(?:post_)?quant_conv\.weight": 4}
FIXES = ((r"^(decoder\.up\.\d+\.)downsample", r"\1upsample"),)


def official_shapes(params: Params) -> dict[str, rules.Shape]:
    """CompVis's key -> shape, for the parameters of an autoencoder: what `revert` takes."""
    return names.shapes(params, RULES, RANKS, fixes=FIXES)


def convert(state_dict: Mapping[str, Array], model: Autoencoder) -> Params:
    """An official state dict, of either layout, as our parameters. The weights of a loss ('loss.') beside them are left.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    weights = {key: value for key, value in state_dict.items() if not key.startswith("loss.")}
    return rules.convert(compvis(weights), RULES, shapes(model))


def revert(params: Params, shapes: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters (or gradients) as an official state dict of the given shapes, in either layout."""
    names = compvis({key: key for key in shapes})
    return rules.revert_renamed(params, RULES, shapes, names)
