"""Stable Diffusion XL for single files and for diffusers, a folder: the way back of pretrained/sdxl.py."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.build import build
from diffusion_jax.models.cond import Joint, Nothing
from diffusion_jax.models.guidance_weight import reads_weight
from diffusion_jax.models.sdxl_text import XLText
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vae import KL
from diffusion_jax.pretrained import adm_export, clip_export, ldm_unet, schedulers_export, sd_export, sdxl, vae_export
from diffusion_jax.pretrained.package import CONFIG, DIFFUSERS, WEIGHTS, Package, Page, Spec, only, refuse
from diffusion_jax.pretrained.rules import Shape
from diffusion_jax.pretrained.sd3_export import tokenizers
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.types import Array, Params

TITLE = "Stable Diffusion XL's single file"
HF_TITLE = "diffusers' StableDiffusionXLPipeline"
CODE = """from diffusers import PIPELINE
pipe = PIPELINE.from_single_file("FOLDER/model.safetensors")"""
HF_CODE = """from diffusers import PIPELINE
pipe = PIPELINE.from_pretrained("FOLDER")"""
NOTHING = [None, None]
"""Of model_index.json: a part that is not there."""


class Parts(NamedTuple):
    """What a run is made of.

    Attributes:
      model, cond: the network and the conditioner.
      params: {'model': ..., 'cond': ...}.
      unet: the same without the conditioner, as Stable Diffusion's export takes it.
    """

    model: UNet
    cond: XLText
    params: Params
    unet: sd_export.Parts


def parts_of(title: str, page: Page, params: Params) -> Parts:
    """The parts of a run.

    Raises:
      ConfigError: it makes no latents of a KL, sees another text, or is made of what the published model has not.
    """
    stage = page["task"].get("first_stage") or {}
    refuse(title, {"makes latents (task.first_stage)": "model" not in stage or "first_stage" not in params})
    model, cond = build(page["model"]), build(page["task"]["cond"])
    conditions = params["cond"]
    if isinstance(cond, Joint) and reads_weight(cond):
        cond, conditions = cond.parts[0], conditions["parts_0"]
    refuse(title, {
        "reads a text with XLText (task.cond)": not isinstance(cond, XLText),
        "makes latents of a KL (task.first_stage.model)": not isinstance(build(stage["model"]), KL),
    })
    refuse(title, {"reads a text with two towers: one alone is the refiner's, whose sizes end with a score (task.cond)":
                   cond.clip_l is None and len(cond.sizes) != sdxl.SCORED})
    only(title, cond, clip_skip=0)
    for tower in (cond.clip_g, cond.clip_l):
        if tower is not None:
            only(title, tower, is_causal=True)
            refuse(title, {"reads a text at its largest token (task.cond)": tower.end not in (None, tower.vocab - 1)})
    used = {"model": params["model"], "cond": conditions}
    return Parts(model, cond, used, sd_export.Parts(model, Nothing(), None, {"model": params["model"]}))


def _pipeline(cond: XLText) -> str:
    """The refiner starts from a picture."""
    return "StableDiffusionXLPipeline" if cond.clip_l is not None else "StableDiffusionXLImg2ImgPipeline"


# One file -------------------------------------------------------------------------------------------------------------------


def write(page: Page, params: Params) -> Package:
    """A run as one file in the original layout, its text encoders among them.

    Raises:
      ConfigError: there is no such file; the line names the option.
    """
    parts = parts_of(TITLE, page, params)
    sd_export.refuse_weight(TITLE, build(page["task"]["cond"]))
    model, cond = parts.model, parts.cond
    only(TITLE, model, learn_sigma=False, scale_shift=False, resample="conv", ddpm=False, mid_attention=True, codes=0, groups=32,
         heads_up=None, out_channels=None, attention="softmax")
    only(TITLE, cond.clip_g, eps=1e-5, act="gelu", heads=max(cond.clip_g.width // 64, 1))
    refuse(TITLE, {"has 4 hidden channels for each of a tower's (task.cond.clip_g)":
                   cond.clip_g.hidden not in (None, 4 * cond.clip_g.width)})
    if cond.clip_l is not None:
        only(TITLE, cond.clip_l, act="quick_gelu", heads=max(cond.clip_l.width // 64, 1), features=None)
    stage = vae_export.scaled(TITLE, build(page["task"]["first_stage"]["model"]), page["task"]["first_stage"],
                              params["first_stage"]["model"])
    keys = adm_export.official_names(sd_export.unet_shapes(model, parts.unet, linear=True), model)
    network = ldm_unet.revert(parts.unet.params, keys, model)
    network |= sdxl.embedding_back(parts.params["cond"], ("label_emb.0.0", "label_emb.0.2"))
    files = {f"{sdxl.NETWORK}{key}": value for key, value in network.items()}
    files |= {f"{sdxl.FIRST}{key}": value for key, value in vae_export.weights(stage.params).items()}
    large = sdxl.ALONE if cond.clip_l is None else sdxl.LARGE
    files |= {f"{large}{key}": value for key, value in clip_export.weights(parts.params["cond"]["clip_g"], cond.clip_g).items()}
    if cond.clip_l is not None:
        small = clip_export.hf_weights(parts.params["cond"]["clip_l"], cond.clip_l)
        files |= {f"{sdxl.SMALL}{key}": value for key, value in small.items()}
    code = CODE.replace("PIPELINE", _pipeline(cond))
    return Package({WEIGHTS: files}, TITLE, code, notes=(*stage.notes, *_unsaid(page, parts, stage.factor)))


def _unsaid(page: Page, parts: Parts, factor: float) -> tuple[str, ...]:
    """What a single file does not hold and this run has otherwise than published, a sentence each."""
    notes = []
    if factor != sdxl.SCALE:
        notes.append(f"The latents are scaled by {factor:g}, not {sdxl.SCALE}, which this file does not hold: set it where it is "
                     "sampled.")
    if parts.model.head_channels != sdxl.HEAD:
        notes.append(f"The heads of the UNet have not {sdxl.HEAD} channels, which this file does not hold: give its options.")
    scheduler, others = schedulers_export.of_page(page)
    if scheduler["_class_name"] != sdxl.EULER["_class_name"] or scheduler["prediction_type"] != "epsilon":
        kind = f"{scheduler['_class_name']}, {scheduler['prediction_type']}"
        notes.append(f"It is sampled with {kind}, which this file does not hold: set it where it is sampled.")
    return (*notes, *others)


def export(page: Page, params: Params, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """A run's parameters under these keys of a single file.

    Raises:
      ConfigError: see `write`; a key that it does not write.
    """
    weights = write(page, params).files[WEIGHTS]
    missing = [key for key in shapes if key not in weights]
    refuse(TITLE, {f"has {missing[0] if missing else ''}, which this run does not": bool(missing)})
    return {key: weights[key] for key in shapes}


# A folder -------------------------------------------------------------------------------------------------------------------


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of diffusers' StableDiffusionXLPipeline, or of the pipeline of its refiner.

    Raises:
      ConfigError: there is no such pipeline; the line names the option.
    """
    parts = parts_of(HF_TITLE, page, params)
    cond, first = parts.cond, page["task"]["first_stage"]
    scheduler, notes = schedulers_export.of_page(page)
    network, config = sd_export.hf_unet(page, parts.unet)
    network |= sdxl.embedding_back(parts.params["cond"], ("add_embedding.linear_1", "add_embedding.linear_2"))
    config |= dict(addition_embed_type="text_time", addition_time_embed_dim=cond.waves,
                   projection_class_embeddings_input_dim=cond.clip_g.features + len(cond.sizes) * cond.waves)
    autoencoder, folded = vae_export.hf_files(build(first["model"]), first, params["first_stage"]["model"], "vae/")
    autoencoder[f"vae/{CONFIG}"] |= {"force_upcast": True}
    files: dict[str, Any] = {"scheduler/scheduler_config.json": scheduler, f"unet/{CONFIG}": config}
    files |= {f"unet/{HF_WEIGHTS}": network} | autoencoder
    for name, folder, kind in (("clip_l", "text_encoder", "CLIPTextModel"),
                               ("clip_g", "text_encoder_2", "CLIPTextModelWithProjection")):
        tower = getattr(cond, name)
        if tower is not None:
            files[f"{folder}/{CONFIG}"] = clip_export.text_config(tower) | {"architectures": [kind]}
            files[f"{folder}/{WEIGHTS}"] = clip_export.hf_weights(parts.params["cond"][name], tower)
    tokens, without = _tokenizers(page, cond)
    files["model_index.json"] = index(cond, scheduler, tokens)
    code = HF_CODE.replace("PIPELINE", _pipeline(cond))
    return Package(files | tokens, HF_TITLE, code, "diffusers", (*notes, *without, *folded))


def _tokenizers(page: Page, cond: XLText) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The files of the tokenizers for transformers; and why some are not there."""
    return tokenizers(page) if cond.clip_l is not None else clip_export.tokenizer(page, "tokenizer_2/")


def index(cond: XLText, scheduler: Spec, tokens: Mapping[str, Any]) -> Spec:
    """model_index.json."""
    both = ["transformers", "CLIPTokenizer"] if tokens else NOTHING
    with_small = cond.clip_l is not None
    return {
        "_class_name": _pipeline(cond), "_diffusers_version": DIFFUSERS, "force_zeros_for_empty_prompt": cond.zeros,
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"] if with_small else NOTHING,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": both if with_small else NOTHING, "tokenizer_2": both, "image_encoder": NOTHING, "feature_extractor": NOTHING,
        **({} if with_small else {"requires_aesthetics_score": True}),
    }
