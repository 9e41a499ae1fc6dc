"""Prompts of diffusion models: the tokens that the model reads, and the features that a CLIP guides towards.

Each model has its own tokenizer, data.decode.tokenizer of its checkpoint's config.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.modes import config as page
from diffusion_jax.modes import unclip
from diffusion_jax.modes.prompts import tokens_of
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.train.checkpoint import config_of, load
from diffusion_jax.train.state import plain
from diffusion_jax.types import Raw


def conditions_of(
    workdir: str, task: Diffusion, prompts: list[str] | None, num: int, guide: str | None = None, negative: str | None = None,
    truncate: bool = False, prior: Mapping[str, Any] | None = None,
) -> Raw:
    """Raw conditions of `num` images, as many for each prompt: 'tokens' where the model reads them, 'clip_text' for a CLIP.

    Args:
      workdir: the model's folder.
      task: the model.
      prompts: what to make; None takes held-out captions where the model reads text.
      num: how many images, a multiple of the number of prompts.
      guide: the folder of what guides, if anything does.
      negative: a text to guide away from, in place of the empty one.
      truncate: cut prompts that are too long.
      prior: of a decoder of unCLIP, where embeddings come from: the options of `unclip.conditions_of`.

    Raises:
      ConfigError: prompts for a model that reads none, and that no CLIP guides; a model without a tokenizer; a prompt that is
        too long, or a negative one without a prompt or for a decoder of unCLIP.
    """
    reads, found = "tokens" in task.cond.keys, {}
    stored = plain(config_of(workdir))
    if isinstance(task.first_stage, Embedder) or set(prior or {}) - {"seed"}:
        if negative is not None:
            raise ConfigError("--negative is for a model that reads nothing but a text: leave it out")
        return unclip.conditions_of(workdir, task, prompts, num, truncate, **(prior or {}))
    if negative is not None and not (reads and prompts):
        raise ConfigError("--negative goes with a --prompt and a model that reads text")
    if prompts is None:
        return page.captions(stored["data"], num) if reads and "test" in stored.get("data", {}) else {}
    if reads:
        found["tokens"] = np.repeat(tokens_of(stored, prompts, truncate), num // len(prompts), axis=0)
    if negative is not None:
        found["negative"] = np.repeat(tokens_of(stored, [negative], truncate), num, axis=0)
    if guide is not None:
        config, clip, params = load(guide)
        if isinstance(clip, Contrastive):
            texts = np.asarray(clip.encode_text(params, jnp.asarray(tokens_of(plain(config), prompts, truncate))))
            found[clip.target] = np.repeat(texts, num // len(prompts), axis=0)
    if not found:
        raise ConfigError("this model reads no text: leave --prompt out, or give a CLIP as --classifier")
    return found
