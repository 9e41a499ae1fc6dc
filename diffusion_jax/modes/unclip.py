"""Where the embeddings come from that unCLIP's decoder (Ramesh et al. 2022, arXiv 2204.06125) makes images of:

    --prior FOLDER      those that a diffusion prior or an autoregressive one makes of the text; the best of --prior_best, 2
    --prior text        the text's own embedding in the place of an image's
    --prior caption     none: the decoder sees the caption alone

Without --prior those of held-out images, or, where the decoder's folder has a folder `prior` as imported ones do, that one.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import config as page
from diffusion_jax.modes import first_stage
from diffusion_jax.modes.prompts import tokens_of
from diffusion_jax.pipelines.dalle import Draw
from diffusion_jax.pipelines.unclip import BEST, Prior, embeddings, seen
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.train.checkpoint import available, config_of, load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Raw

TEXT, CAPTION = WORDS = "text", "caption"
PRIOR, UPSAMPLER = "prior", "upsampler"
"""Folders in that of an imported decoder."""


def options_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say where embeddings come from, taken out of `options`, and the seed, which stays."""
    names = ("prior", "prior_guidance", "prior_steps", "prior_best")
    found = {name: options.pop(name) for name in names if name in options}
    return found | ({"seed": options["seed"]} if "seed" in options else {})


def conditions_of(
    workdir: str, task: Diffusion, prompts: list[str] | None, num: int, truncate: bool = False, prior: str | None = None,
    prior_guidance: float | None = None, prior_steps: str | None = None, prior_best: int = BEST, seed: int = 0,
) -> Raw:
    """Raw conditions of `num` images of a decoder, as many for each prompt.

    Args:
      workdir: the decoder's folder.
      task: the decoder.
      prompts: texts; None takes held-out images, or their captions where there is a prior.
      num: how many, a multiple of the number of prompts.
      truncate: cut prompts that are too long.
      prior, prior_best: see the top of this file.
      prior_guidance, prior_steps: how the prior samples, in place of its page's way.
      seed: of the prior.

    Raises:
      ConfigError: another kind of model, prompts without a prior, or what `load` refuses.
    """
    if not isinstance(task.first_stage, Embedder) or task.embeds:
        raise ConfigError("--prior is for a decoder of unCLIP: this model reads no embeddings")
    stored, frozen = plain(config_of(workdir)), first_stage.kept(workdir)
    if prior is None and _has(Path(workdir, PRIOR)):
        prior = str(Path(workdir, PRIOR))
    if prior is None and prompts:
        raise ConfigError(f"a decoder makes images of embeddings: give --prior, a prior's folder, or one of {', '.join(WORDS)}")
    if prompts is None and "test" not in stored.get("data", {}):
        raise ConfigError("this model came without data, so it has no captions of its own: give --prompt")
    if prior is None:
        return page.derived_conditions(task, stored["data"], num, frozen)
    embedder, known = task.first_stage, frozen["first_stage"]
    tokens = page.captions(stored["data"], num)["tokens"] if prompts is None else tokens_of(stored, prompts, truncate)
    tokens = np.repeat(tokens, num // len(tokens), axis=0)
    raw = seen(embedder, known, np.zeros((num, embedder.features), np.float32), tokens)
    if prior == CAPTION:
        return {**raw, "with_image": np.zeros(num, np.float32)}
    if prior == TEXT:
        return {**raw, "clip_image": raw["clip_text"]}
    model, own = prior_of(prior, workdir, prior_guidance, prior_steps)
    texts = tokens if prompts is None else np.repeat(tokens_of(own, prompts, truncate), num // len(prompts), axis=0)
    made = embeddings(model, texts, seed, prior_best)
    if not np.isfinite(made).all():
        raise ConfigError("the prior's embeddings are not finite: change --prior_guidance or --prior_steps")
    if made.shape[1] != embedder.features:
        raise ConfigError(f"the prior makes embeddings of {made.shape[1]} channels, the decoder reads {embedder.features}")
    return {**raw, "clip_image": made}


def prior_of(folder: str, workdir: str, guidance: float | None, steps: str | None) -> tuple[Prior, Mapping[str, Any]]:
    """(a trained prior, its config); its CLIP is in its own folder, or in that of its decoder, `workdir`.

    Raises:
      ConfigError: what `load` refuses, or a folder of another kind of model.
    """
    stored, task, params = load(folder, "ema")
    if not isinstance(task, (Diffusion, Autoregressive)) or not task.embeds:
        raise ConfigError(f"--prior {folder} holds no prior of unCLIP: give the folder of one, or {' or '.join(WORDS)}")
    frozen = first_stage.kept(folder) or first_stage.kept(workdir)
    given = {"guidance": guidance} if guidance is not None else {}
    stored = plain(stored)
    if isinstance(task, Autoregressive):
        if steps is not None:
            raise ConfigError("--prior_steps is for a diffusion prior: an autoregressive one makes one code after the other")
        how = Draw.of(given)
    else:
        how = page.recipe_of(stored, given | ({"steps": steps} if steps is not None else {}))
    return Prior(task, params, frozen["first_stage"], how), stored


def own_upsamplers(workdir: str) -> list[str]:
    """The folder of the upsampler that came with an imported decoder, if one did."""
    return [str(Path(workdir, UPSAMPLER))] if _has(Path(workdir, UPSAMPLER)) else []


def _has(folder: Path) -> bool:
    return folder.is_dir() and bool(available(folder))
