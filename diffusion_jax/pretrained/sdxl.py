"""Stable Diffusion XL, its base and its refiner: the UNet, its autoencoder and its text encoders as one latent diffusion model.

Two layouts of a model are read:

    one file     .safetensors of Stability AI: model.diffusion_model.*, first_stage_model.*, and of the base
                 conditioner.embedders.0.transformer.* (CLIP-L) and conditioner.embedders.1.model.* (OpenCLIP's bigG), of the
                 refiner conditioner.embedders.0.model.* (bigG alone)
    a folder     of diffusers: unet/, vae/, text_encoder/, text_encoder_2/, scheduler/scheduler_config.json, each network with its
                 config.json

The embedding of the sizes and of the pooled text, label_emb or add_embedding, is the conditioner's here. What a file does not say
is as published: heads of 64 channels, latents scaled by 0.13025, Stable Diffusion's betas, epsilon, Euler's sampler at leading
times. The published autoencoder is not for float16: in float32, as here, it is as it was trained.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, build, number, short, unknown
from diffusion_jax.pretrained import clip, ldm_unet, rules, schedulers, sd, vae
from diffusion_jax.pretrained.folder import options, weights
from diffusion_jax.pretrained.package import Spec
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import Rule, Shape, layer
from diffusion_jax.types import Params

NETWORK, FIRST, TEXT = sd.UNET, vae.FIRST, "conditioner.embedders."
SMALL, LARGE, ALONE = f"{TEXT}0.transformer.", f"{TEXT}1.model.", f"{TEXT}0.model."
ADDED = "added."
"""Prefix of the embedding of sizes and text, by its first and second layer in both layouts."""
_ADDED = ((r"^(?:label_emb\.0\.0|add_embedding\.linear_1)\.", f"{ADDED}1."),
          (r"^(?:label_emb\.0\.2|add_embedding\.linear_2)\.", f"{ADDED}2."))
ADDED_RULES: list[Rule] = [*layer(rf"{re.escape(ADDED)}(\d)", r"fc\1")]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "image_encoder",
         "feature_extractor")
"""Of a folder: what is read, and the two that adapters for pictures bring, null without them."""
SCALE, SIDE, WAVES, HEAD = 0.13025, 128, 256, 64
"""As published: of the latents, of 1024 pixels, of a size's sines, of attention."""
WHOLE, SCORED = 6, 5
"""How many sizes the base and the refiner are told."""
SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""The refiner's scores of beauty, as its pipeline has them."""
STEPS, GUIDANCE = 50, 5.0
EULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
         "timestep_spacing": "leading", "steps_offset": 1}
OFFICIAL = {"folder": ("scheduler",), "file": ("scheduler", "num_head_channels", "image_size", "heads")}
"""What the JSON of --official may hold."""


class Parts(NamedTuple):
    """What a model is made of, as it is found.

    Attributes:
      network: the UNet's spec and parameters.
      added: the parameters fc1 and fc2 of the conditioner, and the channels of a size's sines.
      first: the autoencoder's spec and parameters.
      texts: those of CLIP-L, None for the refiner, and of bigG.
      scale: of the latents.
      scheduler: see pretrained/schedulers.py.
      side: of the latents.
      zeros: whether nothing said is zeros.
      sizes: how many sizes the network is told, `WHOLE` or `SCORED`.
      weight: channels of the weight of guidance that the network reads, 0 for none.
    """

    network: tuple[Spec, Params]
    added: tuple[Params, int]
    first: tuple[Spec, Params]
    texts: tuple[tuple[Spec, Params] | None, tuple[Spec, Params]]
    scale: float
    scheduler: schedulers.Scheduler
    side: int
    zeros: bool
    sizes: int
    weight: int


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published model as (config, params).

    Args:
      path: the file or the folder, see the top of this file.
      official: {'scheduler': {key: value}} in place of the scheduler's own; of a file that was not published num_head_channels,
        the channels of a head of the UNet, image_size, the side of its latents, and heads, those of both text encoders, [12, 20].

    Returns:
      The sections model, task, data and sample of a page, and {'model': ..., 'cond': ..., 'first_stage': ...}, the last of which
      holds the parameters of the autoencoder that task.first_stage describes.

    Raises:
      ConfigError: something is missing, has no counterpart here or does not fit; the line says what.

    Example:
      page, params = load('stable-diffusion-xl-base-1.0/')
    """
    path, official = Path(path), official or MappingProxyType({})
    kind = "folder" if path.is_dir() else "file"
    for key in official:
        if key not in OFFICIAL[kind]:
            raise unknown(f"option of --official for a {kind}", key, OFFICIAL[kind])
    own = official.get("scheduler", {})
    if not isinstance(own, Mapping):
        raise ConfigError(f"scheduler of --official is a mapping of its options, got {short(own)}")
    parts = (from_folder if kind == "folder" else from_file)(path, official)
    sections = page(parts)
    return sections, sd.joined(joined(parts), sections)


# A folder -------------------------------------------------------------------------------------------------------------------


def from_folder(folder: Path, official: Mapping[str, Any]) -> Parts:
    """The parts of a folder of diffusers."""
    index = _whole(folder)
    config = options(folder / "unet")
    spec, wave_channels = diffusers_config(config)
    network, added = split(weights(folder / "unet"))
    small = _clip(folder / "text_encoder") if (folder / "text_encoder").is_dir() else None
    large = _clip(folder / "text_encoder_2")
    sizes = told(added, wave_channels, large[0])
    autoencoder = options(folder / "vae")
    first = vae.diffusers_config(autoencoder)
    schedule = {**options(folder / "scheduler", "scheduler_config.json"), **official.get("scheduler", {})}
    side = int(number("sample_size of unet/config.json", config.get("sample_size") or SIDE, 1, sd.LARGEST, integer=True))
    return Parts(
        (spec, ldm_unet.convert(network, build(spec))["model"]), (embedding(added, spec["width"]), wave_channels),
        (first, vae.convert(weights(folder / "vae"), build(first))), (small, large),
        number("scaling_factor of vae/config.json", autoencoder.get("scaling_factor", SCALE)), schedulers.read(schedule), side,
        bool(index.get("force_zeros_for_empty_prompt", sizes == WHOLE)), sizes, ldm_unet.guidance_channels(network),
    )


def _whole(folder: Path) -> dict[str, Any]:
    """model_index.json of a folder, {} where there is none.

    Raises:
      ConfigError: the folder lacks a part, or has one that changes what it makes and that is not read here.
    """
    file = "model_index.json"
    index = options(folder, file) if (folder / file).is_file() else {}
    for name, value in index.items():
        if name not in PARTS and not name.startswith("_") and isinstance(value, list) and any(value):
            raise ConfigError(f"{folder / file} has a {name}, which no model here has: known parts are {', '.join(PARTS)}")
    for name in ("unet", "vae", "scheduler", "text_encoder_2"):
        if not (folder / name).is_dir():
            raise ConfigError(f"{folder} has no {name}, which a whole Stable Diffusion XL has: get it")
    return index


def diffusers_config(config: Mapping[str, Any]) -> tuple[Spec, int]:
    """(what to `build` the UNet of a unet/config.json from, the channels of a size's sines).

    Raises:
      ConfigError: it is not XL's, or has an option that has no counterpart here.
    """
    if config.get("addition_embed_type") != "text_time":
        raise ConfigError(f"unet/config.json is of no Stable Diffusion XL: addition_embed_type is text_time there, not "
                          f"{config.get('addition_embed_type')!r}")
    own = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    spec, _ = ldm_unet.diffusers_config({key: value for key, value in config.items() if key not in own})
    waves = number("addition_time_embed_dim of unet/config.json", config.get("addition_time_embed_dim"), 2, integer=True)
    return spec, int(waves)


def _clip(folder: Path) -> tuple[Spec, Params]:
    return _tower(sd.prefixed(weights(folder)), options(folder))


def _tower(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Spec, Params]:
    tower = clip.towers(state_dict, config)["text"]
    return tower, clip.convert(state_dict, build(tower))


# One file -------------------------------------------------------------------------------------------------------------------


def from_file(path: Path, official: Mapping[str, Any]) -> Parts:
    """The parts of a single file."""
    whole = read(path, "state_dict")
    strange = [key for key in whole if not key.startswith((NETWORK, FIRST, SMALL, LARGE, ALONE, *sd.TABLES))]
    network, added = split(sd.part(whole, NETWORK))
    first, large = sd.part(whole, FIRST), sd.part(whole, LARGE) or sd.part(whole, ALONE)
    if strange or not network or not added or not first or not large:
        what = f"{strange[0]} is not of one" if strange else "a part is missing"
        raise ConfigError(f"{path} is no whole Stable Diffusion XL in one file: {what}")
    head = int(number("num_head_channels of --official", official.get("num_head_channels", HEAD), 1, integer=True))
    spec = published(network, head)
    autoencoder = vae.published(first)
    texts = _encoders(sd.part(whole, SMALL), large, official.get("heads"))
    sizes = SCORED if texts[0] is None else WHOLE
    waves = (added[f"{ADDED}1.weight"].shape[1] - texts[1][0]["features"]) // sizes
    told(added, waves, texts[1][0])
    side = int(number("image_size of --official", official.get("image_size", SIDE), 1, sd.LARGEST, integer=True))
    return Parts(
        (spec, ldm_unet.convert(network, build(spec))["model"]), (embedding(added, spec["width"]), waves),
        (autoencoder, vae.convert(first, build(autoencoder))), texts, SCALE,
        schedulers.read({**EULER, **official.get("scheduler", {})}), side, sizes == WHOLE, sizes,
        ldm_unet.guidance_channels(network),
    )


def _encoders(
    small: Mapping[str, Any], large: Mapping[str, Any], heads: Any
) -> tuple[tuple[Spec, Params] | None, tuple[Spec, Params]]:
    """The towers of a file: of transformers' names, where there is one, and of OpenCLIP's."""
    large = {key: value for key, value in large.items() if key != "logit_scale"}
    widths = [sd.prefixed(small)["text_model.embeddings.token_embedding.weight"].shape[1] if small else 64,
              large["positional_embedding"].shape[1]]
    heads = heads or [max(width // 64, 1) for width in widths]
    config = {"hidden_act": "quick_gelu", "eos_token_id": 2, "num_attention_heads": heads[0]}
    return (_tower(sd.prefixed(small), config) if small else None,
            _tower(large, {"vision_cfg": {}, "text_cfg": {"heads": heads[-1]}}))


def published(network: Mapping[str, Any], head: int = HEAD) -> Spec:
    """What to `build` the UNet of a single file from: all of it is in its shapes but the channels of a head.

    Args:
      network: key, without its prefix, -> array or shape.
      head: channels of an attention head.
    """
    widths, depths, blocks = [0], [0], [0]
    last = max(int(match[1]) for key in network if (match := re.match(r"input_blocks\.(\d+)\.", key)))
    for i in range(1, last + 1):
        if f"input_blocks.{i}.0.op.weight" in network:
            widths, depths, blocks = [*widths, 0], [*depths, 0], [*blocks, 0]
            continue
        widths[-1] = network[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0]
        depths[-1] = _depth(network, f"input_blocks.{i}.1.")
        blocks[-1] += 1
    attend = tuple(2**level for level, depth in enumerate(depths) if depth)
    depths[-1] = _depth(network, "middle_block.1.")
    transformer = tuple(depth or 1 for depth in depths)
    width = network["input_blocks.0.0.weight"].shape[0]
    return dict(
        name=ldm_unet.NETWORK, width=width, mults=tuple(w / width if w % width else w // width for w in widths), depth=blocks[0],
        attend=attend, scale_shift=False, resample="conv", heads=1, head_channels=head,
        transformer=transformer[0] if len(set(transformer)) == 1 else transformer,
        **ldm_unet.outputs(network["input_blocks.0.0.weight"].shape[1], network["out.2.weight"].shape[0]),
    )


def _depth(network: Mapping[str, Any], prefix: str) -> int:
    """The blocks of a transformer; 0 where there is none."""
    pattern = re.compile(rf"{re.escape(prefix)}transformer_blocks\.(\d+)\.")
    return len({match[1] for key in network if (match := pattern.match(key))})


# Parts ----------------------------------------------------------------------------------------------------------------------


def split(network: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A UNet's weights of either layout, and those of the embedding of sizes and text under `ADDED`."""
    plain, added = {}, {}
    for key, value in network.items():
        name = key
        for pattern, ours in _ADDED:
            name = re.sub(pattern, ours, name)
        (added if name.startswith(ADDED) else plain)[name] = value
    return plain, added


def embedding(added: Mapping[str, Any], width: int) -> Params:
    """The embedding of sizes and text as fc1 and fc2 of the conditioner of a UNet of some width."""
    def target(rows: int) -> Params:
        return {"kernel": rules.structs({"": (rows, 4 * width)})[""], "bias": rules.structs({"": (4 * width,)})[""]}

    return rules.convert(added, ADDED_RULES, {"fc1": target(added[f"{ADDED}1.weight"].shape[1]), "fc2": target(4 * width)})


def embedding_back(params: Params, names: tuple[str, str]) -> dict[str, Any]:
    """The inverse of `embedding`, with the names of both layers in some layout."""
    layers = {f"{ADDED}{i}.": params[f"fc{i}"] for i in (1, 2)}
    shapes: dict[str, Shape] = {}
    for key, value in layers.items():
        shapes |= {f"{key}weight": value["kernel"].shape[::-1], f"{key}bias": value["bias"].shape}
    back = rules.revert({name: params[name] for name in ("fc1", "fc2")}, ADDED_RULES, shapes)
    return {f"{names[int(key[len(ADDED)]) - 1]}.{key.rpartition('.')[2]}": value for key, value in back.items()}


def told(added: Mapping[str, Any], waves: int, large: Spec) -> int:
    """How many sizes the embedding reads beside the pooled text.

    Raises:
      ConfigError: neither six nor five.
    """
    room = added[f"{ADDED}1.weight"].shape[1] - large["features"]
    if room not in (SCORED * waves, WHOLE * waves):
        raise ConfigError(f"the embedding of sizes has {room} channels beside the text, neither {WHOLE} sizes of {waves} nor "
                          f"{SCORED}: these are parts of two models")
    return room // waves


# The page -------------------------------------------------------------------------------------------------------------------


def page(parts: Parts) -> dict[str, Any]:
    """The sections model, task, data and sample of a page."""
    network, autoencoder = parts.network[0], parts.first[0]
    small, large = parts.texts[0], parts.texts[1][0]
    factor = 2 ** (len(autoencoder["mults"]) - 1)
    side, context = parts.side * factor, large["context"]
    sizes = (side, side, 0, 0, *((SCORE,) if parts.sizes == SCORED else (side, side)))
    cond = dict(name="diffusion_jax.models.sdxl_text:XLText", clip_g=large, clip_l=small[0] if small else None,
                width=4 * network["width"], waves=parts.added[1], sizes=sizes, zeros=parts.zeros, context=context)
    cond |= {"negative_sizes": (*sizes[:-1], NEGATIVE_SCORE)} if parts.sizes == SCORED else {}
    first = dict(name="diffusion_jax.tasks.autoencoder:Autoencoder", model=autoencoder, scale=parts.scale,
                 shape=(side, side, autoencoder["channels"]))
    prediction = sd.PREDICTIONS[parts.scheduler.prediction]
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=sd.with_weight(cond, parts.weight),
        process=parts.scheduler.process, first_stage=first,
        scale=dict(name=f"diffusion_jax.diffusion.scales:{prediction}"), shape=(parts.side, parts.side, autoencoder["latent"]),
    )
    few = {} if large["vocab"] == clip.VOCAB else sd.merges(large["vocab"])
    tokenizer: Spec = dict(name="diffusion_jax.data.sd3_tokens:SD3Tokens", clip=context, length=2 * context, **few)
    if small is None:
        tokenizer = dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=context, pad_end=False, **few)
    decode = dict(name="diffusion_jax.data.image:Decode", size=side, tokenizer=tokenizer)
    few = dict(steps=sd.CONSISTENCY_STEPS, guidance=sd.CONSISTENCY_GUIDANCE) if parts.weight else {}
    sample = dict(steps=STEPS, guidance=GUIDANCE) | few | parts.scheduler.sample
    return dict(model=network, task=task, data=dict(decode=decode), sample=sample)


def joined(parts: Parts) -> Params:
    """The parameters, as `load` returns them."""
    small, large = parts.texts
    cond = {"clip_g": large[1], **parts.added[0]} | ({"clip_l": small[1]} if small else {})
    return {"model": parts.network[1], "cond": cond, "first_stage": {"model": parts.first[1]}}
