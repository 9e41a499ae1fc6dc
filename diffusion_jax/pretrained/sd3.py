"""Stable Diffusion 3 and 3.5: the transformer, its autoencoder and its three text encoders as one latent diffusion model.

Two layouts of a model are read:

    one file     .safetensors of Stability AI: model.diffusion_model.*, first_stage_model.*, and text_encoders.{clip_l, clip_g,
                 t5xxl}.transformer.*, or files of their own for these, which --official names
    a folder     of diffusers: transformer/, vae/, text_encoder/, text_encoder_2/, text_encoder_3/, tokenizer_3/spiece.model,
                 scheduler/scheduler_config.json, each network with its config.json; in shards, or of a variant, as they come

T5 may be missing, or be left out with {"t5": false}: zeros stand in its place, as the published pipelines do it. What a file does
not say is as published: the heads have 64 channels, the flow's shift is 3, CLIP-L has OpenAI's activation and CLIP-G the exact
one, latents are shifted by 0.0609 and scaled by 1.5305.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diffusion_jax.build import ConfigError, build, number, short, unknown
from diffusion_jax.data.sentence_pieces import FILE as PIECES
from diffusion_jax.pretrained import clip, sd, sd3_mmdit, sd3_scheduler, sd3_vae, t5, vae
from diffusion_jax.pretrained.folder import options, weights
from diffusion_jax.pretrained.package import Spec
from diffusion_jax.pretrained.reader import read
from diffusion_jax.types import Params

NETWORK, FIRST, TEXT = "model.diffusion_model.", vae.FIRST, "text_encoders."
ENCODERS = ("clip_l", "clip_g", "t5xxl")
"""Of a single file, in the order of the folders text_encoder, text_encoder_2 and text_encoder_3."""
FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
ACTS = {"clip_l": "quick_gelu", "clip_g": "gelu"}
PARTS = ("transformer", "vae", *FOLDERS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", "image_encoder",
         "feature_extractor")
"""Of a folder: what is read, and the two that adapters for pictures bring, null without them."""
T5_TOKENS = 256
SIDE = 128
"""Of the latents of 1024 pixels."""
SHIFT = 3.0
STEPS, GUIDANCE = 28, 7.0
"""Of diffusers' pipeline."""
LARGEST = 4096
"""Side of latents; what is sampled at a size of its own asks for memory."""
OFFICIAL = {"folder": ("scheduler", "t5", "pieces"), "file": ("scheduler", "t5", "pieces", *ENCODERS)}
"""What the JSON of --official may hold."""


class Parts(NamedTuple):
    """What a model is made of, as it is found.

    Attributes:
      network: the transformer's spec and parameters.
      first: the autoencoder's.
      texts: the specs and parameters of CLIP-L, CLIP-G and T5; None for a T5 that is left out.
      latents: scale and shift, as tasks/autoencoder.py has them.
      scheduler: see pretrained/schedulers.py.
      side: of the latents.
      pieces: the file of T5's tokenizer.
    """

    network: tuple[Spec, Params]
    first: tuple[Spec, Params]
    texts: tuple[tuple[Spec, Params] | None, ...]
    latents: dict[str, float]
    scheduler: sd3_scheduler.Scheduler
    side: int
    pieces: str


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published model as (config, params).

    Args:
      path: the file or the folder, see the top of this file.
      official: {'scheduler': {key: value}} in place of the scheduler's own; {'t5': false} to leave T5 out; {'pieces': the file
        spiece.model}; of a file clip_l, clip_g and t5xxl, the files of text encoders that it does not hold.

    Returns:
      The sections model, task, data and sample of a page, and {'model': ..., 'cond': ..., 'first_stage': ...}, the last of which
      holds the parameters of the autoencoder that task.first_stage describes.

    Raises:
      ConfigError: something is missing, has no counterpart here or does not fit; the line says what.

    Example:
      page, params = load('stable-diffusion-3.5-medium/', {'t5': False})
    """
    path, official = Path(path), official or MappingProxyType({})
    kind = "folder" if path.is_dir() else "file"
    for key in official:
        if key not in OFFICIAL[kind]:
            raise unknown(f"option of --official for a {kind}", key, OFFICIAL[kind])
    own = official.get("scheduler", {})
    if not isinstance(own, Mapping) or not isinstance(official.get("t5", True), bool):
        raise ConfigError("of --official scheduler is a mapping of its options, t5 is true or false, got "
                          f"{short({key: official[key] for key in ('scheduler', 't5') if key in official})}")
    parts = (from_folder if kind == "folder" else from_file)(path, official)
    return page(parts), joined(parts)


# A folder -------------------------------------------------------------------------------------------------------------------


def from_folder(folder: Path, official: Mapping[str, Any]) -> Parts:
    """The parts of a folder of diffusers."""
    _whole(folder)
    with_t5 = official.get("t5", (folder / FOLDERS[2]).is_dir())
    if with_t5 and not (folder / FOLDERS[2]).is_dir():
        raise ConfigError(f"{folder} has no {FOLDERS[2]}: get it, or leave T5 out")
    config = options(folder / "transformer")
    spec = sd3_mmdit.diffusers_config(config) | {"scan": True}
    spec, params = _network(weights(folder / "transformer"), spec)
    autoencoder = options(folder / "vae")
    first = sd3_vae.diffusers_config(autoencoder)
    texts: list[tuple[Spec, Params] | None] = [_clip(sd.prefixed(weights(folder / name)), options(folder / name))
                                               for name in FOLDERS[:2]]
    texts.append(_t5(weights(folder / FOLDERS[2]), t5.config(options(folder / FOLDERS[2]))) if with_t5 else None)
    schedule = options(folder / "scheduler", "scheduler_config.json")
    side = number("sample_size of transformer/config.json", config.get("sample_size") or SIDE, 1, LARGEST, integer=True)
    return Parts(
        (spec, params), (first, sd3_vae.convert(weights(folder / "vae"), build(first))), tuple(texts),
        sd3_vae.latents(autoencoder), sd3_scheduler.read({**schedule, **official.get("scheduler", {})}), int(side),
        str(official.get("pieces", (folder / "tokenizer_3" / PIECES).resolve())),
    )


def _whole(folder: Path) -> None:
    """Refuses a folder that lacks a part, or has one that changes what it makes and that is not read here."""
    file = "model_index.json"
    index = options(folder, file) if (folder / file).is_file() else {}
    for name, value in index.items():
        if name not in PARTS and not name.startswith("_") and isinstance(value, list) and any(value):
            raise ConfigError(f"{folder / file} has a {name}, which no model here has: known parts are {', '.join(PARTS)}")
    for name in ("transformer", "vae", "scheduler", *FOLDERS[:2]):
        if not (folder / name).is_dir():
            raise ConfigError(f"{folder} has no {name}, which a whole Stable Diffusion 3 has: get it")


# One file -------------------------------------------------------------------------------------------------------------------


def from_file(path: Path, official: Mapping[str, Any]) -> Parts:
    """The parts of a single file, and of the files beside it."""
    whole = read(path, "state_dict")
    strange = [key for key in whole if not key.startswith((NETWORK, FIRST, *(f"{TEXT}{name}." for name in ENCODERS)))]
    network, first = sd.part(whole, NETWORK), sd.part(whole, FIRST)
    if strange or not network or not first:
        what = f"{strange[0]} is not of one" if strange else "a part is missing"
        raise ConfigError(f"{path} is no whole Stable Diffusion 3 in one file: {what}")
    spec, params = _network(network, sd3_mmdit.published(network) | {"scan": True})
    autoencoder = sd3_vae.published(first)
    found = [_encoder(whole, name, official) for name in ENCODERS]
    texts = [_clip(sd.prefixed(found[i]), _published_clip(found[i], ENCODERS[i])) if found[i] else None for i in (0, 1)]
    for name, part in zip(ENCODERS, texts, strict=False):
        if part is None:
            raise ConfigError(f"{path} holds no {name}: give its file in --official, a JSON file {{\"{name}\": "
                              f"\"{name}.safetensors\"}}")
    with_t5 = official.get("t5", bool(found[2]))
    if with_t5 and not found[2]:
        raise ConfigError(f"{path} holds no {ENCODERS[2]}: give its file in --official, or leave T5 out")
    texts.append(_t5(found[2], t5.published(found[2])) if with_t5 else None)
    schedule = {"_class_name": sd3_scheduler.KIND, "shift": SHIFT, **official.get("scheduler", {})}
    return Parts(
        (spec, params), (autoencoder, sd3_vae.convert(first, build(autoencoder))), tuple(texts),
        {"scale": sd3_vae.SCALE, "shift": sd3_vae.SHIFT}, sd3_scheduler.read(schedule), SIDE,
        str(Path(official.get("pieces", path.parent / PIECES)).resolve()),
    )


def _encoder(whole: Mapping[str, Any], name: str, official: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a text encoder in transformers' names: of the file that --official names, or of the whole one."""
    if name in official and official.get("t5", True) in (True, name != ENCODERS[2]):
        inner = read(official[name])
        return sd.part(inner, "transformer.") or inner
    return sd.part(whole, f"{TEXT}{name}.transformer.")


def _published_clip(state_dict: Mapping[str, Any], name: str) -> Spec:
    """What transformers' config says of a published encoder and its shapes do not."""
    width = sd.prefixed(state_dict)["text_model.embeddings.token_embedding.weight"].shape[1]
    return {"hidden_act": ACTS[name], "eos_token_id": 2, "num_attention_heads": max(width // 64, 1)}


# Parts ----------------------------------------------------------------------------------------------------------------------


def _network(state_dict: dict[str, Any], spec: Spec) -> tuple[Spec, Params]:
    """The transformer, with positions where its file has them."""
    table = state_dict[sd3_mmdit.HF_POSITIONS if sd3_mmdit.is_diffusers(state_dict) else sd3_mmdit.POSITIONS]
    origin, step = sd3_mmdit.placed(table, spec["step"])
    spec = spec | {"step": step} | ({"origin": origin} if origin else {})
    return spec, sd3_mmdit.convert(state_dict, build(spec))


def _clip(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Spec, Params]:
    tower = clip.towers(state_dict, config)["text"]
    return tower, clip.convert(state_dict, build(tower))


def _t5(state_dict: Mapping[str, Any], spec: Spec) -> tuple[Spec, Params]:
    spec = spec | {"scan": True}
    return spec, t5.convert(state_dict, build(spec))


# The page -------------------------------------------------------------------------------------------------------------------


def page(parts: Parts) -> dict[str, Any]:
    """The sections model, task, data and sample of a page."""
    network, autoencoder = parts.network[0], parts.first[0]
    tower_l, tower_g, encoder = (part[0] if part else None for part in parts.texts)
    factor = 2 ** (len(autoencoder["mults"]) - 1)
    if network["channels"] != autoencoder["latent"]:
        raise ConfigError(f"the transformer sees latents of {network['channels']} channels, the autoencoder makes "
                          f"{autoencoder['latent']}: these are parts of two models")
    width = parts.network[1]["context"]["kernel"].shape[0]
    first = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder", model=autoencoder, **parts.latents,
        shape=(parts.side * factor, parts.side * factor, autoencoder["channels"]),
    )
    context = tower_l["context"]
    cond = dict(name="diffusion_jax.models.sd3_text:SD3Text", clip_l=tower_l, clip_g=tower_g, t5=encoder, width=width,
                context=context, t5_context=T5_TOKENS)
    task = dict(
        name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, process=parts.scheduler.process, first_stage=first,
        scale=dict(name="diffusion_jax.diffusion.scales:Velocity"), times=dict(name="diffusion_jax.diffusion.times:LogitNormal"),
        shape=(parts.side, parts.side, autoencoder["latent"]),
    )
    few = {} if tower_l["vocab"] == clip.VOCAB else sd.merges(tower_l["vocab"])
    tokenizer: Spec = dict(name="diffusion_jax.data.sd3_tokens:SD3Tokens", clip=context, length=2 * context, **few)
    if encoder is not None:
        tokenizer |= {"pieces": parts.pieces, "length": 2 * context + T5_TOKENS}
    decode = dict(name="diffusion_jax.data.image:Decode", size=parts.side * factor, tokenizer=tokenizer)
    sample = dict(steps=STEPS, guidance=GUIDANCE) | parts.scheduler.sample
    return dict(model=network, task=task, data=dict(decode=decode), sample=sample)


def joined(parts: Parts) -> Params:
    """The parameters, as `load` returns them."""
    names = ("clip_l", "clip_g", "t5")
    texts = {name: part[1] for name, part in zip(names, parts.texts, strict=True) if part is not None}
    return {"model": parts.network[1], "cond": texts, "first_stage": {"model": parts.first[1]}}
