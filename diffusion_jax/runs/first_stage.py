"""A frozen first stage that a run trains on, a discrete VAE or a CLIP for example:
`config.first_stage` names its folder.

What is read from that folder, its task and its weights, becomes part of the run: the task goes into
config.task.first_stage, and so into every checkpoint, and the weights into workdir/first_stage. So
the run's folder alone is enough to sample and to resume. With a mapping in place of the folder's
name, {'folder': ..., 'scale': ...}, its other entries change the task: one autoencoder gives
latents of many scales.

Of a CLIP the statistics of its embeddings over the training data are taken first: their mean and
deviation, their principal components, how near images are to their texts (tasks/embedder.py).
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.runs import held_out
from diffusion_jax.runs.folder import FIRST, holds_run, save_start
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.embedder import Embedder, statistics
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Array, Params, Raw

EMBEDDER = f"{Embedder.__module__}:{Embedder.__name__}"
MOST = 10_000
"""Training images that statistics are taken of, spread over the data: enough for the principal
components of about a thousand channels."""
BATCH = 250
"""Of them that are embedded at a time."""


def joined(config: Mapping[str, Any], workdir: str) -> tuple[dict[str, Any], Params | None]:
    """(the config with the first stage's task in its own, the first stage's weights); (config,
    None) where it names none.

    Raises:
      ConfigError: what `load` refuses.
    """
    if FIRST not in config:
        return dict(config), None
    # Into the task: the checkpoints of the run are then enough to build it, without the folder that
    # the page names.
    spec, params = _read(config[FIRST], Path(workdir, FIRST), config.get("data", {}))
    return {**config, "task": {**config["task"], FIRST: spec}}, params


def named(where: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the folder, the changes to its task) of what a page says: a folder, or {'folder': ...,
    <changes>}."""
    if isinstance(where, str):
        return where, {}
    return where["folder"], {name: value for name, value in where.items() if name != "folder"}


def _read(
    where: str | Mapping[str, Any], copy: Path, data: Mapping[str, Any]
) -> tuple[dict[str, Any], Params]:
    """(the task, the weights) of the run that a page names, or of `copy`, to which they are
    copied first."""
    folder, changes = named(where)
    # The copy wins: a resumed run goes on with the weights it began with, whatever has become of
    # the folder since.
    config, _, params = load(copy if holds_run(copy) else Path(folder).expanduser())
    config = plain(config)
    config["task"] |= changes
    # Once: what is copied then is an `Embedder`, which is no CLIP any more.
    if isinstance(task_of(config), kinds.TwoTowers):
        spec, params = fitted(config, params, data)
        config = {"task": spec}
    model = {"model": config["model"]} if "model" in config else {}
    if not holds_run(copy):
        save_start(copy, {"task": config["task"], **model}, params)
    return config["task"] | model, params


def embedder_spec(config: Mapping[str, Any], components: int) -> dict[str, Any]:
    """What to `build` an `Embedder` from: the CLIP of a page or of a checkpoint's config.

    Raises:
      ConfigError: its data have no tokenizer, so nobody knows the empty text.
    """
    decode = build(config["data"]["decode"]) if "data" in config else None
    if decode is None or getattr(decode, "tokenizer", None) is None:
        raise ConfigError(
            "this CLIP came without a tokenizer: set data.decode.tokenizer of its page"
        )
    tokens = [int(token) for token in decode.tokenizer("")]
    # CLIP ends a text with its largest token; one of those that follow stands for all.
    length = int(np.argmax(tokens)) + 1
    empty = [*tokens[:length], tokens[-1]]
    clip = config["task"] | {"model": config["model"]}
    return dict(name=EMBEDDER, clip=clip, components=components, empty=empty)


def fitted(
    config: Mapping[str, Any], params: Params, data: held_out.Data
) -> tuple[dict[str, Any], Params]:
    """(the first stage's task, its parameters) of a CLIP, by the embeddings of the training data.

    Args:
      config, params: the CLIP's.
      data: the section of the page to be trained.

    Raises:
      ConfigError: data without captions.
    """
    embedder = build(embedder_spec(config, 0))  # how many components it keeps is not known yet

    @jax.jit  # the weights are an argument: closed over, they would be constants of the program
    def embed(params: Params, batch: Raw) -> tuple[Array, Array]:
        clip = {"clip": params}
        texts = embedder.embed_text(clip, batch["tokens"])
        return embedder.embed(clip, batch["image"]), texts["clip_text"]  # [b, F] each

    pairs = [jax.device_get(embed(params, batch)) for batch in captioned(data, "train", MOST)]
    images, texts = (np.concatenate(column) for column in zip(*pairs, strict=True))  # [N, F]
    numbers, components = statistics(images, texts)
    print(
        f"{len(images)} embeddings: {components} of {images.shape[1]} components hold 99 % of "
        "their variance"
    )
    return embedder_spec(config, components), {"clip": params, **numbers}


def captioned(data: held_out.Data, split: str, num: int) -> Iterator[Raw]:
    """Batches of 'image' [b, H, W, C] in [-1, 1] and 'tokens' [b, L], at most `num` rows spread
    over a split.

    Raises:
      ConfigError: data without captions.
    """
    for batch in held_out.batches(data, split, num, BATCH):
        if "tokens" not in batch:
            raise ConfigError(
                "unCLIP needs captions: give data that has them, and data.decode.tokenizer"
            )
        yield batch
