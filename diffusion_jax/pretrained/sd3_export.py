"""Stable Diffusion 3 for single files and for diffusers, a folder: the way back of pretrained/sd3.py."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.sd3_tokens import SD3Tokens
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.models.sd3_text import SD3Text
from diffusion_jax.models.vae import KL
from diffusion_jax.pretrained import clip_export, sd3, sd3_mmdit, sd3_scheduler, sd3_vae, t5, vae_export
from diffusion_jax.pretrained.package import CONFIG, DIFFUSERS, WEIGHTS, Package, Page, Spec, only, refuse, square
from diffusion_jax.pretrained.rules import Shape
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.types import Array, Params

TITLE = "Stable Diffusion 3's single file"
HF_TITLE = "diffusers' StableDiffusion3Pipeline"
CODE = """from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_single_file("FOLDER/model.safetensors")"""
HF_CODE = """from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_pretrained("FOLDER"MISSING)
pipe("PROMPT", guidance_scale=GUIDANCE, num_inference_steps=STEPS).images[0].save("sample.png")"""
NOTHING = [None, None]
"""Of model_index.json: a part that is not there."""
ADAPTERS = ("image_encoder", "feature_extractor")


class Parts(NamedTuple):
    """What a run is made of.

    Attributes:
      model, cond, first: the network, the conditioner and the autoencoder.
      params: {'model': ..., 'cond': ..., 'first_stage': ...}.
      latents: scale and shift.
    """

    model: MMDiT
    cond: SD3Text
    first: KL
    params: Params
    latents: dict[str, float]


def parts_of(title: str, page: Page, params: Params) -> Parts:
    """The parts of a run.

    Raises:
      ConfigError: it makes no latents of a KL, sees another text, or is made of what the published model has not.
    """
    stage = page["task"].get("first_stage") or {}
    refuse(title, {"makes latents (task.first_stage)": "model" not in stage or "first_stage" not in params})
    model, cond, first = build(page["model"]), build(page["task"]["cond"]), build(stage["model"])
    scale, shift = stage.get("scale", 1.0), stage.get("shift", 0.0)
    refuse(title, {
        "reads a text with SD3Text (task.cond)": not isinstance(cond, SD3Text),
        "makes latents of a KL (task.first_stage.model)": not isinstance(first, KL),
        "has one scale and one shift for all channels (task.first_stage)": np.ndim(scale) > 0 or np.ndim(shift) > 0,
        "takes -1 for black (first_stage.black)": stage.get("black", -1.0) != -1,
    })
    only(title, model, mlp_ratio=4.0, skip=())
    only(title, cond, clip_skip=0)
    for tower in (cond.clip_l, cond.clip_g):
        only(title, tower, is_causal=True)
        refuse(title, {"reads a text at its largest token (task.cond)": tower.end not in (None, tower.vocab - 1)})
    return Parts(model, cond, first, params, {"scale": float(scale), "shift": float(shift)})


# One file -------------------------------------------------------------------------------------------------------------------


def write(page: Page, params: Params) -> Package:
    """A run as one file in the original layout, its text encoders among them.

    Raises:
      ConfigError: there is no such file; the line names the option.
    """
    parts = parts_of(TITLE, page, params)
    notes: tuple[str, ...] = ()
    published = {"scale": sd3_vae.SCALE, "shift": sd3_vae.SHIFT}
    if parts.latents != published:
        raise ConfigError(f"{TITLE} holds no scale and shift of the latents, which every program takes for {published}, not "
                          f"{parts.latents}: --to diffusers writes them")
    only(TITLE, parts.first, groups=32)
    refuse(TITLE, {"has an autoencoder without maps between its halves (it was trained)":
                   sd3_vae.has_maps(params["first_stage"]["model"])})
    network = sd3_mmdit.official_weights(params["model"], parts.model)
    files = {f"{sd3.NETWORK}{key}": value for key, value in network.items()}
    files |= {f"{sd3.FIRST}{key}": value for key, value in _vae(parts, vae_export.weights).items()}
    for name, weights in zip(sd3.ENCODERS, _texts(parts), strict=True):
        files |= {f"{sd3.TEXT}{name}.transformer.{key}": value for key, value in (weights or {}).items()}
    scheduler, others = sd3_scheduler.write(page)
    if scheduler["shift"] != sd3.SHIFT:
        notes = (f"The flow's shift is {scheduler['shift']}, which this file does not hold: set it where it is sampled.",)
    return Package({WEIGHTS: files}, TITLE, CODE, notes=(*notes, *others))


def export(page: Page, params: Params, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """A run's parameters under these keys of a single file.

    Raises:
      ConfigError: see `write`; a key that it does not write.
    """
    weights = write(page, params).files[WEIGHTS]
    missing = [key for key in shapes if key not in weights]
    refuse(TITLE, {f"has {missing[0] if missing else ''}, which this run does not": bool(missing)})
    return {key: weights[key] for key in shapes}


def _vae(parts: Parts, weights: Any) -> dict[str, Array]:
    """The autoencoder's weights by `weights`, without maps that do nothing."""
    params = parts.params["first_stage"]["model"]
    kept = sd3_vae.has_maps(params)
    return {key: value for key, value in weights(params).items() if kept or not key.startswith(tuple(sd3_vae.MAPS))}


def _texts(parts: Parts) -> tuple[dict[str, Array] | None, ...]:
    """The weights of CLIP-L, CLIP-G and T5 under transformers' names."""
    params, cond = parts.params["cond"], parts.cond
    clips = [clip_export.hf_weights(params[name], getattr(cond, name)) for name in ("clip_l", "clip_g")]
    return *clips, None if cond.t5 is None else t5.official_weights(params["t5"])


# A folder -------------------------------------------------------------------------------------------------------------------


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of diffusers' StableDiffusion3Pipeline.

    Raises:
      ConfigError: there is no such pipeline; the line names the option.
    """
    parts = parts_of(HF_TITLE, page, params)
    scheduler, notes = sd3_scheduler.write(page)
    tokens, without = tokenizers(page)
    network = sd3_mmdit.diffusers(sd3_mmdit.official_weights(params["model"], parts.model))
    files: dict[str, Any] = {"scheduler/scheduler_config.json": scheduler, f"transformer/{HF_WEIGHTS}": network}
    files[f"transformer/{CONFIG}"] = sd3_mmdit.official_config(parts.model, params["model"], square(HF_TITLE, page))
    files |= {f"vae/{CONFIG}": vae_config(parts, page), f"vae/{HF_WEIGHTS}": _vae(parts, vae_export.hf_weights)}
    texts = _texts(parts)
    for name, folder, weights in zip(("clip_l", "clip_g"), sd3.FOLDERS, texts, strict=False):
        tower = getattr(parts.cond, name)
        files[f"{folder}/{CONFIG}"] = clip_export.text_config(tower) | {"architectures": ["CLIPTextModelWithProjection"]}
        files[f"{folder}/{WEIGHTS}"] = _projected(weights or {}, tower.width)
    if parts.cond.t5 is not None:
        files |= {f"{sd3.FOLDERS[2]}/{CONFIG}": t5.official_config(parts.cond.t5), f"{sd3.FOLDERS[2]}/{WEIGHTS}": texts[2]}
    listed = index(scheduler, tokens, parts.cond.t5 is not None)
    files["model_index.json"] = listed
    # The pipeline wants to be told of every part that it is to do without, but for those of adapters.
    missing = [name for name, value in listed.items() if value == NOTHING and name not in ADAPTERS]
    code = HF_CODE.replace("MISSING", "".join(f", {name}=None" for name in missing))
    return Package(files | tokens, HF_TITLE, code, "diffusers", (*notes, *without))


def _projected(weights: dict[str, Array], width: int) -> dict[str, Array]:
    """The weights of a text encoder, with the identity for a projection that it does not have, as CLIP-L of single files."""
    return {"text_projection.weight": np.eye(width, dtype=np.float32)} | weights


def vae_config(parts: Parts, page: Page) -> Spec:
    """The options of diffusers' AutoencoderKL."""
    model = parts.first
    only("diffusers' AutoencoderKL", model, attend=(), resample="conv")
    levels = len(model.mults)
    maps = sd3_vae.has_maps(parts.params["first_stage"]["model"])
    return dict(
        _class_name="AutoencoderKL", in_channels=model.channels, out_channels=model.channels,
        block_out_channels=[round(model.width * mult) for mult in model.mults], down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, layers_per_block=model.depth, latent_channels=model.latent,
        norm_num_groups=model.groups, act_fn="silu", sample_size=page["task"]["first_stage"]["shape"][0],
        scaling_factor=parts.latents["scale"], shift_factor=parts.latents["shift"], use_quant_conv=maps,
        use_post_quant_conv=maps, mid_block_add_attention=model.mid_attention,
    )


def tokenizers(page: Page) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The files of the tokenizers for transformers; and why some are not there."""
    decode = page.get("data", {}).get("decode")
    try:
        tokens = getattr(build(decode), "tokenizer", None)
    except ConfigError as error:
        return {}, (f"No tokenizer is written: {error}.",)
    if not isinstance(tokens, SD3Tokens):
        return {}, ("No tokenizer is written: this model was trained without Stable Diffusion 3's.",)
    files: dict[str, Any] = {}
    notes: list[str] = []
    common = {key: decode["tokenizer"][key] for key in ("merges", "most") if key in decode["tokenizer"]}
    for folder, pad_end in (("tokenizer/", True), ("tokenizer_2/", False)):
        bpe = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=tokens.clip, pad_end=pad_end, **common)
        written, without = clip_export.tokenizer({"data": {"decode": {**decode, "tokenizer": bpe}}}, folder)
        files |= written
        notes += [note for note in without if note not in notes]
    if tokens.t5 is not None:
        try:
            files |= {"tokenizer_3/spiece.model": tokens.t5.content, "tokenizer_3/tokenizer_config.json": {
                "tokenizer_class": "T5Tokenizer", "model_max_length": 512, "eos_token": "</s>", "pad_token": "<pad>",
                "unk_token": "<unk>", "extra_ids": 100,
            }}
        except ConfigError as error:
            notes.append(f"T5's tokenizer is not written: {error}.")
    return files, tuple(notes)


def index(scheduler: Spec, tokens: Mapping[str, Any], with_t5: bool) -> Spec:
    """model_index.json."""
    third = with_t5 and any(name.startswith("tokenizer_3/") for name in tokens)
    both = ["transformers", "CLIPTokenizer"] if any(Path(name).name == "vocab.json" for name in tokens) else NOTHING
    return {
        "_class_name": "StableDiffusion3Pipeline", "_diffusers_version": DIFFUSERS,
        "transformer": ["diffusers", "SD3Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"] if with_t5 else NOTHING,
        "tokenizer": both, "tokenizer_2": both, "tokenizer_3": ["transformers", "T5Tokenizer"] if third else NOTHING,
        **dict.fromkeys(ADAPTERS, NOTHING),
    }
