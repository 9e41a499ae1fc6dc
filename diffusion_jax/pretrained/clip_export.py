"""CLIP for OpenCLIP and for transformers: the way back of pretrained/clip.py, and the files of its tokenizer."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.clip_bpe import END_TEXT, START_TEXT, ClipBPE
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.clip_resnet import ResNet
from diffusion_jax.pretrained import clip, names
from diffusion_jax.pretrained.clip import TEXT, TRANSFORMERS, VIT
from diffusion_jax.pretrained.package import CONFIG, WEIGHTS, Package, Spec, only, refuse
from diffusion_jax.pretrained.rules import Rule, Shape
from diffusion_jax.types import Array, Params

SCALE = Rule("logit_scale", "logit_scale")
RANKS = {r"visual\.attnpool\.\w+_proj\.weight": 2}
OPEN_CLIP = "open_clip_config.json"
CODE = """import json, open_clip
from safetensors.torch import load_file
options = json.load(open("FOLDER/open_clip_config.json"))["model_cfg"]
model = open_clip.CLIP(**options)
model.load_state_dict(load_file("FOLDER/model.safetensors"))"""
HF_CODE = """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained("FOLDER")
processor = CLIPProcessor.from_pretrained("FOLDER")"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """A run for OpenCLIP, whose networks OpenAI's are too: a state dict, and the options of the constructor.

    Raises:
      ConfigError: OpenCLIP's network has no such option; the line names it.
    """
    title = "OpenCLIP"
    model = build(page["model"])
    _plain(title, page, model)
    text, image = model.text, model.image
    act = text.act
    for tower in (text, *([image] if isinstance(image, ViT) else [])):
        only(title, tower, eps=1e-5, act=act)
        refuse(title, {f"has 4 hidden channels for each of its {tower.width}, hidden is {tower.hidden}":
                       tower.hidden not in (None, 4 * tower.width)})
    options: Spec = dict(
        embed_dim=text.features, quick_gelu=act == "quick_gelu",
        vision_cfg=dict(image_size=image.size, layers=image.layers, width=image.width),
        text_cfg=dict(context_length=text.context, vocab_size=text.vocab, width=text.width, heads=text.heads, layers=text.layers),
    )
    if isinstance(image, ViT):
        options["vision_cfg"] |= dict(patch_size=image.patch, head_width=image.width // image.heads)
    pixels = dict(mean=list(model.mean), std=list(model.std), interpolation="bicubic")
    files = {WEIGHTS: weights(params["model"], model), OPEN_CLIP: {"model_cfg": options, "preprocess_cfg": pixels}}
    return Package(files, title, CODE, "open_clip")


def _plain(title: str, page: Mapping[str, Any], model: CLIP) -> None:
    """Raises ConfigError for a CLIP that nobody else has: of noised images, of one tower, of other channels."""
    image = model.image
    refuse(title, {
        "has an image tower (model.image)": image is None,
        "sees clean images (model.image.steps)": bool(getattr(image, "steps", 0)),
        f"sees 3 channels, task.shape has {page['task']['shape'][-1]}": page["task"]["shape"][-1] != 3,
        "reads a text at its largest token (model.text.end)": model.text.end not in (None, model.text.vocab - 1),
    })
    only(title, model.text, is_causal=True, skip=0)
    if isinstance(image, ResNet):
        only(title, image, norm="batch")


def weights(params: Params, module: Any) -> dict[str, Array]:
    """A `CLIP`'s or a `TextTower`'s parameters under OpenAI's names."""
    whole = isinstance(module, CLIP)
    image = module.image if whole else None
    table = [SCALE, *TEXT, *(clip.RESNET if isinstance(image, ResNet) else VIT)]
    special: dict[str, Shape] = {}
    if isinstance(image, ViT):
        special["visual.conv1.weight"] = _patches(params["image"], image)
    shapes = names.shapes(params if whole else {"text": params}, table, special=special)
    return clip.revert(params, _split(shapes), module)


def hf_weights(params: Params, module: Any) -> dict[str, Array]:
    """A `CLIP`'s or a `TextTower`'s parameters under transformers' names."""
    whole = isinstance(module, CLIP)
    special = {"vision_model.embeddings.patch_embedding.weight": _patches(params["image"], module.image)} if whole else {}
    shapes = names.shapes(params if whole else {"text": params}, TRANSFORMERS, special=special)
    return clip.revert(params, _split(shapes), module)


def _patches(params: Params, image: ViT) -> Shape:
    rows, width = np.shape(params["patches"]["kernel"])
    return width, rows // image.patch**2, image.patch, image.patch


def _split(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of query, key and value where they are one here."""
    parts: dict[str, Shape] = {}
    for key, shape in shapes.items():
        one = "qkv_proj" in key
        parts |= {key.replace("qkv_proj", f"{part}_proj"): (shape[0] // 3, *shape[1:]) if one else shape
                  for part in ("qkv" if one else "q")}
    return parts


# transformers ---------------------------------------------------------------------------------------------------------------


def diffusers(page: Mapping[str, Any], params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of transformers: CLIPModel and, where it reads CLIP's tokens, CLIPProcessor.

    Raises:
      ConfigError: transformers' network has no such option; the line names it.
    """
    title = "transformers' CLIPModel"
    model = build(page["model"])
    refuse(title, {"has a vision transformer (model.image is a ViT)": not isinstance(model.image, ViT)})
    _plain(title, page, model)
    config = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": model.text.features,
        "text_config": text_config(model.text), "vision_config": vision_config(model.image),
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": model.image.size},
        "do_center_crop": True, "crop_size": {"height": model.image.size, "width": model.image.size}, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "resample": 3, "image_mean": list(model.mean), "image_std": list(model.std),
    }
    files = {WEIGHTS: hf_weights(params["model"], model), CONFIG: config, clip.PREPROCESSOR: processor}
    written, notes = tokenizer(page)
    code = HF_CODE if written else HF_CODE.rpartition("\n")[0].replace(", CLIPProcessor", "")
    return Package(files | written, title, code, "transformers", notes)


def text_config(text: TextTower) -> Spec:
    """The options of transformers' text model."""
    return dict(
        model_type="clip_text_model", vocab_size=text.vocab, hidden_size=text.width, projection_dim=text.features or text.width,
        intermediate_size=text.hidden or 4 * text.width, num_hidden_layers=text.layers, num_attention_heads=text.heads,
        max_position_embeddings=text.context, hidden_act=text.act, layer_norm_eps=text.eps,
        # 2 stands for "the largest token" there.
        bos_token_id=text.vocab - 2, eos_token_id=2 if text.end is None else text.end, pad_token_id=1,
    )


def vision_config(image: ViT) -> Spec:
    """The options of transformers' vision model."""
    return dict(
        model_type="clip_vision_model", hidden_size=image.width, intermediate_size=image.hidden or 4 * image.width,
        projection_dim=image.features or image.width, num_hidden_layers=image.layers, num_attention_heads=image.heads,
        image_size=image.size, patch_size=image.patch, num_channels=3, hidden_act=image.act, layer_norm_eps=image.eps,
    )


def tokenizer(page: Mapping[str, Any], folder: str = "") -> tuple[dict[str, Any], tuple[str, ...]]:
    """The files of CLIP's tokenizer for transformers, in a folder; and why there are none."""
    decode = page.get("data", {}).get("decode")
    try:
        # Of latents it is not on the page, but with them.
        bpe = getattr(build(decode), "tokenizer", None)
        if not isinstance(bpe, ClipBPE):
            return {}, ("No tokenizer is written: this model was trained without CLIP's.",)
        pairs, numbers = bpe.pairs, bpe.numbers
    except ConfigError as error:
        return {}, (f"No tokenizer is written: {error}.",)
    # What fills up: the end, or token 0, which is that of '!'.
    pad = END_TEXT if bpe.pad_end else "!"
    words = dict(bos_token=START_TEXT, eos_token=END_TEXT, unk_token=END_TEXT, pad_token=pad)
    return {
        f"{folder}vocab.json": numbers,
        f"{folder}merges.txt": "".join(["#version: 0.2\n", *(f"{' '.join(pair)}\n" for pair in pairs)]),
        f"{folder}special_tokens_map.json": words,
        f"{folder}tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": bpe.context, "do_lower_case": True, **words,
        },
    }, ()
