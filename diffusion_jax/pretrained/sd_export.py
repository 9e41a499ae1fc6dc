"""Latent diffusion for CompVis's code, one file, and for diffusers, a folder: the way back of pretrained/sd.py.

A run keeps neither the averages beside the weights nor the tables of the process that CompVis's files hold: the weights written
are the average that was asked for, and the tables follow from the options beside them.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from diffusion_jax.build import build
from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.cond import Joint, Label, Nothing
from diffusion_jax.models.guidance_weight import GuidanceWeight, reads_weight
from diffusion_jax.models.text_cond import LabelToken, Stack, TowerText
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import adm_export, clip_export, ldm_text, ldm_unet, names, schedulers_export, sd, vae_export
from diffusion_jax.pretrained.clip import VOCAB
from diffusion_jax.pretrained.package import CONFIG, DIFFUSERS, WEIGHTS, Package, Page, Spec, only, refuse, square
from diffusion_jax.pretrained.rules import Shape
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.types import Array, Params

TITLE, HF_TITLE = "CompVis's latent diffusion", "diffusers' StableDiffusionPipeline"
PREDICTIONS = {"Eps": "eps", "V": "v", "X0": "x0"}
LDM, SD, SD2 = "CompVis/latent-diffusion", "CompVis/stable-diffusion", "Stability-AI/stablediffusion"
"""The repositories of the official code; each has what the one before it has, the first no CLIP, SD2 alone OpenCLIP and v."""
CODE = """import json
from safetensors.torch import load_file
from ldm.util import instantiate_from_config             # github.com/REPOSITORY
options = json.load(open("FOLDER/config.json"))
model = instantiate_from_config({"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": options})
model.load_state_dict(load_file("FOLDER/model.safetensors"), strict=False)"""
HF_CODE = """from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained("FOLDER")
pipe(["PROMPT"], guidance_scale=GUIDANCE, num_inference_steps=STEPS).images[0].save("sample.png")"""
INPAINT_CODE = """from diffusers import StableDiffusionInpaintPipeline
pipe = StableDiffusionInpaintPipeline.from_pretrained("FOLDER")"""


class Parts(NamedTuple):
    """What a latent diffusion model is made of.

    Attributes:
      model: the UNet.
      cond: the conditioner beside a stacked picture.
      stack: that of the picture; None without one.
      params: {'model': ..., 'cond': those of `cond`, if any}.
    """

    model: UNet
    cond: nn.Module
    stack: Stack | None
    params: Params


def parts_of(title: str, page: Page, params: Params) -> Parts:
    """The parts of a run.

    Raises:
      ConfigError: it makes no latents, or sees more than one thing and a picture.
    """
    refuse(title, {"makes latents (task.first_stage)": not page["task"].get("first_stage")})
    cond = build(page["task"]["cond"])
    several = cond.parts if isinstance(cond, Joint) else (cond,)
    others = [i for i, part in enumerate(several) if not isinstance(part, (Stack, Nothing, GuidanceWeight))]
    refuse(title, {"sees a text or a label, and a picture (task.cond)": len(others) > 1})
    weights = params.get("cond") or {}
    if others and isinstance(cond, Joint):
        weights = weights.get(f"parts_{others[0]}", {})
    stack = next((part for part in several if isinstance(part, Stack)), None)
    used = {"model": params["model"]} | ({"cond": weights} if weights else {})
    return Parts(build(page["model"]), several[others[0]] if others else Nothing(), stack, used)


# One file -------------------------------------------------------------------------------------------------------------------


def write(page: Page, params: Params) -> Package:
    """A run for CompVis's code: network, first stage and what reads the condition in one file, and its options.

    Raises:
      ConfigError: the official code has no such option; the line names it.
    """
    parts = parts_of(TITLE, page, params)
    refuse_weight(TITLE, build(page["task"]["cond"]))
    first = page["task"]["first_stage"]
    network, unet = _unet(page, parts)
    weights = {f"{sd.UNET}{key}": value for key, value in network.items()}
    autoencoder = build(first["model"])
    stage = vae_export.scaled(TITLE, autoencoder, first, params["first_stage"]["model"])
    weights |= {f"{sd.FIRST}{key}": value for key, value in vae_export.weights(stage.params).items()}
    reads = _conditioner(parts)
    weights |= {f"{sd.TEXT}{key}": value for key, value in reads.items()}
    options = _process(page) | {
        "image_size": square(TITLE, page), "channels": page["task"]["shape"][-1], "use_ema": False,
        sd.FACTOR: stage.factor,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": vae_export.constructor(TITLE, autoencoder, first["shape"][0]),
        "cond_stage_config": _cond_config(parts.cond),
    }
    code = CODE.replace("REPOSITORY", _repository(options))
    return Package({WEIGHTS: weights, CONFIG: options}, TITLE, code, notes=stage.notes)


def refuse_weight(title: str, cond: nn.Module) -> None:
    """Refuses a network that reads the weight of guidance."""
    refuse(title, {"reads no weight of guidance, as diffusers' networks do (--to diffusers)": reads_weight(cond)})


def _repository(options: Spec) -> str:
    """Whose code takes the options of a LatentDiffusion."""
    reader = str(options["cond_stage_config"])
    if "OpenCLIP" in reader or options["parameterization"] == "v":
        return SD2
    return SD if "FrozenCLIP" in reader else LDM


def export(page: Page, params: Params, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """A run's parameters, with those of its first stage, under these keys of CompVis's file.

    Raises:
      ConfigError: see `write`; a key that it does not write: averages and tables are not kept.
    """
    weights = write(page, params).files[WEIGHTS]
    missing = [key for key in shapes if key not in weights]
    refuse(TITLE, {f"has {missing[0] if missing else ''}, which a run does not keep": bool(missing)})
    return {key: weights[key] for key in shapes}


def _process(page: Page) -> Spec:
    """The options of LatentDiffusion for a process and a prediction."""
    task = page["task"]
    kind, scale = (task[key]["name"].rpartition(":")[2] for key in ("process", "scale"))
    schedule = task["process"].get("schedule", "linear")
    refuse(TITLE, {
        f"has betas that are linear in their roots (task.process), not {kind} {schedule}": schedule != "scaled_linear",
        "has no zero terminal signal (task.process.zero_snr)": bool(task["process"].get("zero_snr")),
        f"predicts eps, v or x0, not {scale} (task.scale)": scale not in PREDICTIONS,
    })
    start, end = schedulers_export.ends(task["process"])
    steps = task["process"].get("steps", 1000)
    return dict(linear_start=start, linear_end=end, timesteps=steps, parameterization=PREDICTIONS[scale])


def _unet(page: Page, parts: Parts) -> tuple[dict[str, Array], Spec]:
    """(The state dict of the UNet with its table of labels, its options)."""
    model, cond, stack, params = parts
    only(TITLE, model, learn_sigma=False)
    side = square(TITLE, page)
    options = adm_export.constructor(TITLE, model, side)
    options["in_channels"] += stack.channels if stack else 0
    options |= {"n_embed": model.codes} if model.codes else {}
    options |= {"num_classes": cond.num_classes + cond.null_row} if isinstance(cond, Label) else {}
    if model.transformer:
        tokens = next((shape[1] for key, shape in unet_shapes(model, parts).items() if key.endswith("attn2.to_k.weight")), None)
        options |= dict(use_spatial_transformer=True, transformer_depth=model.transformer, context_dim=tokens)
    with_labels = isinstance(cond, Label)
    weights = params if with_labels else {"model": params["model"]}
    keys = adm_export.official_names(unet_shapes(model, parts), model)
    return ldm_unet.revert(weights, keys, model, cond if with_labels else Nothing()), options


def unet_shapes(model: UNet, parts: Parts, linear: bool = False) -> dict[str, Shape]:
    """Renamed official key -> shape of the UNet and its table of labels; `linear`: transformers begin and end with matrices."""
    label = isinstance(parts.cond, Label)
    params = parts.params if label else {"model": parts.params["model"]}
    table = ldm_unet.table(model, False, parts.cond if label else Nothing())
    rank = 2 if linear else 4
    ranks = {r"(?:down|mid|up)_\w*attn\w*\.proj_(?:in|out)\.weight": rank} if model.transformer else {}
    codes = ((r"^out\.0\.", "id_predictor.0."),) if model.codes else ()     # in place of the last layers
    return names.shapes(params, table, ranks | adm_export.RANKS, fixes=(*adm_export.FIXES, *codes))


def _conditioner(parts: Parts) -> dict[str, Array]:
    """The state dict of what reads the condition, without its prefix; {} where the UNet has it or there is none."""
    cond = parts.cond
    params = parts.params.get("cond", {})
    if isinstance(cond, LabelToken):
        return {"embedding.weight": params["table"]}
    if not isinstance(cond, TowerText):
        refuse(TITLE, {f"reads texts and labels, no {type(cond).__name__} (task.cond)": not isinstance(cond, (Label, Nothing))})
        return {}
    tower = cond.tower
    if isinstance(tower, TextEncoder):
        only(TITLE, tower, heads=8, head_channels=64)
        shapes = names.shapes(params["tower"], ldm_text.table(tower.layers))
        return {f"transformer.{key}": value for key, value in ldm_text.revert_bert(params["tower"], shapes, tower).items()}
    only(TITLE, tower, is_causal=True, eps=1e-5, vocab=VOCAB)
    if tower.skip:
        only(TITLE, tower, skip=1, act="gelu", heads=max(tower.width // 64, 1))
        return {f"model.{key}": value for key, value in clip_export.weights(params["tower"], tower).items()}
    only(TITLE, tower, act="quick_gelu", heads=12, features=None)
    return {f"transformer.{key}": value for key, value in clip_export.hf_weights(params["tower"], tower).items()}


def _cond_config(cond: nn.Module) -> Any:
    """CompVis's class of what reads the condition."""
    if isinstance(cond, LabelToken):
        return {"target": "ldm.modules.encoders.modules.ClassEmbedder",
                "params": {"n_classes": cond.num_classes + 1, "embed_dim": cond.width, "key": "class_label"}}
    if not isinstance(cond, TowerText):
        return "__is_unconditional__"
    if isinstance(cond.tower, TextEncoder):
        return {"target": "ldm.modules.encoders.modules.BERTEmbedder",
                "params": {"n_embed": cond.tower.width, "n_layer": cond.tower.layers, "vocab_size": cond.tower.vocab,
                           "max_seq_len": cond.tower.context}}
    name = "FrozenOpenCLIPEmbedder" if cond.tower.skip else "FrozenCLIPEmbedder"
    return {"target": f"ldm.modules.encoders.modules.{name}"}


# A folder -------------------------------------------------------------------------------------------------------------------


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of diffusers' StableDiffusionPipeline, or of its inpainting form.

    Raises:
      ConfigError: there is no such pipeline, or its networks have no such option; the line names it.
    """
    parts = parts_of(HF_TITLE, page, params)
    cond, stack = parts.cond, parts.stack
    refuse(HF_TITLE, {
        f"reads a text with CLIP's tower (task.cond), --to original writes a {type(cond).__name__}":
            not isinstance(cond, TowerText) or not isinstance(cond.tower, TextTower),
        "sees a mask before a picture, or none (task.cond), --to original writes others":
            stack is not None and (stack.key != "inpaint" or stack.mask_last),
    })
    first = page["task"]["first_stage"]
    scheduler, notes = schedulers_export.of_page(page, stable=True)
    tokenizer, without = clip_export.tokenizer(page, "tokenizer/")
    kind, code = ("StableDiffusionInpaintPipeline", INPAINT_CODE) if stack else ("StableDiffusionPipeline", HF_CODE)
    files = {
        "model_index.json": {
            "_class_name": kind, "_diffusers_version": DIFFUSERS, "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "tokenizer": ["transformers", "CLIPTokenizer"] if tokenizer else [None, None], "safety_checker": [None, None],
            "feature_extractor": [None, None], "requires_safety_checker": False,
        },
        "scheduler/scheduler_config.json": scheduler,
    }
    autoencoder, folded = vae_export.hf_files(build(first["model"]), first, params["first_stage"]["model"], "vae/")
    files |= autoencoder
    network, config = hf_unet(page, parts)
    files |= {"unet/config.json": config, f"unet/{HF_WEIGHTS}": network}
    encoder, text = _hf_text(parts)
    files |= {"text_encoder/config.json": text, "text_encoder/model.safetensors": encoder} | tokenizer
    return Package(files, f"diffusers' {kind}", code, "diffusers", (*notes, *without, *folded))


def hf_unet(page: Page, parts: Parts) -> tuple[dict[str, Array], Spec]:
    """(The state dict of UNet2DConditionModel, its config.json)."""
    model = parts.model
    title = "diffusers' UNet2DConditionModel"
    only(title, model, learn_sigma=False, scale_shift=False, resample="conv", ddpm=False, mid_attention=True, codes=0,
         heads_up=None, out_channels=None, attention="softmax")
    refuse(title, {
        "has spatial transformers (model.transformer)": not model.transformer,
        f"begins with the width of its first level (model.mults begins with 1), mults are {model.mults}": model.mults[0] != 1,
    })
    linear = model.head_channels is not None                                    # as in Stable Diffusion 2
    shapes = unet_shapes(model, parts, linear)
    tokens = next(shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight"))
    widths = [model.channels_at(level) for level in range(len(model.mults))]
    down = ["CrossAttnDownBlock2D" if model.attends(level) else "DownBlock2D" for level in range(len(widths))]
    config: Spec = dict(
        _class_name="UNet2DConditionModel", sample_size=square(title, page), in_channels=shapes["stem.weight"][1],
        out_channels=model.channels, block_out_channels=widths, down_block_types=down,
        up_block_types=[kind.replace("Down", "Up") for kind in reversed(down)], layers_per_block=model.depth,
        attention_head_dim=[width // model.head_channels for width in widths] if linear else model.heads,
        cross_attention_dim=tokens, transformer_layers_per_block=model.transformer, use_linear_projection=linear,
        norm_num_groups=model.groups, dropout=model.dropout, act_fn="silu", norm_eps=1e-5, flip_sin_to_cos=True, freq_shift=0,
        downsample_padding=1, mid_block_type="UNetMidBlock2DCrossAttn",
    )
    named = {ldm_unet.diffusers_name(key, model): shape for key, shape in shapes.items()}
    weights = ldm_unet.revert({"model": parts.params["model"]}, named, model)
    return weights, config | {"time_cond_proj_dim": ldm_unet.guidance_channels(weights) or None}


def _hf_text(parts: Parts) -> tuple[dict[str, Array], Spec]:
    """(The state dict of CLIPTextModel, its config.json), without layers that the UNet does not see and the map behind them."""
    tower = parts.cond.tower
    params = {name: part for name, part in parts.params["cond"]["tower"].items() if name != "proj"}
    only(HF_TITLE, tower, is_causal=True)
    layers = tower.layers - tower.skip
    blocks = {name: block for name, block in params["transformer"].items() if int(re.sub(r"\D", "", name) or 0) < layers}
    used = tower.clone(layers=layers, skip=0, features=None)
    config = clip_export.text_config(used) | {"architectures": ["CLIPTextModel"]}
    return clip_export.hf_weights(params | {"transformer": blocks}, used), config
