"""Whole latent diffusion models: Stable Diffusion 1 and 2, their inpainting forms, and the first models of latent diffusion.

Two layouts of a model are read:

    one file     .ckpt or .safetensors of CompVis: model.diffusion_model.*, first_stage_model.*, cond_stage_model.*, tables
    a folder     of diffusers: unet/, vae/, text_encoder/, scheduler/scheduler_config.json, each with its config.json

A folder says everything about itself. A file says its sizes; the rest is known of the published ones (pretrained/ldm_unet.py) and
given for others, as the 'params' of CompVis's yaml in JSON. Where the official scripts sample with the average of a network's
weights, that is taken. The scale of the latents, the betas, what the network predicts and the tokens of the empty text go into
the page, and so into every checkpoint: nothing of it has to be known to sample.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusion_jax.build import ConfigError, build, number, short, unknown
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.pretrained import clip, ldm_text, ldm_unet, schedulers, vae
from diffusion_jax.pretrained.folder import options, weights
from diffusion_jax.pretrained.reader import read
from diffusion_jax.types import Params

UNET, FIRST, TEXT = "model.diffusion_model.", vae.FIRST, "cond_stage_model."
HF, OPEN_CLIP, CLASSES = f"{TEXT}transformer.", f"{TEXT}model.", f"{TEXT}embedding.weight"
EMA, FACTOR = "model_ema.", "scale_factor"
IGNORED = ("logvar", f"{TEXT}logit_scale", f"{FIRST}loss.", f"{FIRST}colorize")
"""What only training needs."""
TABLES = ("betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "lvlb_weights")
SCALE = vae.SCALE
START_TEXT, END_TEXT = 49406, 49407
LETTERS = 514
"""Tokens of CLIP's tokenizer that are no merges: each byte twice, start and end."""
PREDICTIONS = {"epsilon": "Eps", "eps": "Eps", "v_prediction": "V", "v": "V", "sample": "X0", "x0": "X0",
               "flow_prediction": "Velocity"}
CONSISTENCY_STEPS, CONSISTENCY_GUIDANCE = 4, 8.5
"""How diffusers samples networks that read the weight of guidance, its LatentConsistencyModelPipeline."""
STABLE = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
LARGEST = 4096
"""Side of latents; what is sampled at a size of its own asks for memory."""
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "low_res_scheduler", "safety_checker", "feature_extractor",
         "watermarker")
"""Of a folder: what is read, and what does not change its images before they are checked or marked."""
Spec = dict[str, Any]


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published model as (config, params).

    Args:
      path: the file or the folder, see the top of this file.
      official: of a file, the 'params' of CompVis's yaml; for Stable Diffusion 2 at least parameterization, 'v' or 'eps', and
        image_size, the side of its latents. Of a folder, {'scheduler': {key: value}} in place of its scheduler's own.

    Returns:
      The sections model, task, data and sample of a page, and {'model': ..., 'cond': ..., 'first_stage': ...}, the last of which
      holds the parameters of the autoencoder that task.first_stage describes.

    Raises:
      ConfigError: something is missing, has no counterpart here or does not fit; the line says what.
    """
    if Path(path).is_dir():
        return from_folder(Path(path), official or {})
    return from_file(read(path, "state_dict"), official or {})


def part(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What lies under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def from_file(state_dict: Mapping[str, Any], official: Mapping[str, Any]) -> tuple[dict[str, Any], Params]:
    """`load` of a state dict of CompVis's."""
    network = part(state_dict, UNET)
    first = part(state_dict, FIRST)
    _whole(state_dict, network, first)
    options = official["unet_config"]["params"] if "unet_config" in official else ldm_unet.published(network)
    model, label = ldm_unet.config(options)
    prediction, side = _aim(official, options)
    cond, text = conditioner(state_dict, official)
    if cond:
        _alone(label)
    if official.get("use_ema", "unet_config" in official or not model["transformer"]):
        network = averaged(state_dict, network)
    params = ldm_unet.convert(network, build(model), build(label))
    if text is not None:
        params["cond"] = text
    first = {key: value for key, value in first.items() if not key.startswith("loss.")}
    autoencoder = vae.published(first)
    params["first_stage"] = {"model": vae.convert(first, build(autoencoder))}
    of_sd = "unet_config" not in official and model["transformer"] and autoencoder["name"] == vae.KL
    factor = official.get(FACTOR, SCALE if of_sd else 1.0)
    scale = float(state_dict[FACTOR]) if FACTOR in state_dict else factor
    extra = options["in_channels"] - options["out_channels"]
    process = table(state_dict, official)
    weight = ldm_unet.guidance_channels(network)
    sections = page(model, cond or label, process, prediction, side, autoencoder, scale, extra, weight)
    return sections, joined(params, sections)


def _whole(state_dict: Mapping[str, Any], network: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Refuses what is not, or not only, a whole latent diffusion model with these two parts."""
    title = "this is no whole latent diffusion model in one file"
    prefixes = (UNET, FIRST, TEXT, EMA, FACTOR, *IGNORED, *TABLES)
    strange = [key for key in state_dict if not key.startswith(prefixes)]
    if strange:
        raise ConfigError(f"{title}: {strange[0]} is not of one")
    if not network or not first:
        raise ConfigError(f"{title}: a part is missing")


def averaged(state_dict: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, Any]:
    """The network's weights, each as its average where the file has one, under its name without dots."""
    return {key: state_dict.get(f"{EMA}diffusion_model{key.replace('.', '')}", value) for key, value in network.items()}


def _aim(official: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, int]:
    """What the network predicts, and the side of its latents, by the options of the model and of the network.

    Raises:
      ConfigError: Stable Diffusion 2, whose file says neither.
    """
    complete = "unet_config" in official or "image_size" in options
    if not complete and not {"parameterization", "image_size"} <= set(official):
        raise ConfigError("the file of Stable Diffusion 2 does not say what it predicts, and how large: --official with "
                          "parameterization, 'v' or 'eps', and image_size, of its latents: 96 for 768-v, 64 for 512")
    side = official["image_size"] if "image_size" in official else options["image_size"]
    return official.get("parameterization", "eps"), side


def _alone(label: Spec) -> None:
    """Refuses a network's own table of classes beside another conditioner."""
    if not label["name"].endswith(":Nothing"):
        raise ConfigError("this network has a table of classes beside another conditioner: no task here takes both")


def conditioner(state_dict: Mapping[str, Any], official: Mapping[str, Any]) -> tuple[Spec | None, Params | None]:
    """What to `build` the conditioner of a file from and its parameters; (None, None) where the file has none of its own."""
    if CLASSES in state_dict:
        rows, width = state_dict[CLASSES].shape
        spec = dict(name="diffusion_jax.models.text_cond:LabelToken", num_classes=rows - 1, width=width)
        return spec, {"table": state_dict[CLASSES]}
    for prefix, fill, skip in ((HF, END_TEXT, 0), (OPEN_CLIP, 0, 1)):
        weights = {key: value for key, value in part(state_dict, prefix).items() if key != "logit_scale"}
        if not weights:
            continue
        if "token_emb.weight" in weights:
            tower = ldm_text.bert_config(weights)
            spec = text_cond(tower, (101, 102, 0), tower["context"])
            return spec, {"tower": ldm_text.convert_bert(weights, build(tower))}
        config = {"hidden_act": "quick_gelu", "eos_token_id": 2, "num_attention_heads": 12}
        if skip:
            width = weights["positional_embedding"].shape[1]
            config = {"vision_cfg": {}, "text_cfg": {"heads": width // 64}}
        tower = clip.towers(weights, config)["text"] | ({"skip": skip} if skip else {})
        spec = text_cond(tower, (START_TEXT, END_TEXT, fill), tower["context"])
        return spec, {"tower": clip.convert(weights, build(tower))}
    return None, None


def text_cond(tower: Spec, empty: tuple[int, ...], context: int) -> Spec:
    """What to `build` the conditioner of a text tower from."""
    return dict(name="diffusion_jax.models.text_cond:TowerText", tower=tower, empty=empty, context=context)


def table(state_dict: Mapping[str, Any], official: Mapping[str, Any]) -> Spec:
    """The process of a file: of its betas, or of its options where it has none.

    Raises:
      ConfigError: the betas are not those of the process.
    """
    betas = state_dict.get("betas")
    if betas is None:
        ends = (official.get("linear_start", 0.00085), official.get("linear_end", 0.012))
        steps = official.get("timesteps", 1000)
    else:
        ends = (betas[0], betas[-1])
        steps = len(betas)
    start, end = (float(f"{float(value):.6g}") for value in ends)          # as they were before float32
    if betas is not None and abs(DDPM("scaled_linear", steps, start, end).betas - betas).max() > 1e-6:
        raise ConfigError("the file's betas are not linear in their roots: no process here has them")
    return dict(name="diffusion_jax.diffusion.process:DDPM", schedule="scaled_linear", steps=steps, start=start, end=end)


def from_folder(folder: Path, official: Mapping[str, Any] = MappingProxyType({})) -> tuple[dict[str, Any], Params]:
    """`load` of a folder of diffusers."""
    for key in official:
        if key != "scheduler":
            raise unknown("option of --official for a folder", key, ("scheduler",))
    own = official.get("scheduler", {})
    if not isinstance(own, Mapping):
        raise ConfigError(f"scheduler of --official is a mapping of its options, got {short(own)}")
    stable = _of_stable_diffusion(folder)
    schedule = schedulers.read({**options(folder / "scheduler", "scheduler_config.json"), **own}, stable)
    unet = options(folder / "unet")
    model, cond = ldm_unet.diffusers_config(unet)
    extra = unet.get("in_channels", 4) - unet.get("out_channels", 4)
    if extra < 0:
        raise ConfigError("this unet predicts more channels than it reads, which no scheduler of a pipeline here takes")
    network = weights(folder / "unet")
    weight = ldm_unet.guidance_channels(network)
    params = ldm_unet.convert(network, build(model), build(cond))
    del network                                                                # not two copies of it beside the rest
    if (folder / "text_encoder").is_dir():
        _alone(cond)
        text = prefixed(weights(folder / "text_encoder"))
        tower = clip.towers(text, options(folder / "text_encoder"))["text"]
        start, end = tower["vocab"] - 2, tower["vocab"] - 1            # CLIP's own, or of a vocabulary of fewer merges
        cond = text_cond(tower, (start, end, end if fill(folder) else 0), tower["context"])
        params["cond"] = {"tower": clip.convert(text, build(tower))}
    config = options(folder / "vae")
    autoencoder = vae.diffusers_config(config)
    params["first_stage"] = {"model": vae.convert(weights(folder / "vae"), build(autoencoder))}
    side = int(number("sample_size of unet/config.json", unet.get("sample_size") or 64, 1, LARGEST, integer=True))
    scale = number("scaling_factor of vae/config.json", config.get("scaling_factor", SCALE))
    sections = page(model, cond, schedule.process, schedule.prediction, side, autoencoder, scale, extra, weight)
    sections["sample"] |= schedule.sample
    return sections, joined(params, sections)


def _of_stable_diffusion(folder: Path) -> bool:
    """Whether diffusers runs a folder in a pipeline that sets some of the scheduler's options itself.

    Raises:
      ConfigError: the folder has parts that change what it makes and that are not read here.
    """
    file = "model_index.json"
    index = options(folder, file) if (folder / file).is_file() else {}
    for name, part in index.items():
        if name not in PARTS and not name.startswith("_") and isinstance(part, list) and any(part):
            raise ConfigError(f"{folder / file} has a {name}, which no model here has: known parts are {', '.join(PARTS)}")
    texts = (folder / "text_encoder").is_dir()
    return index.get("_class_name", "StableDiffusionPipeline" if texts else "") in STABLE


def joined(params: Params, sections: Mapping[str, Any]) -> Params:
    """The parameters with those of the conditioner where its page puts it beside others."""
    beside = sections["task"]["cond"]["name"].endswith(":Joint")
    return params | {"cond": {"parts_0": params["cond"]}} if beside and params.get("cond") else params


def with_weight(cond: Spec, waves: int) -> Spec:
    """A conditioner beside the weight of guidance, which the network reads in so many channels; 0 for none."""
    if not waves:
        return cond
    weight = dict(name="diffusion_jax.models.guidance_weight:GuidanceWeight", waves=waves)
    parts = cond["parts"] if cond["name"].endswith(":Joint") else [cond]
    return dict(name="diffusion_jax.models.cond:Joint", parts=[*parts, weight])


def page(
    model: Spec, cond: Spec, process: Spec, prediction: str, side: int, autoencoder: Spec, scale: float, extra: int,
    weight: int = 0,
) -> dict[str, Any]:
    """The sections model, task, data and sample of a page; `extra` channels of the network's input are not x's, and
    `weight` channels embed the weight of guidance."""
    if prediction not in PREDICTIONS:
        raise ConfigError(f"no network here predicts {prediction!r}; known: {', '.join(PREDICTIONS)}")
    factor = 2 ** (len(autoencoder["mults"]) - 1)
    text = cond
    if extra:
        key = "inpaint" if extra == 1 + autoencoder["latent"] else "low_res"
        stack = dict(name="diffusion_jax.models.text_cond:Stack", key=key, channels=extra)
        stack |= {"mask_last": True} if key == "inpaint" and not model["transformer"] else {}
        named = not cond["name"].endswith(":Nothing")
        cond = dict(name="diffusion_jax.models.cond:Joint", parts=[cond, stack]) if named else stack
    first = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder", model=autoencoder, scale=scale,
        shape=(side * factor, side * factor, autoencoder["channels"]),
    )
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=with_weight(cond, weight), process=process,
        shape=(side, side, autoencoder["latent"]),
        scale=dict(name=f"diffusion_jax.diffusion.scales:{PREDICTIONS[prediction]}"), first_stage=first,
    )
    decode: Spec = dict(name="diffusion_jax.data.image:Decode", size=side * factor)
    if text["name"].endswith(":TowerText") and text["tower"]["name"].endswith(":TextTower"):
        vocab = text["tower"]["vocab"]
        decode["tokenizer"] = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=text["context"],
                                   pad_end=text["empty"][-1] != 0, **({} if vocab == clip.VOCAB else merges(vocab)))
    guided = 7.5 if "tokenizer" in decode else 1.0
    few = dict(steps=CONSISTENCY_STEPS, guidance=CONSISTENCY_GUIDANCE) if weight else {}
    return dict(model=model, task=task, data=dict(decode=decode),
                sample=dict(sampler="ddim", steps=50, times="leading,offset=1,last=0", guidance=guided) | few)


def merges(vocab: int) -> Spec:
    """The options of CLIP's tokenizer for so many tokens: as many of its merges as that takes."""
    most = vocab - LETTERS
    return {"most": most} if most > 0 else {"merges": ""}


def prefixed(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A text encoder's weights under the names that they had before transformers 5."""
    bare = "embeddings.token_embedding.weight" in state_dict
    return {f"text_model.{key}" if bare else key: value for key, value in state_dict.items()}


def fill(folder: Path) -> int:
    """The token that fills up a text: that of '!', number 0, or the end."""
    file = folder / "tokenizer" / "tokenizer_config.json"
    pad = options(file.parent, file.name).get("pad_token") if file.is_file() else None
    return 0 if (pad.get("content") if isinstance(pad, dict) else pad) == "!" else END_TEXT
