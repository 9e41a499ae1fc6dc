"""A CLIP as the first stage of unCLIP's parts, and how near a prior comes while it trains.

Where config.first_stage of a prior or a decoder names a CLIP, the statistics of its embeddings over the training data are taken
first: their mean and deviation, their principal components, how near images are to their texts (tasks/embedder.py).
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data.image import to_unit
from diffusion_jax.pipelines.diffusion import generate
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.embedder import Embedder, statistics
from diffusion_jax.train.log import Writer
from diffusion_jax.types import Params, Raw, TrainState

CLIP, EMBEDDER = "diffusion_jax.tasks.clip:Contrastive", "diffusion_jax.tasks.embedder:Embedder"
MOST, BATCH = 10_000, 250
"""Training images that statistics are taken of, spread over the data; images at a time."""


def spec_of(stored: Mapping[str, Any], components: int) -> dict[str, Any]:
    """What to `build` the first stage from: the CLIP of a page or of a checkpoint's config.

    Raises:
      ConfigError: its data have no tokenizer, so nobody knows the empty text.
    """
    decode = build(stored["data"]["decode"]) if "data" in stored else None
    if decode is None or getattr(decode, "tokenizer", None) is None:
        raise ConfigError("this CLIP came without a tokenizer: set data.decode.tokenizer of its page")
    empty = decode.tokenizer("")
    last = int(np.argmax(empty)) + 1
    return dict(name=EMBEDDER, clip=stored["task"] | {"model": stored["model"]}, components=components,
                empty=[*(int(token) for token in empty[:last]), int(empty[-1])])


def fitted(stored: Mapping[str, Any], params: Params, data: Mapping[str, Any]) -> tuple[dict[str, Any], Params]:
    """(the first stage's task, its parameters) of a CLIP, by the embeddings of the training data.

    Args:
      stored, params: the CLIP's config and weights.
      data: the section of the page to be trained.
    """
    embedder, known = build(spec_of(stored, 0)), {"clip": params}
    run = jax.jit(lambda known, batch: (embedder.embed(known, batch["image"]), embedder.embed_text(known, batch["tokens"])))
    found = [jax.device_get(run(known, batch)) for batch in held(data, "train", MOST)]
    images, texts = np.concatenate([y for y, _ in found]), np.concatenate([text["clip_text"] for _, text in found])
    numbers, components = statistics(images, texts)
    print(f"{len(images)} embeddings: {components} of {images.shape[1]} components hold 99 % of their variance")
    return spec_of(stored, components), {**known, **numbers}


def held(data: Mapping[str, Any], split: str, num: int) -> Any:
    """Batches of image [b, H, W, C] in [-1, 1] and tokens [b, L], `num` spread over a split, at most."""
    source, decode = build(data[split]), build(dict(data["decode"], flip=False, crop="center"))
    count = min(num, len(source))
    for first in range(0, count, BATCH):
        rows = [decode(source[i * len(source) // count]) for i in range(first, min(first + BATCH, count))]
        if "tokens" not in rows[0]:
            raise ConfigError("unCLIP needs captions: give data that has them, and data.decode.tokenizer")
        yield {"image": to_unit(np.stack([row["image"] for row in rows])), "tokens": np.stack([row["tokens"] for row in rows])}


def seen(embedder: Embedder, params: Params, data: Mapping[str, Any], num: int) -> Raw:
    """Conditions of `num` held-out images; they come again where there are fewer."""
    run = jax.jit(embedder.seen)
    found = [jax.device_get(run(params, batch)) for batch in held(data, "test", num)]
    whole = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return {name: value[np.arange(num) % len(value)] for name, value in whole.items()}


def show(
    task: Diffusion, state: TrainState, which: str, recipe: Recipe, raw: Raw, config: Mapping[str, Any], workdir: Path, step: int,
    writer: Writer, frozen: Params = None,
) -> None:
    """Logs how near sampled embeddings of held-out texts are to those of their images, and the same of others' images."""
    if jax.process_count() > 1:
        return                          # as modes/train.py:show; sample from the checkpoint
    num, first = config["sample"]["num"], task.first_stage
    params = state.params if which == "params" else state.ema[which]
    x = np.concatenate(list(generate(task, params, recipe, raw, num, config["seed"], num)))
    made = first.restored(frozen["first_stage"], jnp.asarray(x))
    own = seen(first, frozen["first_stage"], config["data"], num)["clip_image"]
    cos = np.asarray(_unit(made) @ _unit(own).T)
    near, far = float(np.mean(np.diag(cos))), float((cos.sum() - np.trace(cos)) / (num * num - num))
    writer.scalars(step, {"cosine": near, "cosine_of_others": far})
    print(f"embeddings of step {step}: cosine {near:.3f} with those of their images, {far:.3f} with those of others")


def _unit(y: Any) -> Any:
    return y / np.linalg.norm(y, axis=-1, keepdims=True)
