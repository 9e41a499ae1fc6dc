"""unCLIPs for Karlo's own code, a folder of files: the way back of pretrained/karlo.py. karlo_hf_export.py is that to diffusers.

A run is one network: a decoder or a prior with its CLIP, or an upsampler. What is written holds the networks that there are: a
decoder's page may have those of a prior and an upsampler as its 'parts', as `karlo.load` returns them.

Both programs take the CLIP's embeddings as they are. Networks trained here see them at one length, tasks/embedder.py (1), which
is said in the options, so that they are read here as they were.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.build import build, short
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.unclip import Relay
from diffusion_jax.pretrained import clip_export, karlo, unclip, unclip_export
from diffusion_jax.pretrained.package import CONFIG, Package, Page, Spec, only, process_note, refuse, square
from diffusion_jax.pretrained.rules import Shape
from diffusion_jax.pretrained.unclip_export import TITLE
from diffusion_jax.types import Array, Params

HEAD = 64
"""Channels of a head in the text towers that Karlo's code builds."""
PREDICTED = {"prior": "X0", "decoder": "Eps", "upsampler": "Eps"}
"""What Karlo's networks predict, by the names of diffusion/scales.py."""
SCHEDULE = "squaredcos"
_READ = """import json
from omegaconf import OmegaConf
from safetensors.torch import load_file
from karlo.models.clip import CustomizedTokenizer                                  # github.com/kakaobrain/karlo
options = json.load(open("FOLDER/config.json"))"""
_CODES = {
    "prior": """from karlo.models.prior_model import PriorDiffusionModel
config = OmegaConf.load("configs/prior_1B_vit_l.yaml")
config.model.hparams = options["prior"]
numbers = load_file("FOLDER/clip_stats.safetensors")
prior = PriorDiffusionModel(config, CustomizedTokenizer(), numbers["mean"], numbers["std"])
prior.load_state_dict(load_file("FOLDER/prior.safetensors"))""",
    "decoder": """from karlo.models.decoder_model import Text2ImProgressiveModel
config = OmegaConf.load("configs/decoder_900M_vit_l.yaml")
config.model.hparams = options["decoder"]
decoder = Text2ImProgressiveModel(config, CustomizedTokenizer())
decoder.load_state_dict(load_file("FOLDER/decoder.safetensors"))""",
    "upsampler": """from karlo.models.sr_64_256 import ImprovedSupRes64to256ProgressiveModel
config = OmegaConf.load("configs/improved_sr_64_256_1.4B.yaml")
config.model.hparams = options["sr"]
upsampler = ImprovedSupRes64to256ProgressiveModel(config)
upsampler.load_state_dict(load_file("FOLDER/improved-sr.safetensors"))""",
}


class Part(NamedTuple):
    """One network of a run: its page, its parameters and, built of the page, the network and its conditioner."""

    page: Page
    params: Params
    model: Any
    cond: Any

    @property
    def drop(self) -> Mapping[str, float]:
        """The rates at which conditions were dropped."""
        return self.page["task"].get("drop") or {}


class First(NamedTuple):
    """The CLIP: what to `build` its embedder from, the embedder's parameters, and of what was built the CLIP and its `unit`."""

    spec: Spec
    params: Params
    model: Any
    unit: bool


class Whole(NamedTuple):
    """What a run is made of.

    Attributes:
      parts: 'prior', 'decoder' and 'upsampler', as far as they are there.
      first: their CLIP; None of an upsampler alone.
      notes: what is left out.
    """

    parts: Mapping[str, Part]
    first: First | None
    notes: tuple[str, ...]


def whole(title: str, page: Page, params: Params) -> Whole:
    """The networks of a run and their CLIP.

    Raises:
      ConfigError: they came without their CLIP; see `networks`.
    """
    run = networks(title, page, params)
    refuse(title, {"has the CLIP beside its networks, which these left with their decoder (first_stage): export that run":
                   run.first is None and set(run.parts) != {"upsampler"}})
    return run


def networks(title: str, page: Page, params: Params) -> Whole:
    """`whole`, of networks that may have come without their CLIP.

    Raises:
      ConfigError: a prior with another CLIP than the decoder's; an upsampler that enlarges otherwise.
    """
    role = {"Prior": "prior", "Relay": "upsampler"}.get(_kind(page), "decoder")
    pages = {role: page, **page.get("parts", {})}
    weights = {role: params, **params.get("parts", {})}
    notes: tuple[str, ...] = ()
    if "prior" in pages and _kind(pages["prior"]) != "Prior":
        del pages["prior"], weights["prior"]
        notes = ("The prior is autoregressive, as nobody has published one: it is left out.",)
    parts = {name: _part(title, name, pages[name], weights[name]) for name in karlo.FOLDERS if name in pages}
    firsts = [_first(pages[name], weights[name]) for name in ("prior", "decoder") if "first_stage" in weights.get(name, {})]
    refuse(title, {"has one CLIP for prior and decoder, these have two": len(firsts) > 1 and not _same(*firsts)})
    # Of two the prior's: its statistics are used.
    return Whole(parts, firsts[0] if firsts else None, notes)


def _kind(page: Page) -> str:
    return page["model"]["name"].rpartition(":")[2]


def _part(title: str, name: str, page: Page, params: Params) -> Part:
    """One network; of an upsampler two, which may be the same."""
    model = build(page["model"])
    cond = build(page["task"]["cond"])
    params = {key: value for key, value in params.items() if key in ("model", "cond")}
    if name == "upsampler":
        only(title, cond, augment=0.0, enlarge="bicubic")
        if not isinstance(model, Relay):
            model = Relay(model, model)
            params["model"] = {"first": params["model"], "last": params["model"]}
    return Part(page, params, model, cond)


def _first(page: Page, params: Params) -> First:
    """The CLIP of a prior or a decoder."""
    spec = page["task"]["first_stage"]
    embedder = build(spec)
    return First(spec, params["first_stage"], embedder.clip.model, embedder.unit)


def _same(one: First, other: First) -> bool:
    """Whether two are one CLIP with the same embeddings."""
    trees = [first.params["clip"] for first in (one, other)]
    alike = one.model == other.model and one.unit == other.unit
    return alike and all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, trees), strict=True))


# Karlo's files --------------------------------------------------------------------------------------------------------------


def write(page: Page, params: Params) -> Package:
    """A run for Karlo's own code: its files, and the hparams of its yamls.

    Raises:
      ConfigError: the official networks have no such option; the line names it.
    """
    run = whole(TITLE, page, params)
    files: dict[str, Any] = {}
    options: Spec = {}
    notes = [*run.notes]
    for name, one in run.parts.items():
        options |= _hparams(name, one, 0 if run.first is None else run.first.model.text.context)
        files |= {f"{file}.safetensors": weights for file, weights in state_dicts(name, one, False).items()}
        notes += process_note(one.page, PREDICTED[name], SCHEDULE)
    if set(run.parts) == {"upsampler"}:                                         # nothing else says what it enlarges
        options["decoder"] = {"image_size": options["size"] // run.parts["upsampler"].cond.factor}
    if run.first is not None:
        clip, told = _clip_files(run.first)
        files |= clip
        options |= {"clip": _open_clip(run.first), "unit": run.first.unit}
        notes += told
    code = "\n".join([_READ, *(_CODES[name] for name in run.parts)])
    return Package(files | {CONFIG: options}, TITLE, code, notes=tuple(notes))


def state_dicts(name: str, one: Part, diffusers: bool, first: First | None = None) -> dict[str, dict[str, Array]]:
    """The weights of one part: file of Karlo's, or folder of diffusers', -> state dict.

    Args:
      name: of the part.
      one: the part.
      diffusers: for which program.
      first: the CLIP, whose statistics diffusers' prior has among its own.
    """
    if name == "prior":
        weights = unclip_export.prior_weights(one.params["model"], one.model, diffusers)
        numbers = (first.params["mean"], first.params["std"]) if diffusers and first is not None else ()
        return {"prior": weights | {key: number[None] for key, number in zip(unclip.STATISTICS, numbers, strict=False)}}
    if name == "decoder" and diffusers:
        return {folder: unclip_export.unet_weights({key: one.params[key]}, one.model, diffusers)
                for folder, key in (("decoder", "model"), ("text_proj", "cond"))}
    if name == "decoder":
        weights = unclip_export.unet_weights(one.params, one.model, diffusers)
        return {"decoder": {f"model.{key}": value for key, value in weights.items()}}
    nets = {net: unclip_export.unet_weights({"model": one.params["model"][net]}, getattr(one.model, net), diffusers)
            for net in ("first", "last")}
    if diffusers:
        return {f"super_res_{net}": weights for net, weights in nets.items()}
    prefixes = zip(karlo.SUPER_PREFIXES, nets.values(), strict=True)
    return {karlo.FILES[name]: {f"{prefix}{key}": value for prefix, weights in prefixes for key, value in weights.items()}}


def _hparams(name: str, one: Part, context: int) -> Spec:
    """What config.json says of one network, whose texts have so many tokens."""
    if name == "prior":
        return {"prior": unclip_export.prior_hparams(one.model, one.params["model"], one.drop)}
    side = square(TITLE, one.page)
    if name == "decoder":
        hparams = unclip_export.decoder_hparams(one.model, one.cond, one.params["cond"], side, one.drop)
        return {"decoder": hparams | {"text_ctx": context}}
    return {"sr": unclip_export.super_hparams(one.model), "size": side}


def export(page: Page, params: Params, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """A run's network under these keys, those of its file in either layout.

    Raises:
      ConfigError: see `write`; a key that its file does not have.
    """
    diffusers = not any(key.startswith(("model.", *karlo.SUPER_PREFIXES)) for key in shapes)
    run = networks(TITLE, {**page, "parts": {}}, {**params, "parts": {}})
    [(name, one)] = run.parts.items()
    title = f"the {name} of {'diffusers' if diffusers else 'Karlo'}"
    refuse(title, {"is two files with the same keys, give Karlo's": name == "upsampler" and diffusers})
    files = state_dicts(name, one, diffusers, run.first)
    weights = {key: value for state_dict in files.values() for key, value in state_dict.items()}
    missing = [key for key in shapes if key not in weights]
    refuse(title, {f"has no {short(missing[0]) if missing else ''}": bool(missing)})
    return {key: weights[key] for key in shapes}


# The CLIP -------------------------------------------------------------------------------------------------------------------


def _clip_files(first: First) -> tuple[dict[str, Any], list[str]]:
    """(The CLIP in OpenAI's layout and its statistics, what to know of them)."""
    text = first.model.text
    only(TITLE, text, eps=1e-5)
    clips_text(TITLE, text)
    refuse(TITLE, {f"has 4 hidden channels for each of its {text.width}, hidden is {text.hidden}":
                   text.hidden not in (None, 4 * text.width)})
    params = first.params["clip"]["model"]
    if has_image(first):
        only(TITLE, first.model.image, eps=1e-5, act=text.act)
        weights = clip_export.weights(params, first.model)
    else:
        weights = clip_export.weights(params["text"], text) | {"logit_scale": params["logit_scale"]}
    notes = lost(first)
    if text.act != "quick_gelu" or text.heads * HEAD != text.width:
        notes += [f"Karlo's code builds CLIPs with quick GELU and heads of {HEAD} channels: this one is for OpenCLIP."]
    if first.unit:
        notes += [f"The networks read CLIP's embeddings y as sqrt({text.features}) y / |y|: those of texts have to be made so."]
    numbers = {name: first.params[name] for name in ("mean", "std")}
    return {"clip.safetensors": weights, "clip_stats.safetensors": numbers}, notes


def _open_clip(first: First) -> Spec:
    """What shapes do not tell of a CLIP, in OpenCLIP's words."""
    text, image = first.model.text, first.model.image
    vision = {"width": image.width, "head_width": image.width // image.heads} if isinstance(image, ViT) else {}
    return {"quick_gelu": text.act == "quick_gelu", "vision_cfg": vision, "text_cfg": {"heads": text.heads}}


def clips_text(title: str, text: TextTower) -> None:
    """Refuses a text tower that is not CLIP's."""
    only(title, text, is_causal=True, skip=0)
    refuse(title, {"reads a text at its largest token (the CLIP's text.end)": text.end not in (None, text.vocab - 1)})


def has_image(first: First) -> bool:
    """Whether the image tower is one of everybody's: a vision transformer that sees clean pictures, normalised as OpenAI's."""
    model = first.model
    plain = isinstance(model.image, ViT) and not model.image.steps and first.spec["clip"]["shape"][-1] == 3
    return plain and (tuple(model.mean), tuple(model.std)) == (CLIP.mean, CLIP.std)


def lost(first: First) -> list[str]:
    """What of a CLIP is in neither layout, a sentence each."""
    basis = np.asarray(first.params["basis"])
    losses = {
        "CLIP's image tower is left out, which prompts do not need: it is no vision transformer of clean pictures in three "
        "channels, normalised as OpenAI's.": first.model.image is not None and not has_image(first),
        "The principal components of the embeddings are left out, which autoregressive priors and edits of components use.":
            not np.array_equal(basis, np.eye(len(basis))),
    }
    return [sentence for sentence, holds in losses.items() if holds]
