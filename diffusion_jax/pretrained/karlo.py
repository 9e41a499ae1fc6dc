"""Whole unCLIPs: Karlo (kakaobrain/karlo 1.0 alpha) in its own files and in diffusers' layout, and any other of the latter.

    a folder of files      prior-ckpt-*.ckpt, decoder-ckpt-*.ckpt, improved-sr-ckpt-*.ckpt, ViT-L-14.pt, ViT-L-14_stats.th
    a folder of folders    prior, text_encoder, text_proj, decoder, super_res_first, super_res_last, tokenizer, a scheduler for
                           each network, and perhaps image_encoder

The decoder becomes the run itself, the CLIP with its mean and deviation its first stage, the prior its folder `prior` and the
super-resolution its folder `upsampler`. What a folder of files does not say is that of the published ones; `official` says it of
others: prior, decoder and sr, the hparams of Karlo's yamls, and size, of the large images.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
KINDS = {"prior": "prior:Prior", "decoder": "unet:UNet", "cond": "unclip:ImageText"}
Spec = dict[str, Any]


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[Spec, Params]:
    """A published model as (config, params).

    Args:
      path: the folder, see the top of this file.
      official: see the top of this file.

    Returns:
      The page of the decoder and, as its 'parts', those of prior and upsampler; {'model', 'cond', 'first_stage', 'parts'}.

    Raises:
      ConfigError: something is missing or does not fit; the line says what.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give the one that holds prior, decoder and super-resolution")
    return from_folders(folder) if (folder / "decoder").is_dir() else from_files(folder, dict(official or {}))


def from_folders(folder: Path) -> tuple[Spec, Params]:
    """`load` of diffusers' layout."""
    names = ("prior", "decoder", "text_proj", "super_res_first", "super_res_last")
    configs = {name: options(folder / name) for name in names}
    ways = {part: _scheduler(folder / f"{name}_scheduler") for part, name in (
        ("prior", "prior"), ("decoder", "decoder"), ("upsampler", "super_res"))}
    prior = weights(folder / "prior")
    towers, text_params = _towers(folder)
    statistics = [np.asarray(prior[name]).reshape(-1) for name in unclip.STATISTICS]
    first, first_params = _clip(towers, text_params, sd_fill(folder), statistics)
    nets = {
        "prior": unclip.prior_config(configs["prior"]),
        "decoder": unclip.unet_config(configs["decoder"]),
        "cond": unclip.cond_config(configs["text_proj"]),
    }
    sizes = (configs["decoder"].get("sample_size"), configs["super_res_first"].get("sample_size"))
    joined = weights(folder / "decoder") | weights(folder / "text_proj")
    last = [(unclip.unet_config(configs[name]), weights(folder / name)) for name in names[-2:]]
    return _whole(nets, prior, joined, last, first, first_params, ways, sizes)


def from_files(folder: Path, official: Mapping[str, Any]) -> tuple[Spec, Params]:
    """`load` of Karlo's own layout."""
    prior, decoder, large = (
        read(_file(folder, f"{name}*.ckpt"), "state_dict") for name in ("prior", "decoder", "improved-sr")
    )
    state_dict = read(_file(folder, "ViT-L-14.pt"))
    path = _file(folder, "*_stats.th")
    towers = clip.towers(state_dict, official.get("clip"))
    tower_params = {part: clip.convert(state_dict, build(spec)) for part, spec in towers.items()}
    first, first_params = _clip(towers, tower_params, 0, _pair(path))
    hparams = official.get("decoder", DECODER)
    sr = unclip.unet_config(official.get("sr", SUPER))
    nets = {
        "prior": unclip.prior_config(official["prior"]) if "prior" in official else unclip.prior_published(prior),
        "decoder": unclip.unet_config(hparams),
        "cond": unclip.cond_config(hparams),
    }
    last = [(sr, part(large, prefix)) for prefix in ("model_first_steps.", "model_last_step.")]
    ways = {"prior": _way("X0", "fixed_small", 10.0, False), "decoder": _way("Eps", "learned_range", 1.0, False),
            "upsampler": _way("Eps", "fixed_small", 1.0, False)}
    sizes = (hparams["image_size"], official.get("size", 256))
    return _whole(nets, prior, decoder, last, first, first_params, ways, sizes)


def _whole(
    nets: Mapping[str, Spec],
    prior: Params,
    decoder: Params,
    large: list[tuple[Spec, Params]],
    first: Spec,
    first_params: Params,
    ways: Mapping[str, Spec],
    sizes: tuple[int, int],
) -> tuple[Spec, Params]:
    """(page, params) of the networks' options and weights, the CLIP, how each part samples, and the sides of its images."""
    if sizes[1] % sizes[0]:
        raise ConfigError(f"images of {sizes[1]} pixels are no multiple of those of {sizes[0]}: no upsampler here makes them")
    large = [(_network("unet:UNet", **spec), state_dict) for spec, state_dict in large]
    specs = {name: _network(kind, **nets[name]) for name, kind in KINDS.items()}
    features = specs["cond"]["features"]
    parts = {
        "prior": (specs["prior"], _network("unclip:Text", features=features), (features,)),
        "decoder": (specs["decoder"], specs["cond"], (sizes[0], sizes[0], 3)),
        "upsampler": (_network("unclip:Relay", first=large[0][0], last=large[1][0]),
                      _network("cond:LowRes", factor=sizes[1] // sizes[0], enlarge="bicubic"), (sizes[1], sizes[1], 3)),
    }
    pages = {name: _page(name, *part, first, ways[name], sizes[name == "upsampler"]) for name, part in parts.items()}
    last = [unclip.convert(state_dict, build(spec))["model"] for spec, state_dict in large]
    others = {
        "prior": {"model": unclip.convert_prior(prior, build(specs["prior"])), "cond": {}},
        "upsampler": {"model": {"first": last[0], "last": last[1]}, "cond": {}},
    }
    params = unclip.convert(decoder, build(specs["decoder"]), build(specs["cond"]))
    sections = pages["decoder"] | {"parts": {name: pages[name] for name in others}}
    return sections, params | {"first_stage": first_params, "parts": others}


def _network(kind: str, **options: Any) -> Spec:
    return dict(name=f"diffusion_jax.models.{kind}", **options)


def _page(name: str, model: Spec, cond: Spec, shape: tuple[int, ...], first: Spec, way: Spec, size: int) -> Spec:
    """The sections model, task, data and sample of one part."""
    kind = "prior:DiffusionPrior" if name == "prior" else "diffusion:Diffusion"
    task = dict(name=f"diffusion_jax.tasks.{kind}", cond=cond, shape=shape, **way["task"])
    decode: Spec = dict(name="diffusion_jax.data.image:Decode", size=size)
    if name != "upsampler":
        task["first_stage"], decode["tokenizer"] = first, _tokenizer(first)
    sample = dict(sampler="ancestral", times="linspace", steps=STEPS[name], guidance=GUIDANCE[name], levels=0, **way["sample"])
    return dict(model=model, task=task, data=dict(decode=decode), sample=sample)


def _clip(
    towers: Mapping[str, Spec], tower_params: Params, fill: int, statistics: list[np.ndarray]
) -> tuple[Spec, Params]:
    """What to `build` the first stage from, and its parameters."""
    text = towers["text"]
    start = text["vocab"] - 2
    end = text["vocab"] - 1
    size = towers["image"]["size"] if "image" in towers else 0
    model = dict(name="diffusion_jax.models.clip:CLIP", image=towers.get("image"), text=text)
    task = dict(name="diffusion_jax.tasks.clip:Contrastive", model=model, shape=(size, size, 3))
    mean, std = statistics
    numbers = {
        "mean": mean, "std": std, "basis": np.eye(len(mean)), "low": np.zeros_like(mean),
        "high": np.ones_like(mean), "dots": np.zeros(DOTS - 1),
    }
    params = {name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()}
    params["clip"] = {"model": {**tower_params, "logit_scale": jnp.float32(np.log(100))}}
    empty = (start, end, end if fill == END_TEXT else 0)
    spec = dict(name="diffusion_jax.tasks.embedder:Embedder", clip=task, empty=empty, unit=False)
    return spec, params


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


def _file(folder: Path, pattern: str) -> Path:
    """The one file of a name.

    Raises:
      ConfigError: there is none, or there are several.
    """
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise ConfigError(f"{folder} holds {len(files)} files {pattern}: it needs one, or the folders of diffusers")
    return files[0]


def _pair(path: Path) -> list[np.ndarray]:
    """Mean and deviation in a file that holds the two tensors.

    Raises:
      ConfigError: see `unpickled`, or the file holds something else.
    """
    pair = unpickled(path, lambda torch: torch.load(path, map_location="cpu", weights_only=True))
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(f"{path} holds no pair of tensors, mean and deviation")
    return [value.float().reshape(-1).numpy() for value in pair]
