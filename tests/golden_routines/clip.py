"""openai/CLIP and its form in transformers: towers, loss, tokenizer, the input of a picture. Official images are NCHW."""
from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import Case
from golden_routines.replay import nchw, nhwc

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.clip_bpe import ClipBPE, find_merges
from diffusion_jax.data.clip_image import prepare_clip
from diffusion_jax.models.clip import CLIP, MEAN, STD, logits
from diffusion_jax.pretrained import clip as pretrained
from diffusion_jax.tasks.clip import contrastive
from diffusion_jax.types import Array, Params

Found = dict[str, Any]


def merges(name: str) -> str:
    """A file of merges in the folder TOKENIZERS, or that of open_clip_torch for CLIP; skips the test where there is none."""
    given = Path(os.environ.get("TOKENIZERS", Path(__file__).parents[3] / "shared/data/tokenizers")) / name
    if given.is_file():
        return str(given)
    try:
        return str(find_merges() if name.startswith("clip") else pytest.skip(f"there is no {given}"))
    except ConfigError as error:
        pytest.skip(str(error))


def clip_of(weights: dict[str, Any], official: dict[str, Any]) -> CLIP:
    """The module of a whole state dict."""
    return CLIP(**{part: build(spec) for part, spec in pretrained.towers(weights, official).items()})


def model(case: Case) -> Found:
    """Features, logits, the loss and its gradients."""
    kwargs = case.config["kwargs"]
    clip = clip_of(case.weights, kwargs)
    params = pretrained.convert(case.weights, clip)

    def loss(params: Params, x: Array, text: Array, shift: Array) -> tuple[Array, Found]:
        images = clip.apply({"params": params}, x, method=lambda module, x: module.image(x)).features
        texts = clip.apply({"params": params}, text, method="encode_text")
        per_image = logits(images, texts, params["logit_scale"]) + shift
        found = dict(image_features=images, text_features=texts, logits_per_image=per_image, logits_per_text=per_image.T)
        return contrastive(per_image)[0], found

    args = params, nhwc(case.inputs["image"]), case.inputs["text"], jnp.zeros((len(case.inputs["text"]),) * 2)
    (value, found), (grads, dlogits) = jax.jit(jax.value_and_grad(loss, argnums=(0, 3), has_aux=True))(*args)
    shapes = {key: w.shape for key, w in case.weights.items()}
    official = pretrained.revert(grads, shapes, clip)
    found |= {name: official[name.removeprefix("grad/")] for name in case.want if name.startswith("grad/")}
    return found | {"loss": value, "dloss_dlogits_per_image": dlogits}


def hf_text(case: Case) -> Found:
    """The text tower in transformers' form."""
    tower = build(pretrained.towers(case.weights, case.config["kwargs"])["text"])
    params = pretrained.convert(case.weights, tower)
    state = jax.jit(tower.apply)({"params": params}, case.inputs["input_ids"], case.inputs.get("attention_mask"))
    skipped = state.states[-2]
    return dict(
        last_hidden_state=state.tokens, penultimate=skipped, embeddings=state.states[0], pooler_output=state.pooled,
        text_embeds=state.features,
    )


def hf_vision(case: Case) -> Found:
    """The image tower in transformers' form."""
    tower = build(pretrained.towers(case.weights, case.config["kwargs"])["image"])
    state = jax.jit(tower.apply)({"params": pretrained.convert(case.weights, tower)}, nhwc(case.inputs["pixel_values"]))
    return dict(image_embeds=state.features, last_hidden_state=state.tokens, pooler_output=state.pooled)


def tokenizer(case: Case) -> Found:
    """Numbers, padded numbers, and what they read as."""
    bpe = ClipBPE(merges("clip_bpe_simple_vocab_16e6.txt.gz"), case.config["context_length"])
    texts, numbers, too_long = case.config["strings"], [], []
    for text in texts:
        numbers.append(bpe.encode(text))
        try:
            bpe(text, truncate=False)
        except ConfigError:
            too_long.append(True)
        else:
            too_long.append(False)
    decoded = "\x1e".join(bpe.decode(row) for row in numbers)
    return dict(
        ids=rows_of(numbers), len=[len(row) for row in numbers], tokenize=bpe.batch(texts), too_long=too_long,
        decoded_utf8=np.frombuffer(decoded.encode("utf-8"), np.uint8),
    )


def rows_of(numbers: list[list[int]]) -> np.ndarray:
    """Rows of different lengths, filled up with -1."""
    longest = max(map(len, numbers))
    return np.array([row + [-1] * (longest - len(row)) for row in numbers])


def preprocess(case: Case) -> Found:
    """The normalised input of a picture."""
    mean, std = np.float32(MEAN), np.float32(STD)
    seen = {size: prepare_clip(case.inputs["image"], size) for size in case.config["n_px"]}
    return {f"preprocessed_{size}": nchw((x * 0.5 + 0.5 - mean) / std) for size, x in seen.items()}


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only."""
    found = {}
    for name, official in case.doc["keys"].items():
        structs = {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in official.items()}
        parts = {part: build(spec) for part, spec in pretrained.towers(structs, {}).items()}
        module = CLIP(**parts) if len(parts) == 2 else next(iter(parts.values()))
        params = jax.eval_shape(partial(pretrained.convert, module=module), structs)
        back = jax.eval_shape(partial(pretrained.revert, shapes=official, module=module), params)
        found |= {f"{name}/{key}": leaf.shape for key, leaf in back.items()}
    return found
