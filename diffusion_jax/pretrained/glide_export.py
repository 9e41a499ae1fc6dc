"""GLIDE's UNets with their text, and its noised CLIP, under their official names: the way back of pretrained/glide.py."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import build
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.cond import Joint, LowRes
from diffusion_jax.models.glide import Inpaint, Text
from diffusion_jax.pretrained import adm_export, glide, names
from diffusion_jax.pretrained.glide import NOISED
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, only, process_note, refuse, square
from diffusion_jax.pretrained.rules import Shape
from diffusion_jax.types import Params

SCHEDULES = {ours: official for official, ours in glide.SCHEDULES.items()}
CODE = """import json
from safetensors.torch import load_file
from glide_text2im import model_creation, text2im_model                            # github.com/openai/glide-text2im
weights, options = load_file("FOLDER/model.safetensors"), json.load(open("FOLDER/config.json"))"""
NOISED_CODE = """import json
import torch
from safetensors.torch import load_file
from glide_text2im.clip import encoders                                            # github.com/openai/glide-text2im
options = json.load(open("FOLDER/config.json"))
image = encoders.ImageEncoder(**options["image"], device=torch.device("cpu"))
text = encoders.TextEncoder(**options["text"], device=torch.device("cpu"))
image.load_state_dict(load_file("FOLDER/clip_image_enc.safetensors"))
text.load_state_dict(load_file("FOLDER/clip_text_enc.safetensors"))"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for the official code: its state dict, and the options of the constructor.

    Raises:
      ConfigError: the official network has no such option; the line names it.
    """
    model = build(page["model"])
    if isinstance(model, CLIP):
        return _write_noised(params["model"], model, page["task"]["shape"][-1])
    title = "the official GLIDE"
    cond = build(page["task"]["cond"])
    options = adm_export.constructor(title, model, square(title, page)) | _conditions(title, cond)
    schedule = page["task"]["process"].get("schedule", "linear")
    options |= {"noise_schedule": SCHEDULES[schedule]} if schedule in SCHEDULES else {}
    filled = {name: part for name, part in params.items() if part}
    shapes = names.shapes(filled, glide.table(model, cond), adm_export.RANKS, fixes=adm_export.FIXES)
    weights = glide.revert(filled, adm_export.official_names(shapes, model), model, cond)
    notes = process_note(page, "Eps", schedule if schedule in SCHEDULES else "squaredcos")
    return Package({WEIGHTS: weights, CONFIG: options}, title, CODE, notes=notes)


def _conditions(title: str, cond: Any) -> dict[str, Any]:
    """The official class and the options of its text."""
    parts = cond.parts if isinstance(cond, Joint) else (cond,)
    text = next((part for part in parts if isinstance(part, Text)), None)
    refuse(title, {"reads a text (task.cond has a Text)": text is None})
    others = [part for part in parts if part is not text]
    refuse(title, {f"sees a text, a smaller image and a mask, no {type(part).__name__}": not isinstance(part, (Inpaint, LowRes))
                   for part in others})
    low_res = [part for part in others if isinstance(part, LowRes)]
    for part in low_res:
        only(title, part, augment=0.0, enlarge="")
    inpaint = "Inpaint" if len(others) > len(low_res) else ""
    return {
        "class": f"{'SuperRes' if low_res else ''}{inpaint}Text2ImUNet",
        **({"low_res_factor": low_res[0].factor} if low_res else {}), "tokenizer_n_vocab": text.vocab, "text_ctx": text.context,
        "xf_width": text.width, "xf_layers": text.layers, "xf_heads": text.heads, "xf_final_ln": text.norm,
        "xf_padding": text.padding,
    }


def _write_noised(params: Params, model: CLIP, channels: int) -> Package:
    """`write` for the noised CLIP of images of so many channels: two files."""
    title = "GLIDE's noised CLIP"
    refuse(title, {
        "has a vision transformer (model.image is a ViT)": not isinstance(model.image, ViT),
        f"sees 3 channels, task.shape has {channels}": channels != 3,
    })
    for tower in (model.image, model.text):
        only(title, tower, act="gelu", eps=1e-5)
        refuse(title, {f"has 4 hidden channels for each of its {tower.width}, hidden is {tower.hidden}":
                       tower.hidden not in (None, 4 * tower.width)})
    only(title, model.text, skip=0, is_causal=True, end=None)
    only(title, model, mean=CLIP.mean, std=CLIP.std)
    files = {f"clip_{name}_enc.safetensors": _tower(params, name, getattr(model, name)) for name in ("image", "text")}
    options = {"logit_scale": float(np.exp(np.float64(params["logit_scale"]))), **_towers(model.image, model.text)}
    return Package(files | {CONFIG: options}, title, NOISED_CODE)


def _tower(params: Params, name: str, tower: Any) -> dict[str, Any]:
    """The state dict of a tower, whose keys have no bias: that of ours changes no softmax."""
    special = {}
    if name == "image":
        shape = jax.tree.leaves(params["image"]["patches"])[0].shape
        special["image/blocks.input.patch_proj"] = (shape[1], shape[0] // tower.patch**2, tower.patch, tower.patch)
    fixes = () if getattr(tower, "steps", 0) else ((r"w_t$", "pred_state"),)
    shapes = names.shapes({name: params[name]}, NOISED, special=special, fixes=fixes)
    keys: dict[str, Shape] = {}
    for key, shape in shapes.items():
        key = key.removeprefix(f"{name}/")
        block, _, end = key.partition(".f_qkv.")
        parts = ("q", "k", "v") if end == "w" else ("q", "v")
        keys |= {f"{block}.f_{part}.{end}": (shape[0] // 3, *shape[1:]) for part in parts} if end else {key: shape}
    return glide.noised_revert(params, keys, name)


def _towers(image: ViT, text: TextTower) -> dict[str, Any]:
    """The options of the official ImageEncoder and TextEncoder."""
    return {
        "image": dict(
            image_size=image.size, patch_size=image.patch, n_embd=image.features, n_head=image.heads, n_xf_blocks=image.layers,
            n_head_state=image.width // image.heads, n_timestep=image.steps,
        ),
        "text": dict(
            n_bpe_vocab=text.vocab, max_text_len=text.context, n_embd=text.features, n_head=text.heads, n_xf_blocks=text.layers,
            n_head_state=text.width // text.heads,
        ),
    }
