"""Mode `sample` of a transformer over text and image tokens: prompts -> images, whole or completed, the best of several."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import image
from diffusion_jax.modes import first_stage
from diffusion_jax.pipelines.dalle import Draw, Score, generate, rerank, upper
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain, task_of

Judge = Callable[[str], Score]
"""A prompt -> the score of images for it."""


def images_of(workdir: str, options: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Samples of a run's folder.

    Args:
      workdir: the run's folder, with its first stage's beside its checkpoints.
      options: prompt, a list (captions of held-out images where there is none); num, images for each prompt; seed, which, step,
        batch; temperature, top_k, top_p, guidance; complete, a file that `image.read_batch` reads, whose images' upper halves
        are given in turn; rerank, the folder of a classifier or of a CLIP, which keeps the best of candidates times num images.

    Returns:
      (images uint8 [prompts * num, H, W, C], the prompts); of each prompt the best first where they are ranked.

    Raises:
      ConfigError: what `load` and `generate` refuse, a model without a tokenizer, rerank without candidates or with complete.
    """
    stored, task, params = load(workdir, options.pop("which", "ema"), options.pop("step", None))
    stored, frozen = plain(stored), first_stage.kept(workdir)
    prompts, num = options.pop("prompt", None), options.pop("num", None)
    truncate = options.pop("truncate", prompts is None)
    prompts, num = (prompts, num or 16) if prompts else (held_out(stored, num or 64), 1)
    seed, batch = options.pop("seed", 0), options.pop("batch", 100)
    folder, candidates, given = (options.pop(name, None) for name in ("rerank", "candidates", "complete"))
    if (folder is None) != (candidates is None) or (folder and given):
        raise ConfigError("reranking needs --rerank, the folder of a classifier or a CLIP, and --candidates, and no --complete")
    judge, many = judge_of(folder, stored) if folder else None, num * (candidates or 1)
    tokens = np.repeat(tokens_of(stored, prompts, truncate), many, axis=0)
    codes = None if given is None else np.resize(known := completed(task, frozen, given), (len(tokens), known.shape[1]))
    made = generate(task, params, frozen, Draw.of(options), tokens, len(tokens), seed, batch, codes)
    images = image.to_uint8(np.concatenate(list(made)))
    if judge:
        images = images.reshape(len(prompts), many, *images.shape[1:])
        scores = np.stack([judge(prompt)(part) for prompt, part in zip(prompts, images, strict=True)])
        images = rerank(images, scores, num).reshape(-1, *images.shape[2:])
    return images, prompts


def tokens_of(stored: Mapping[str, Any], prompts: list[str], truncate: bool = True) -> np.ndarray:
    """Prompts as int32 [P, T], by the tokenizer of a run; those that are too long are cut, or refused.

    Raises:
      ConfigError: it has none, or what the tokenizer refuses.
    """
    decode = build(stored["data"]["decode"]) if "data" in stored else None
    if getattr(decode, "tokenizer", None) is None:
        raise ConfigError("this model came without a tokenizer, so it reads no prompts: train it with data.decode.tokenizer")
    return np.stack([decode.tokenizer(prompt, truncate=truncate) for prompt in prompts])


def held_out(stored: Mapping[str, Any], num: int) -> list[str]:
    """Captions of `num` held-out images, spread over the data."""
    if "data" not in stored:
        raise ConfigError("this model came without data, so it has no captions of its own: give --prompt")
    source = build(stored["data"]["test"])
    return [source[i * len(source) // num]["caption"] for i in range(num)]


def completed(task: Autoregressive, frozen: Any, path: str) -> np.ndarray:
    """The codes of the upper halves of the images in a file."""
    if frozen is None:
        raise ConfigError("images are completed by a first stage: this folder has none")
    pictures, _ = image.read_batch(path)
    units = image.to_unit(np.stack([image.to_channels(picture, task.shape[-1]) for picture in pictures]))
    if units.shape[1:] != task.shape:
        raise ConfigError(f"--complete {path} has images of {units.shape[1:]}, this model makes {task.shape}")
    return upper(task, frozen, units)


def judge_of(folder: str, stored: Mapping[str, Any]) -> Judge:
    """What ranks images of a prompt: log p(label | image) of a classifier, or the cosine of a CLIP's image and text.

    A classifier's label is that of the first training image with the prompt for a caption.

    Raises:
      ConfigError: what `load` refuses, another kind of model, one of images of another size, or a prompt without a label.
    """
    config, task, params = load(folder)
    if not isinstance(task, (Contrastive, NoisyClassifier)):
        raise ConfigError(f"--rerank {folder} holds a {type(task).__name__}: give the folder of a classifier or a CLIP")
    shape = task_of(stored).shape
    if getattr(task, "shape", shape) != shape:
        raise ConfigError(f"--rerank {folder} judges images of {task.shape}, this model makes {shape}: choose another")
    if isinstance(task, Contrastive):
        return _clip_judge(plain(config), task, params)
    source, clean = build(stored["data"]["train"]), task.process.at(jnp.zeros(()))
    labels: dict[str, int] = {}
    for i in range(len(source)):
        record = source[i]
        labels.setdefault(record["caption"], record.get("label", -1))
    logits = jax.jit(lambda x: jax.nn.log_softmax(task.logits(params, x, clean)))

    def score(prompt: str) -> Score:
        label = labels.get(prompt, -1)
        if label < 0:
            raise ConfigError(f"no training image is captioned {prompt!r}, so a classifier cannot rank images of it: use a CLIP")
        return lambda images: np.asarray(logits(image.to_unit(images)))[:, label]

    return score


def _clip_judge(config: Mapping[str, Any], task: Contrastive, params: Any) -> Judge:
    images_to = jax.jit(lambda x: task.encode_image(params, x))

    def score(prompt: str) -> Score:
        text = task.encode_text(params, jnp.asarray(tokens_of(config, [prompt])))
        return lambda images: np.asarray(images_to(image.to_unit(images)) @ text[0])

    return score


def write(out: str, images: np.ndarray, prompts: list[str]) -> None:
    """A grid with a row for each prompt where there are several, an npz (arr_0, and the prompts), or a folder of PNGs."""
    if out.endswith("/"):
        for number, pixels in enumerate(images):
            image.save_png(Path(out, f"{number:06d}.png"), pixels)
    elif out.endswith(".npz"):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        np.savez(out, arr_0=images, prompts=np.repeat(prompts, len(images) // len(prompts)))
    else:
        each = len(images) // len(prompts)
        image.save_png(out, image.grid(images, columns=each if len(prompts) > 1 and each > 1 else None))
