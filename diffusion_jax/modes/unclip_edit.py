"""Mode `edit` of unCLIP's decoder (Ramesh et al. 2022, arXiv 2204.06125, sec. 3): pictures changed through CLIP's embeddings.

    variations      --images x.png --values 0,0.5,1                 a row for each eta of DDIM; 0 makes the picture again
    interpolate     --images folder/ --values 0,0.25,0.5,0.75,1     between the first and the second picture, the third ...
    text_diff       --images x.png --prompt "a cat" --to_prompt "a dog" --values 0,0.1,0.2,0.3
    components      --images x.png --values 2,5,10,20,40            with so many principal components of the embedding

All but `components`, whose noise is that of --seed, start from the noise that DDIM makes the picture of, without guidance;
--guidance is that of the way back. Rows are values, columns pictures; --upsampler makes them larger.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image as pictures
from diffusion_jax.modes import edit as edits
from diffusion_jax.modes import first_stage, unclip
from diffusion_jax.modes.prompts import tokens_of
from diffusion_jax.modes.sample import stage_of
from diffusion_jax.pipelines.cascade import Stage, upsampled
from diffusion_jax.pipelines.edit import How, edit, invert
from diffusion_jax.pipelines.unclip import seen, slerp, slerp_images, toward
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.train.checkpoint import config_of
from diffusion_jax.train.state import plain
from diffusion_jax.types import Array, Params


def run(workdir: str, op: str, options: dict[str, Any]) -> None:
    """Edits with the newest checkpoint of a decoder.

    Args:
      workdir: its folder.
      op: one of those above.
      options: images, values; prompt and to_prompt of text_diff; num, variations of each picture; seed, which, step, out,
        upsampler, and the fields of `Recipe`.

    Raises:
      ConfigError: what an op needs and is not given, or another kind of model.
    """
    out, seed = Path(options.pop("out", Path(workdir, "edit.png"))), options.pop("seed", 0)
    given = {name: options.pop(name, None) for name in ("images", "values", "prompt", "to_prompt", "num")}
    larger = options.pop("upsampler", None) or unclip.own_upsamplers(workdir)
    if given["images"] is None or not given["values"]:
        raise ConfigError(f"op {op} needs --images and --values")
    stage = stage_of(workdir, options.pop("which", "ema"), options.pop("step", None), {"sampler": "ddim"} | options)
    if not isinstance(stage.task.first_stage, Embedder):
        raise ConfigError(f"op {op} is for a decoder of unCLIP: this model reads no embeddings")
    known = first_stage.kept(workdir)["first_stage"]
    x0, values = edits.images_at(given["images"], stage.task.shape), edits.numbers(given["values"])
    if op == "variations":
        x0 = np.repeat(x0, given["num"] or 1, axis=0)
    y = np.asarray(jax.jit(stage.task.first_stage.embed)(known, jnp.asarray(x0)))
    texts = text_pair(workdir, stage, known, given) if op == "text_diff" else None
    rows = [np.asarray(one) for one in swept(stage, known, op, values, x0, y, seed, texts)]
    stages = [stage_of(folder, "ema", None, {}) for folder in larger]
    rows = [np.concatenate(list(upsampled(stages, iter([row]), {}, len(row), seed, len(row)))) for row in rows]
    edits.written(out, pictures.to_uint8(np.stack(rows)), f"{op} over {', '.join(map(str, values))}")


def text_pair(workdir: str, stage: Stage, known: Params, given: Mapping[str, Any]) -> tuple[Array, Array]:
    """The embeddings [1, F] of the text wanted, to_prompt, and of the one that describes the picture, prompt.

    Raises:
      ConfigError: one of them is missing.
    """
    if not given["prompt"] or not given["to_prompt"]:
        raise ConfigError("op text_diff needs --prompt, what the picture shows, and --to_prompt, what it is to show")
    tokens = tokens_of(plain(config_of(workdir)), [given["to_prompt"][0], given["prompt"][0]])
    text = stage.task.first_stage.embed_text(known, jnp.asarray(tokens))["clip_text"]
    return text[:1], text[1:]


def swept(
    stage: Stage, known: Params, op: str, values: list[float], x0: np.ndarray, y: np.ndarray, seed: int,
    texts: tuple[Array, Array] | None,
) -> list[Array]:
    """A batch of pictures for each value, [B, H, W, C].

    Args:
      stage: the decoder and how it samples.
      known: the parameters of its CLIP.
      op, values: what is swept.
      x0, y: the pictures [B, H, W, C] in [-1, 1], and their embeddings [B, F].
      seed: of what is drawn.
      texts: of text_diff.

    Raises:
      ConfigError: a single picture to interpolate, or a number of components that is none.
    """
    task, recipe, params = stage.task, stage.recipe, stage.params
    recipe.check(task)
    first, plainly = task.first_stage, replace(recipe, guidance=1.0)
    if op == "components":
        if not first.components:
            raise ConfigError("this model came without principal components: they are taken where a decoder is trained")
        if any(value < 1 or value > first.features for value in values):
            raise ConfigError(f"--values are numbers of components, 1 ... {first.features}")
        return [decoded(stage, known, first.reduced(known, y, int(value)), None, seed) for value in values]
    x = invert(task, plainly, params, seen(first, known, y), jnp.asarray(x0), How())
    if op == "variations":
        ways = [stage._replace(recipe=replace(recipe, sampler=f"ddim,eta={value}")) for value in values]
        return [decoded(way, known, y, x, seed) for way in ways]
    if op == "text_diff":
        return [decoded(stage, known, toward(y, *texts, value), x, seed) for value in values]
    if len(x0) < 2:
        raise ConfigError("op interpolate needs two pictures or more: give a folder, or an .npz, of them")
    return [decoded(stage, known, slerp(y[:-1], y[1:], value), slerp_images(x[:-1], x[1:], value), seed) for value in values]


def decoded(stage: Stage, known: Params, y: Array, x: Array | None, seed: int) -> Array:
    """Pictures [B, H, W, C] of embeddings y [B, F], without a text, from noise x, or from that of the seed."""
    task, recipe = stage.task, stage.recipe
    how = How(jnp.float32(recipe.guidance), jnp.float32(recipe.phi))
    static = replace(recipe, guidance=1.0, phi=0.0)
    raw = seen(task.first_stage, known, y)
    return edit(task, static, stage.params, raw, jnp.arange(len(y)), jax.random.key(seed), how, recipe.guidance != 1, x=x)
