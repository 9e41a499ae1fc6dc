"""Whole unCLIPs: Karlo (kakaobrain/karlo 1.0 alpha) in its own files and in diffusers' layout, and any other of the latter.

    a folder of files      prior-ckpt-*.ckpt, decoder-ckpt-*.ckpt, improved-sr-ckpt-*.ckpt, ViT-L-14.pt, ViT-L-14_stats.th
    a folder of folders    prior, text_encoder, text_proj, decoder, super_res_first, super_res_last, tokenizer, a scheduler for
                           each network, and perhaps image_encoder

The decoder becomes the run itself, the CLIP with its mean and deviation its first stage, the prior its folder `prior` and the
super-resolution its folder `upsampler`. Of a folder that holds some of the networks these are read: with a decoder the others
become its folders, alone each becomes a run. What a folder of files does not say is that of the published ones; `official` says
it of others: prior, decoder and sr, the hparams of Karlo's yamls, clip, the options of OpenAI's or OpenCLIP's, size, of the large
images, and unit, whether embeddings are brought to one length. Files may be .safetensors: prior, decoder, improved-sr, clip and
clip_stats.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build, unknown
from diffusion_jax.pretrained import clip, schedulers, unclip
from diffusion_jax.pretrained.folder import options, weights
from diffusion_jax.pretrained.reader import read, unpickled
from diffusion_jax.pretrained.sd import END_TEXT, PREDICTIONS, merges, part, prefixed
from diffusion_jax.pretrained.sd import fill as sd_fill
from diffusion_jax.tasks.embedder import DOTS
from diffusion_jax.types import Params

UNCLIP = {"num_train_timesteps": 1000, "variance_type": "fixed_small_log", "clip_sample": True, "clip_sample_range": 1.0,
          "prediction_type": "epsilon", "beta_schedule": "squaredcos_cap_v2"}
"""The options of diffusers' UnCLIPScheduler, with their defaults."""
VARIANCES = {"fixed_small_log": "fixed_small", "learned_range": "learned_range"}
DECODER = {"image_size": 64, "num_channels": 320, "num_res_blocks": 3, "channel_mult": "", "attention_resolutions": "32,16,8",
           "num_head_channels": 64, "clip_dim": 768, "clip_emb_mult": 4, "xf_width": 1536, "resblock_updown": True}
SUPER = {"channels": 320, "depth": 3, "channels_multiple": [1, 2, 3, 4]}
"""The hparams of the published networks."""
STEPS = {"prior": 25, "decoder": 25, "upsampler": 7}
GUIDANCE = {"prior": 4.0, "decoder": 8.0, "upsampler": 1.0}
FOLDERS = {"prior": "prior", "decoder": "decoder", "upsampler": "super_res_first"}
FILES = {"prior": "prior", "decoder": "decoder", "upsampler": "improved-sr"}
"""By what each part is known in either layout."""
CLIP = ("ViT-L-14.pt", "clip.safetensors")
STATISTICS = ("*_stats.th", "clip_stats.safetensors")
SUPER_PREFIXES = ("model_first_steps.", "model_last_step.")
UNIT = "unit_embeds"
"""An option of our own in the config.json of a folder's text encoder: embeddings are brought to one length (`Embedder.unit`)."""
Spec = dict[str, Any]


class Part(NamedTuple):
    """One network as it was read.

    Attributes:
      model, cond: what to `build` it and its conditioner from.
      shape: of what it makes.
      params: {'model': ..., 'cond': ...}.
      way: how it samples, see `_way`.
    """

    model: Spec
    cond: Spec
    shape: tuple[int, ...]
    params: Params
    way: Spec


class First(NamedTuple):
    """The CLIP: what to `build` its embedder from, and the parameters of that."""

    spec: Spec
    params: Params


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[Spec, Params]:
    """A published model as (config, params).

    Args:
      path: the folder, see the top of this file.
      official: see the top of this file.

    Returns:
      The page of the decoder and, as its 'parts', those of prior and upsampler; {'model', 'cond', 'first_stage', 'parts'}. Where
      there is no decoder, those of what there is.

    Raises:
      ConfigError: something is missing or does not fit; the line says what.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give the one that holds prior, decoder and super-resolution")
    if not any((folder / name).is_dir() for name in FOLDERS.values()):
        return from_files(folder, dict(official or {}))
    if official:
        raise ConfigError(f"--official is for Karlo's own files: {folder} is a folder of diffusers, which says everything")
    return from_folders(folder)


def from_folders(folder: Path) -> tuple[Spec, Params]:
    """`load` of diffusers' layout."""
    present = [name for name, inner in FOLDERS.items() if (folder / inner).is_dir()]
    if "upsampler" in present and "decoder" not in present:
        raise ConfigError(f"{folder} holds {FOLDERS['upsampler']} and no decoder, which says what it enlarges: put it beside")
    parts: dict[str, Part] = {}
    statistics: list[np.ndarray] = []
    if "prior" in present:
        prior = weights(folder / "prior")
        statistics = [np.asarray(prior[name]).reshape(-1) for name in unclip.STATISTICS]
        spec = unclip.prior_config(options(folder / "prior"))
        parts["prior"] = _prior(spec, prior, _scheduler(folder / "prior_scheduler"))
    small = 0
    if "decoder" in present:
        config = options(folder / "decoder")
        small = config["sample_size"]
        joined = weights(folder / "decoder") | weights(folder / "text_proj")
        cond = unclip.cond_config(options(folder / "text_proj"))
        parts["decoder"] = _decoder(unclip.unet_config(config), cond, joined, small, _scheduler(folder / "decoder_scheduler"))
    if "upsampler" in present:
        names = ("super_res_first", "super_res_last")
        configs = [options(folder / name) for name in names]
        specs = [unclip.unet_config(config) for config in configs]
        sizes = (small, configs[0]["sample_size"])
        way = _scheduler(folder / "super_res_scheduler")
        parts["upsampler"] = _upsampler(specs, [weights(folder / name) for name in names], sizes, way)
    unit = bool(options(folder / "text_encoder").get(UNIT))
    return _whole(folder, parts, _clip(*_towers(folder), sd_fill(folder), statistics, unit))


def from_files(folder: Path, official: Mapping[str, Any]) -> tuple[Spec, Params]:
    """`load` of Karlo's own layout."""
    files = {name: _file(folder, f"{stem}*.ckpt", f"{stem}*.safetensors") for name, stem in FILES.items()}
    state_dicts = {name: read(file, "state_dict") for name, file in files.items() if file is not None}
    if not state_dicts:
        raise ConfigError(f"{folder} holds 0 files {FILES['prior']}*.ckpt: it needs one, or the folders of diffusers")
    hparams = official.get("decoder", DECODER)
    parts: dict[str, Part] = {}
    if "prior" in state_dicts:
        prior = state_dicts["prior"]
        spec = unclip.prior_config(official["prior"]) if "prior" in official else unclip.prior_published(prior)
        parts["prior"] = _prior(spec, prior, _way("X0", "fixed_small", 10.0, False))
    if "decoder" in state_dicts:
        variance = "learned_range" if hparams.get("learn_sigma", True) else "fixed_small"
        cond = unclip.cond_config(hparams)
        parts["decoder"] = _decoder(unclip.unet_config(hparams), cond, state_dicts["decoder"], hparams["image_size"],
                                    _way("Eps", variance, 1.0, False))
    if "upsampler" in state_dicts:
        nets = [part(state_dicts["upsampler"], prefix) for prefix in SUPER_PREFIXES]
        sizes = (hparams["image_size"], official.get("size", 256))
        parts["upsampler"] = _upsampler([unclip.unet_config(official.get("sr", SUPER))] * 2, nets, sizes,
                                        _way("Eps", "fixed_small", 1.0, False))
    return _whole(folder, parts, None if set(parts) == {"upsampler"} else _clip_of_files(folder, official))


def _clip_of_files(folder: Path, official: Mapping[str, Any]) -> First:
    """The CLIP of Karlo's own layout, and the file of its statistics.

    Raises:
      ConfigError: either is missing, or see `clip.towers` and `_pair`.
    """
    model = _needed(folder, "a CLIP", CLIP)
    numbers = _needed(folder, "the statistics of its embeddings", STATISTICS)
    state_dict = read(model)
    towers = clip.towers(state_dict, official.get("clip"))
    params = {tower: clip.convert(state_dict, build(spec)) for tower, spec in towers.items()}
    scale = {"logit_scale": jnp.float32(state_dict["logit_scale"])} if "logit_scale" in state_dict else {}
    return _clip(towers, params | scale, 0, _pair(numbers), bool(official.get("unit")))


def _prior(spec: Spec, state_dict: Params, way: Spec) -> Part:
    """A prior."""
    model = _network("prior:Prior", **spec)
    features = spec["features"]
    params = {"model": unclip.convert_prior(state_dict, build(model)), "cond": {}}
    return Part(model, _network("unclip:Text", features=features), (features,), params, way)


def _decoder(spec: Spec, cond: Spec, state_dict: Params, side: int, way: Spec) -> Part:
    """A decoder of images of side x side."""
    model = _network("unet:UNet", **spec)
    cond = _network("unclip:ImageText", **cond)
    params = unclip.convert(state_dict, build(model), build(cond))
    return Part(model, cond, (side, side, spec.get("channels", 3)), params, way)


def _upsampler(specs: list[Spec], state_dicts: list[Params], sizes: tuple[int, int], way: Spec) -> Part:
    """Super-resolution, in two networks; `sizes` are the sides of its small and its large images."""
    small, large = sizes
    if large % small:
        raise ConfigError(f"images of {large} pixels are no multiple of those of {small}: no upsampler here makes them")
    nets = dict(zip(("first", "last"), (_network("unet:UNet", **spec) for spec in specs), strict=True))
    params = {name: unclip.convert(w, build(net))["model"] for (name, net), w in zip(nets.items(), state_dicts, strict=True)}
    cond = _network("cond:LowRes", factor=large // small, enlarge="bicubic")
    shape = (large, large, specs[0].get("channels", 3))
    return Part(_network("unclip:Relay", **nets), cond, shape, {"model": params, "cond": {}}, way)


def _whole(folder: Path, parts: Mapping[str, Part], first: First | None) -> tuple[Spec, Params]:
    """(page, params) of the networks of a folder and of their CLIP, which an upsampler alone does without.

    Raises:
      ConfigError: several networks, and no decoder that they could be parts of.
    """
    main = "decoder" if "decoder" in parts else next(iter(parts))
    if main != "decoder" and len(parts) > 1:
        raise ConfigError(f"{folder} holds {' and '.join(parts)}, but no decoder: give a folder of each, or add the decoder")
    missing = [name for name in FOLDERS if name not in parts]
    if missing:
        print(f"{folder} holds no {' and no '.join(missing)}: imported without")
    own = 0 if first is None else first.spec["clip"]["shape"][0]
    side = parts["decoder"].shape[0] if "decoder" in parts else own or DECODER["image_size"]
    pages = {name: _page(name, one, first, side) for name, one in parts.items()}
    others = [name for name in parts if name != main]
    page = pages[main]
    params = {**parts[main].params, **({} if first is None else {"first_stage": first.params})}
    if others:
        page["parts"] = {name: pages[name] for name in others}
        params["parts"] = {name: parts[name].params for name in others}
    return page, params


def _network(kind: str, **options: Any) -> Spec:
    return dict(name=f"diffusion_jax.models.{kind}", **options)


def _page(name: str, one: Part, first: First | None, side: int) -> Spec:
    """The sections model, task, data and sample of one part; `side` is that of the pictures whose embeddings a prior makes."""
    kind = "prior:DiffusionPrior" if name == "prior" else "diffusion:Diffusion"
    task = dict(name=f"diffusion_jax.tasks.{kind}", cond=one.cond, shape=one.shape, **one.way["task"])
    size, channels = (side, 3) if name == "prior" else one.shape[1:]
    decode: Spec = dict(name="diffusion_jax.data.image:Decode", size=size, **({} if channels == 3 else {"channels": channels}))
    if name != "upsampler" and first is not None:
        task["first_stage"] = first.spec
        decode["tokenizer"] = _tokenizer(first.spec)
    numbers = dict(steps=STEPS[name], guidance=GUIDANCE[name], levels=0)
    sample = dict(sampler="ancestral", times="linspace", **numbers, **one.way["sample"])
    return dict(model=one.model, task=task, data=dict(decode=decode), sample=sample)


def _clip(
    towers: Mapping[str, Spec], tower_params: Params, fill: int, statistics: list[np.ndarray], unit: bool = False
) -> First:
    """The first stage; `statistics` are none, or the mean and the deviation of embeddings."""
    text = towers["text"]
    start = text["vocab"] - 2
    end = text["vocab"] - 1
    size = towers["image"]["size"] if "image" in towers else 0
    model = dict(name="diffusion_jax.models.clip:CLIP", image=towers.get("image"), text=text)
    task = dict(name="diffusion_jax.tasks.clip:Contrastive", model=model, shape=(size, size, 3))
    features = text["features"]
    mean, std = statistics or (np.zeros(features), np.ones(features))
    numbers = {
        "mean": mean, "std": std, "basis": np.eye(len(mean)), "low": np.zeros_like(mean),
        "high": np.ones_like(mean), "dots": np.zeros(DOTS - 1),
    }
    params: dict[str, Any] = {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
    params["clip"] = {"model": {"logit_scale": jnp.float32(np.log(100)), **tower_params}}
    empty = (start, end, end if fill == END_TEXT else 0)
    spec = dict(name="diffusion_jax.tasks.embedder:Embedder", clip=task, empty=empty, unit=unit)
    return First(spec, params)


def _tokenizer(first: Spec) -> Spec:
    """CLIP's, with as many merges as the vocabulary has."""
    text = first["clip"]["model"]["text"]
    few = merges(text["vocab"])
    return dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=text["context"], pad_end=first["empty"][-1] != 0, **few)


def _towers(folder: Path) -> tuple[dict[str, Spec], dict[str, Params]]:
    """The specs and the parameters of a folder's text_encoder and, if it has one, image_encoder."""
    towers: dict[str, Spec] = {}
    params: dict[str, Params] = {}
    for name in ("text", "image"):
        encoder = folder / f"{name}_encoder"
        if name == "text" or encoder.is_dir():
            state_dict = weights(encoder)
            state_dict = prefixed(state_dict) if name == "text" else state_dict
            towers[name] = clip.towers(state_dict, options(encoder))[name]
            params[name] = clip.convert(state_dict, build(towers[name]))
    return towers, params


def _scheduler(folder: Path) -> Spec:
    """How a part samples, by its scheduler_config.json.

    Raises:
      ConfigError: a scheduler other than UnCLIPScheduler, whose betas are a cosine's, or an option that it does not have.
    """
    config = options(folder, "scheduler_config.json")
    if config.get("_class_name") != "UnCLIPScheduler":
        raise ConfigError(f"{folder} holds a {config.get('_class_name')}: Karlo's are UnCLIPScheduler")
    o = schedulers.checked(config, UNCLIP)
    words = {"prediction_type": ("epsilon", "sample"), "variance_type": VARIANCES, "beta_schedule": (UNCLIP["beta_schedule"],)}
    for key, allowed in words.items():
        if o[key] not in allowed:
            raise unknown(f"{key} of {folder}", o[key], allowed)
    limit = o["clip_sample_range"] if o["clip_sample"] else 0.0
    return _way(PREDICTIONS[o["prediction_type"]], VARIANCES[o["variance_type"]], limit, True, o["num_train_timesteps"])


def _way(scale: str, variance: str, clip_at: float, rounded: bool, steps: int = 1000) -> Spec:
    """What a part of a task and of a page's section sample follow from."""
    process = dict(name="diffusion_jax.diffusion.process:DDPM", schedule="squaredcos", steps=steps, rounded=rounded)
    learned = {"objective": "hybrid"} if variance.startswith("learned") else {}
    task = dict(process=process, scale=dict(name=f"diffusion_jax.diffusion.scales:{scale}"), variance=variance, **learned)
    return {"task": task, "sample": {"clip": clip_at}}


def _file(folder: Path, *patterns: str) -> Path | None:
    """The one file of a name, if any.

    Raises:
      ConfigError: there are several.
    """
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if len(files) > 1:
        raise ConfigError(f"{folder} holds {len(files)} files {' or '.join(patterns)}: it needs one, or the folders of diffusers")
    return next(iter(files), None)


def _needed(folder: Path, what: str, patterns: tuple[str, ...]) -> Path:
    """The same, where there has to be one.

    Raises:
      ConfigError: there is none, or there are several.
    """
    file = _file(folder, *patterns)
    if file is None:
        raise ConfigError(f"{folder} lacks {what}: put {' or '.join(patterns)} there")
    return file


def _pair(path: Path) -> list[np.ndarray]:
    """Mean and deviation in a file that holds the two tensors.

    Raises:
      ConfigError: see `unpickled`, or the file holds something else.
    """
    if path.suffix == ".safetensors":
        numbers = read(path)
        return [numbers[name].reshape(-1) for name in ("mean", "std")]
    pair = unpickled(path, lambda torch: torch.load(path, map_location="cpu", weights_only=True))
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(f"{path} holds no pair of tensors, mean and deviation")
    return [value.float().reshape(-1).numpy() for value in pair]
