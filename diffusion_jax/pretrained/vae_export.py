"""First stages for CompVis's code and for diffusers: the way back of pretrained/vae.py."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import build
from diffusion_jax.models.vae import KL, VQ, Autoencoder
from diffusion_jax.pretrained import sd3_vae, vae
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, Page, Spec, only, refuse
from diffusion_jax.types import Array, Params

HF_WEIGHTS = "diffusion_pytorch_model.safetensors"
TARGETS = {"KL": "ldm.models.autoencoder.AutoencoderKL", "VQ": "ldm.models.autoencoder.VQModelInterface"}
"""CompVis's classes."""
CODE = """import json
from safetensors.torch import load_file
from ldm.util import instantiate_from_config             # github.com/CompVis/latent-diffusion
options = json.load(open("FOLDER/config.json"))
model = instantiate_from_config({key: options[key] for key in ("target", "params")})
model.load_state_dict(load_file("FOLDER/model.safetensors"), strict=False)"""
HF_CODE = """from diffusers import AutoencoderKL
vae = AutoencoderKL.from_pretrained("FOLDER")"""
_NAMES = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."), (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."), (r"(?<=coder\.)norm_out\.", "conv_norm_out."),
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."), (r"nin_shortcut", "conv_shortcut"),
    (r"(?<=attentions\.0\.)norm\.", "group_norm."), (r"(?<=attentions\.0\.)([qkv])\.", r"to_\1."),
    (r"(?<=attentions\.0\.)proj_out\.", "to_out.0."),
)
"""CompVis's names of an autoencoder that attends in its middle alone, and diffusers'."""


def write(page: Page, params: Params) -> Package:
    """A run for CompVis's code: its state dict, and the options of the constructor. The discriminator is left behind.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    title = "CompVis's autoencoder"
    model = build(page["model"])
    stage = scaled(title, model, page["task"], params["model"])
    config = constructor(title, model, page["task"]["shape"][0]) | {"scaling_factor": stage.factor}
    return Package({WEIGHTS: weights(stage.params), CONFIG: config}, title, CODE, notes=stage.notes)


FOLDED = ("The scale and the shift of each channel of the latents are in the autoencoder's own maps here: its latents are those "
          "that the network sees, and the scaling factor is 1.")


class Stage(NamedTuple):
    """A first stage whose latents are scaled by one number.

    Attributes:
      factor: the number.
      params: its parameters.
      notes: a sentence where these are not the run's own.
    """

    factor: float
    params: Params
    notes: tuple[str, ...] = ()


def scaled(title: str, model: Autoencoder, task: Mapping[str, Any], params: Params) -> Stage:
    """A first stage as others have it: what scales and shifts its channels one by one, (z - m) s, goes into its maps.

    With W, b before the latents and V, c behind them: W' = s W, b' = s (b - m), V' = V / s, c' = c + V m. The log variance is
    2 ln s larger.

    Raises:
      ConfigError: a VQ, whose codes such a scale would part otherwise; another black.
    """
    refuse(title, {"takes -1 for black (first_stage.black)": task.get("black", -1.0) != -1})
    scale, shift = (np.asarray(task.get(name, plain), np.float64) for name, plain in (("scale", 1.0), ("shift", 0.0)))
    if scale.ndim == 0 and not shift.any():
        return Stage(float(scale), params)
    refuse(title, {"has one scale and no shift for the codes of a VQ (first_stage.scale)": not isinstance(model, KL)})
    scale, shift = (np.broadcast_to(value, model.latent) for value in (scale, shift))
    quant, post = ({name: np.asarray(w, np.float64) for name, w in params[part].items()} for part in ("quant", "post_quant"))
    # [mean, logvar] of every channel; both are multiplied where the kernel makes the mean, the log variance is shifted.
    both = np.concatenate([scale, np.ones_like(scale)])
    bias = quant["bias"] * both + np.concatenate([-scale * shift, 2 * np.log(scale)])
    folded = {
        "quant": {"kernel": quant["kernel"] * both, "bias": bias},
        "post_quant": {"kernel": post["kernel"] / scale[:, None], "bias": post["bias"] + shift @ post["kernel"]},
    }
    small = {part: {name: np.float32(w) for name, w in maps.items()} for part, maps in folded.items()}
    return Stage(1.0, {**params, **small}, (FOLDED,))


def constructor(title: str, model: Autoencoder, side: int) -> Spec:
    """CompVis's class and its options for images of side x side.

    Raises:
      ConfigError: it has none; the line names the option.
    """
    only(title, model, groups=32)
    if not model.mid_attention:
        only(title, model, attend=())
    inner = model.inner or model.latent
    params: Spec = dict(embed_dim=model.latent, ddconfig=dict(
        double_z=isinstance(model, KL), z_channels=inner, resolution=side, in_channels=model.channels, out_ch=model.channels,
        ch=model.width, ch_mult=list(model.mults), num_res_blocks=model.depth, dropout=model.dropout,
        attn_resolutions=[side // factor for factor in model.attend], attn_type="vanilla" if model.mid_attention else "none",
        resamp_with_conv=model.resample == "conv",
    ), lossconfig={"target": "torch.nn.Identity"})
    codes = {"n_embed": model.codes} if isinstance(model, VQ) else {}
    return dict(target=TARGETS[type(model).__name__], params=params | codes)


def weights(params: Params) -> dict[str, Array]:
    """An autoencoder's parameters under CompVis's names."""
    return vae.revert(params, vae.official_shapes(params))


# diffusers ------------------------------------------------------------------------------------------------------------------


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of diffusers' AutoencoderKL.

    Raises:
      ConfigError: diffusers' network has no such option; the line names it.
    """
    model, task, weights = build(page["model"]), page["task"], params["model"]
    shift = task.get("shift", 0.0)
    is_bare = isinstance(model, KL) and np.ndim(shift) == 0 and shift != 0 and not sd3_vae.has_maps(weights)
    files, notes = hf_files(model, {**task, "shift": 0.0} if is_bare else task, weights)
    if is_bare:                                                # Stable Diffusion 3's form, which pipelines of others do not read
        files[CONFIG] |= {"shift_factor": float(shift), "use_quant_conv": False, "use_post_quant_conv": False}
        weights = files[HF_WEIGHTS].items()
        files[HF_WEIGHTS] = {key: value for key, value in weights if not key.startswith(tuple(sd3_vae.MAPS))}
    return Package(files, "diffusers' AutoencoderKL", HF_CODE, "diffusers", notes)


def hf_files(
    model: Autoencoder, task: Mapping[str, Any], params: Params, folder: str = ""
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The files of diffusers' AutoencoderKL in a folder, for an autoencoder, its task and its parameters; and see `Stage.notes`.

    Raises:
      ConfigError: it has no such option; the line names it.
    """
    title = "diffusers' AutoencoderKL"
    refuse(title, {"is no VQ (model.name): --to original writes it": not isinstance(model, KL)})
    only(title, model, attend=(), resample="conv")
    inner = model.inner or model.latent
    refuse(title, {f"has {model.latent} channels between its halves, inner is {inner}": inner != model.latent})
    stage = scaled(title, model, task, params)
    levels = len(model.mults)
    config = dict(
        _class_name="AutoencoderKL", in_channels=model.channels, out_channels=model.channels,
        block_out_channels=[round(model.width * mult) for mult in model.mults], down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, layers_per_block=model.depth, latent_channels=model.latent,
        norm_num_groups=model.groups, act_fn="silu", sample_size=task["shape"][0], scaling_factor=stage.factor,
        mid_block_add_attention=model.mid_attention,
    )
    return {f"{folder}{CONFIG}": config, f"{folder}{HF_WEIGHTS}": hf_weights(stage.params)}, stage.notes


def hf_weights(params: Params) -> dict[str, Array]:
    """An autoencoder's parameters under diffusers' names; its attention has linear layers."""
    shapes = vae.official_shapes(params)
    levels = 1 + max(int(match[1]) for key in shapes if (match := re.match(r"decoder\.up\.(\d+)", key)))
    named = {hf_name(key, levels): shape[:2] if ".attn_1." in key else shape for key, shape in shapes.items()}
    return vae.revert(params, named)


def hf_name(key: str, levels: int) -> str:
    """The inverse of `vae.compvis` for one key."""
    key = re.sub(r"(?<=decoder\.up\.)\d+", lambda match: str(levels - 1 - int(match[0])), key)
    for pattern, name in _NAMES:
        key = re.sub(pattern, name, key)
    return key
