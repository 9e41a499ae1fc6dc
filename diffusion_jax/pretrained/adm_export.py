"""ADM's UNets and noisy classifiers under their official names: the way back of pretrained/adm.py.

The channels of query, key and value go into the order that the published network of that size has, else into the older one; the
options say which.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.classifier import Classifier
from diffusion_jax.models.cond import Joint, Label, LowRes, Nothing
from diffusion_jax.models.unet import Backbone, UNet
from diffusion_jax.pretrained import adm, names, rules
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, only, process_note, refuse, square
from diffusion_jax.types import Array, Params

FIXES = ((r"^(up_\d+_resize)\.op\.", r"\1.conv."),)
RANKS = {
    r"(?:down|mid|up)_\w*attn\w*\.(?:qkv|encoder_kv|proj_out)\.weight|out\.2\.(?:qkv_proj|c_proj)\.weight": 3,
    r".*\.skip_connection\.weight|id_predictor\.1\.weight": 4,
}
"""Axes of what is a matrix here."""
SCHEDULES = {ours: official for official, ours in adm.SCHEDULES.items()}
_READ = """import json
from safetensors.torch import load_file
options = json.load(open("FOLDER/config.json"))
options.pop("noise_schedule", None)"""
CODE = f"""{_READ}
from guided_diffusion.unet import UNetModel                                        # github.com/openai/guided-diffusion
UNetModel(**options).load_state_dict(load_file("FOLDER/model.safetensors"))"""
CLASSIFIER_CODE = CODE.replace("UNetModel", "EncoderUNetModel")
UPSAMPLER_CODE = f"""{_READ}
del options["large_size"], options["small_size"]
from guided_diffusion.unet import SuperResModel                                    # github.com/openai/guided-diffusion
SuperResModel(**options).load_state_dict(load_file("FOLDER/model.safetensors"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: its state dict, and the options of the constructor.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    title = "the official ADM"
    model = build(page["model"])
    cond = build(page["task"].get("cond", adm.label(None, 0)))
    side = square(title, page)
    options = constructor(title, model, side)
    if isinstance(model, Classifier):
        options |= dict(in_channels=page["task"]["shape"][-1], out_channels=model.num_classes, pool=model.pool)
        code = CLASSIFIER_CODE
    else:
        conditions = _conditions(title, cond, side)
        options |= conditions
        code = UPSAMPLER_CODE if "small_size" in conditions else CODE
    schedule = page["task"].get("process", {}).get("schedule", "linear")
    options |= {"noise_schedule": SCHEDULES[schedule]} if schedule in SCHEDULES else {}
    # A classifier predicts neither; its process is told all the same.
    told = {"task": {"scale": {"name": ":Eps"}, **page["task"]}}
    notes = process_note(told, "Eps", schedule if schedule in SCHEDULES else "linear")
    weights, new_order = official(params, model, cond)
    return Package({WEIGHTS: weights, CONFIG: options | {"use_new_attention_order": new_order}}, title, code, notes=notes)


def _conditions(title: str, cond: nn.Module, side: int) -> dict[str, Any]:
    """The official options of what a network for images of side x side sees beside them: labels, a smaller image."""
    options: dict[str, Any] = {}
    for part in cond.parts if isinstance(cond, Joint) else (cond,):
        if isinstance(part, Label):
            options["num_classes"] = part.num_classes + part.null_row           # 'no label' is one more class there
        elif isinstance(part, LowRes):
            only(title, part, augment=0.0, enlarge="")
            options |= dict(large_size=side, small_size=side // part.factor)
        elif not isinstance(part, Nothing):
            refuse(title, {f"sees labels and a smaller image, no {type(part).__name__}": True})
    return options


def constructor(title: str, model: Backbone, side: int) -> dict[str, Any]:
    """The official options of a network for images of side x side.

    Raises:
      ConfigError: it has none; the line names the option.
    """
    only(title, model, ddpm=False, attention="softmax", groups=32, mid_attention=True)
    options: dict[str, Any] = dict(
        image_size=side, model_channels=model.width, num_res_blocks=model.depth, channel_mult=list(model.mults),
        attention_resolutions=list(model.attend), dropout=model.dropout, conv_resample=model.resample != "pool",
        use_scale_shift_norm=model.scale_shift, resblock_updown=model.resample == "res",
    )
    options |= {"num_head_channels": model.head_channels} if model.head_channels else {"num_heads": model.heads}
    if isinstance(model, UNet):
        codes = model.codes and not model.transformer
        refuse(title, {f"has an output for each channel of the image, codes is {model.codes}": bool(codes)})
        out = model.out_channels or model.channels * (1 + model.learn_sigma)
        options |= dict(in_channels=model.channels, out_channels=out)
        options |= {"num_heads_upsample": model.heads_up} if model.heads_up else {}
    return options


def official(params: Params, model: Backbone, cond: nn.Module) -> tuple[dict[str, Array], bool]:
    """(The official state dict, whether it has the new order of channels)."""
    filled = {name: part for name, part in params.items() if part}
    adaptive = {r"out\.3\.weight": 4} if isinstance(model, Classifier) and model.pool == "adaptive" else {}
    shapes = names.shapes(filled, adm.table(model, cond=cond), RANKS | adaptive, fixes=FIXES)
    keys = official_names(shapes, model)
    try:
        new_order = adm.recognised(rules.structs(keys)).new_order
    except ConfigError:                                                         # not published, so in the older order
        new_order = False
    return adm.revert(filled, keys, model, new_order, cond), new_order


def official_names(keys: Mapping[str, Any], model: Backbone) -> dict[str, Any]:
    """The inverse of `adm.rename`."""
    blocks = {ours: theirs for theirs, ours in adm.block_names(model).items()}

    def renamed(key: str) -> str:
        block, dot, rest = key.partition(".")
        return f"{blocks.get(block, block)}{dot}{rest}"

    return {renamed(key): value for key, value in keys.items()}
