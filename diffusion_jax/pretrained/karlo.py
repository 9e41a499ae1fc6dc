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

from diffusion_jax.build import ConfigError, build
from diffusion_jax.pretrained import clip, unclip
from diffusion_jax.pretrained.folder import options, weights
from diffusion_jax.pretrained.reader import read, unpickled
from diffusion_jax.pretrained.sd import END_TEXT, PREDICTIONS, prefixed
from diffusion_jax.pretrained.sd import fill as sd_fill
from diffusion_jax.tasks.embedder import DOTS
from diffusion_jax.types import Params

DECODER = {"image_size": 64, "num_channels": 320, "num_res_blocks": 3, "channel_mult": "", "attention_resolutions": "32,16,8",
           "num_head_channels": 64, "clip_dim": 768, "clip_emb_mult": 4, "xf_width": 1536, "resblock_updown": True}
SUPER = {"channels": 320, "depth": 3, "channels_multiple": [1, 2, 3, 4]}
"""The hparams of the published networks."""
STEPS = {"prior": 25, "decoder": 25, "upsampler": 7}
GUIDANCE = {"prior": 4.0, "decoder": 8.0, "upsampler": 1.0}
KINDS = {"prior": "prior:Prior", "decoder": "unet:UNet", "cond": "unclip:ImageText"}
LETTERS = 514
"""The tokens of CLIP's vocabulary that are no merges."""
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
    told = {name: options(folder / name) for name in ("prior", "decoder", "text_proj", "super_res_first", "super_res_last")}
    ways = {part: _scheduler(folder / f"{name}_scheduler") for part, name in (
        ("prior", "prior"), ("decoder", "decoder"), ("upsampler", "super_res"))}
    prior = weights(folder / "prior")
    towers, found = _towers(folder)
    first, known = _clip(towers, found, sd_fill(folder), [np.asarray(prior[name]).reshape(-1) for name in unclip.STATISTICS])
    nets = {
        "prior": unclip.prior_config(told["prior"]), "decoder": unclip.unet_config(told["decoder"]),
        "cond": unclip.cond_config(told["text_proj"]),
    }
    small, large = (told[name].get("sample_size") for name in ("decoder", "super_res_first"))
    joined = weights(folder / "decoder") | weights(folder / "text_proj")
    last = [(unclip.unet_config(told[name]), weights(folder / name)) for name in ("super_res_first", "super_res_last")]
    return _whole(nets, prior, joined, last, first, known, ways, (small, large))


def from_files(folder: Path, official: Mapping[str, Any]) -> tuple[Spec, Params]:
    """`load` of Karlo's own layout."""
    prior, decoder, large = (read(_file(folder, f"{name}*.ckpt"), "state_dict") for name in ("prior", "decoder", "improved-sr"))
    state_dict, path = read(_file(folder, "ViT-L-14.pt")), _file(folder, "*_stats.th")
    towers = clip.towers(state_dict, official.get("clip"))
    found = {part: clip.convert(state_dict, build(spec)) for part, spec in towers.items()}
    first, known = _clip(towers, found, 0, _pair(path))
    hparams, sr = official.get("decoder", DECODER), official.get("sr", SUPER)
    nets = {
        "prior": unclip.prior_config(official["prior"]) if "prior" in official else unclip.prior_published(prior),
        "decoder": unclip.unet_config(hparams), "cond": unclip.cond_config(hparams),
    }
    last = [(unclip.unet_config(sr), {key.removeprefix(part): value for key, value in large.items() if key.startswith(part)})
            for part in ("model_first_steps.", "model_last_step.")]
    ways = {"prior": _way("X0", "fixed_small", 10.0, False), "decoder": _way("Eps", "learned_range", 1.0, False),
            "upsampler": _way("Eps", "fixed_small", 1.0, False)}
    return _whole(nets, prior, decoder, last, first, known, ways, (hparams["image_size"], official.get("size", 256)))


def _whole(
    nets: Mapping[str, Spec], prior: Params, decoder: Params, large: list[tuple[Spec, Params]], first: Spec, known: Params,
    ways: Mapping[str, Spec], sizes: tuple[int, int],
) -> tuple[Spec, Params]:
    """(page, params) of the networks' options and weights, the CLIP, how each part samples, and the sides of its images."""
    if sizes[1] % sizes[0]:
        raise ConfigError(f"images of {sizes[1]} pixels are no multiple of those of {sizes[0]}: no upsampler here makes them")
    large = [(_network("unet:UNet", **spec), found) for spec, found in large]
    specs = {name: _network(kind, **nets[name]) for name, kind in KINDS.items()}
    features = specs["cond"]["features"]
    parts = {
        "prior": (specs["prior"], _network("unclip:Text", features=features), (features,)),
        "decoder": (specs["decoder"], specs["cond"], (sizes[0], sizes[0], 3)),
        "upsampler": (_network("unclip:Relay", first=large[0][0], last=large[1][0]),
                      _network("cond:LowRes", factor=sizes[1] // sizes[0], enlarge="bicubic"), (sizes[1], sizes[1], 3)),
    }
    pages = {name: _page(name, *part, first, ways[name], sizes[name == "upsampler"]) for name, part in parts.items()}
    last = [unclip.convert(found, build(spec))["model"] for spec, found in large]
    others = {
        "prior": {"model": unclip.convert_prior(prior, build(specs["prior"])), "cond": {}},
        "upsampler": {"model": {"first": last[0], "last": last[1]}, "cond": {}},
    }
    params = unclip.convert(decoder, build(specs["decoder"]), build(specs["cond"]))
    return pages.pop("decoder") | {"parts": pages}, params | {"first_stage": known, "parts": others}


def _network(kind: str, **options: Any) -> Spec:
    return dict(name=f"diffusion_jax.models.{kind}", **options)


def _page(name: str, model: Spec, cond: Spec, shape: tuple[int, ...], first: Spec, way: Spec, size: int) -> Spec:
    """The sections model, task, data and sample of one part."""
    task = dict(name="diffusion_jax.tasks.diffusion:Diffusion", cond=cond, shape=shape, **way["task"])
    decode: Spec = dict(name="diffusion_jax.data.image:Decode", size=size)
    if name != "upsampler":
        task["first_stage"], decode["tokenizer"] = first, _tokenizer(first)
    sample = dict(sampler="ancestral", times="linspace", steps=STEPS[name], guidance=GUIDANCE[name], levels=0, **way["sample"])
    return dict(model=model, task=task, data=dict(decode=decode), sample=sample)


def _clip(towers: Mapping[str, Spec], found: Params, fill: int, statistics: list[np.ndarray]) -> tuple[Spec, Params]:
    """What to `build` the first stage from, and its parameters."""
    text = towers["text"]
    start, end = text["vocab"] - 2, text["vocab"] - 1
    size = towers["image"]["size"] if "image" in towers else 0
    model = dict(name="diffusion_jax.models.clip:CLIP", image=towers.get("image"), text=text)
    task = dict(name="diffusion_jax.tasks.clip:Contrastive", model=model, shape=(size, size, 3))
    mean, std = statistics
    known = {"clip": {"model": {**found, "logit_scale": jnp.float32(np.log(100))}}, "mean": mean, "std": std,
             "basis": np.eye(len(mean)), "low": 0 * mean, "high": 1 + 0 * mean, "dots": np.zeros(DOTS - 1)}
    known = {name: value if name == "clip" else jnp.asarray(value, jnp.float32) for name, value in known.items()}
    empty = (start, end, end if fill == END_TEXT else 0)
    return dict(name="diffusion_jax.tasks.embedder:Embedder", clip=task, empty=empty, unit=False), known


def _tokenizer(first: Spec) -> Spec:
    """CLIP's, with as many merges as the vocabulary has."""
    text, merges = first["clip"]["model"]["text"], first["clip"]["model"]["text"]["vocab"] - LETTERS
    few = {"most": merges} if merges > 0 else {"merges": ""}
    return dict(name="diffusion_jax.data.clip_bpe:ClipBPE", context=text["context"], pad_end=first["empty"][-1] != 0, **few)


def _towers(folder: Path) -> tuple[dict[str, Spec], dict[str, Params]]:
    """The specs and the parameters of a folder's text_encoder and, if it has one, image_encoder."""
    towers, found = {}, {}
    for part in ("text", "image"):
        place = folder / f"{part}_encoder"
        if part == "text" or place.is_dir():
            state_dict = weights(place)
            state_dict = prefixed(state_dict) if part == "text" else state_dict
            towers[part] = clip.towers(state_dict, options(place))[part]
            found[part] = clip.convert(state_dict, build(towers[part]))
    return towers, found


def _scheduler(folder: Path) -> Spec:
    """How a part samples, by its scheduler_config.json.

    Raises:
      ConfigError: a scheduler other than UnCLIPScheduler, whose betas are a cosine's.
    """
    o = options(folder, "scheduler_config.json")
    if o.get("_class_name") != "UnCLIPScheduler":
        raise ConfigError(f"{folder} holds a {o.get('_class_name')}: Karlo's are UnCLIPScheduler")
    variance = {"fixed_small_log": "fixed_small"}.get(o.get("variance_type"), o.get("variance_type", "fixed_small"))
    limit = o.get("clip_sample_range", 1.0) if o.get("clip_sample", True) else 0.0
    return _way(PREDICTIONS[o.get("prediction_type", "epsilon")], variance, limit, True, o.get("num_train_timesteps", 1000))


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
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ConfigError(f"{folder} holds {len(found)} files {pattern}: it needs one, or the folders of diffusers")
    return found[0]


def _pair(path: Path) -> list[np.ndarray]:
    """Mean and deviation in a file that holds the two tensors.

    Raises:
      ConfigError: see `unpickled`, or the file holds something else.
    """
    found = unpickled(path, lambda torch: torch.load(path, map_location="cpu", weights_only=True))
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise ConfigError(f"{path} holds no pair of tensors, mean and deviation")
    return [value.float().reshape(-1).numpy() for value in found]
