"""Mode `sample`: a run's folder -> a grid, a folder of PNGs, or an npz for an evaluator."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import image
from diffusion_jax.modes import config as page
from diffusion_jax.modes import first_stage, prompts, text, unclip
from diffusion_jax.pipelines.cascade import Stage, generate_cascade
from diffusion_jax.pipelines.diffusion import Guide, Weak, conditions
from diffusion_jax.pipelines.latent import Space, decoded
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.checkpoint import config_of, load
from diffusion_jax.train.state import plain

TOKENS = "diffusion_jax.tasks.autoregressive:Autoregressive"


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Samples from the newest checkpoint; the folder alone is enough.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder.
      options: num, label, seed, out, which, step, batch, classifier (a run's folder), weak (another, and perhaps weak_step),
        upsampler (a list of them), low_res (a file that `image.read_batch` reads), prompt (a list: num images for each, a row
        of the grid; held-out captions where a model that reads text is given none), negative (a text to guide away from),
        truncate (cut prompts that are too long), prior, prior_guidance, prior_steps and prior_best (of unCLIP's decoder, see
        `unclip.conditions_of`), and the fields of `Recipe`; what is not given comes from the checkpoint's config. A transformer
        over tokens takes those of `prompts.images_of`.

    Raises:
      ConfigError: a bad `out`, what `load`, `conditions` or `generate` refuse, or samples that are not finite.
    """
    options = dict(options)
    target = checked_out(options.pop("out", str(Path(workdir, "samples.png"))))
    if config_of(workdir, options.get("step"))["task"]["name"] == TOKENS:
        images, asked = prompts.images_of(workdir, options)
        prompts.write(target, images, asked)
        print(f"{len(images)} samples: {target}")
        return
    guide_folder = options.pop("classifier", None)
    guide, weak = guide_of(guide_folder), weak_of(options)
    larger = options.pop("upsampler", None) or unclip.own_upsamplers(workdir)
    given = options.pop("low_res", None)
    asked = options.pop("prompt", None)
    how_read = {name: options.pop(name) for name in ("negative", "truncate") if name in options}
    how_read |= {"prior": unclip.options_of(options)}
    num, label = options.pop("num", 8 if asked else 64) * len(asked or "1"), options.pop("label", None)
    seed, batch = options.pop("seed", 0), options.pop("batch", 100)
    out = Path(target)
    base = stage_of(workdir, options.pop("which", "ema"), options.pop("step", None), options)
    if guide is None and "classifier_scale" in options:
        raise ConfigError("--classifier_scale needs a --classifier")
    raw = small_images(given, base.task) if given else {}
    raw |= text.conditions_of(workdir, base.task, asked, num, guide_folder if guide else None, **how_read)
    raw = conditions(base.task, num, label, raw, guide)
    stages = [base, *(stage_of(folder, "ema", None, {}) for folder in larger)]
    samples = decoded(stages[-1].task, first_stage.kept(workdir), generate_cascade(stages, raw, num, seed, batch, guide, weak))
    batches = pixels_of(samples, num)
    if target.endswith("/"):
        write_folder(out, batches, raw)
    else:
        images = np.concatenate(list(batches))
        if out.suffix == ".npz":
            out.parent.mkdir(parents=True, exist_ok=True)
            np.savez(out, arr_0=images, **({"arr_1": raw["label"]} if "label" in raw else {}))
        else:
            image.save_png(out, image.grid(images, num // len(asked) if asked and num > len(asked) > 1 else None))
    print(f"{num} samples: {out}")


def checked_out(out: str) -> str:
    """`out`, which says by its end what to write; `ConfigError` where it does not."""
    if not out.endswith("/") and Path(out).suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {out}: end it in .png (a grid), .npz (arr_0, arr_1) or / (a folder of PNGs)")
    return out


def stage_of(folder: str, which: str, step: int | None, options: Mapping[str, Any]) -> Stage:
    """A diffusion model and its page's way of sampling with `options` over it.

    Raises:
      ConfigError: what `load` refuses, or a folder of another kind of model.
    """
    stored, task, params = load(folder, which, step)
    if not isinstance(task, Diffusion):
        raise ConfigError(f"{folder} holds a {type(task).__name__}, which makes no images: give the folder of a diffusion model")
    if task.embeds:
        raise ConfigError(f"{folder} holds a prior, which makes embeddings: give the folder of its decoder, and --prior {folder}")
    return Stage(task, params, page.recipe_of(plain(stored), options))


def guide_of(folder: str | None, flag: str = "classifier") -> Guide | None:
    """The newest classifier in a run's folder, which was given as `flag`.

    Raises:
      ConfigError: what `load` refuses, or a folder of another kind of model.
    """
    if folder is None:
        return None
    _, task, params = load(folder)
    if not isinstance(task, NoisyClassifier) and not (isinstance(task, Contrastive) and flag == "classifier"):
        raise ConfigError(f"--{flag} {folder} holds a {type(task).__name__}: give the folder of a noisy classifier")
    return Guide(task, params)


def weak_of(options: dict[str, Any]) -> Weak | None:
    """The model to guide away from, of the options weak, a run's folder, and weak_step, which are taken out of `options`.

    Raises:
      ConfigError: what `load` refuses, a folder of another kind of model, or a weak_step without a folder.
    """
    folder, step = options.pop("weak", None), options.pop("weak_step", None)
    if folder is None:
        if step is not None:
            raise ConfigError("--weak_step is a step of the run --weak: give that too")
        return None
    _, task, params = load(folder, step=step)
    if not isinstance(task, Diffusion):
        raise ConfigError(f"--weak {folder} holds a {type(task).__name__}: give the folder of a diffusion model")
    return Weak(task, params)


def small_images(path: str, task: Diffusion) -> dict[str, np.ndarray]:
    """The raw conditions in a file: low_res in [-1, 1] and, if there are any, labels."""
    images, labels = image.read_batch(path)
    small = image.to_unit(np.stack([image.to_channels(picture, Space(task).shape[-1]) for picture in images]))
    return {"low_res": small} | ({} if labels is None else {"label": labels.astype(np.int32)})


def pixels_of(batches: Iterator[np.ndarray], num: int) -> Iterator[np.ndarray]:
    """The batches as uint8, with a bar that counts images."""
    from tqdm import tqdm

    with tqdm(total=num, unit="image", disable=jax.process_index() > 0) as bar:
        for batch in batches:
            yield to_pixels(batch)
            bar.update(len(batch))


def to_pixels(batch: np.ndarray) -> np.ndarray:
    """Samples as uint8.

    Raises:
      ConfigError: one that is not finite, which would look like a black one.
    """
    if not np.isfinite(batch).all():
        raise ConfigError("the samples are not finite: change the sampler's options, or the weights (--which, --step)")
    return image.to_uint8(batch)


def write_folder(out: Path, batches: Iterator[np.ndarray], raw: Mapping[str, np.ndarray]) -> None:
    """One PNG per image, 000000.png on, with the label in the name where there is one: 000000_3.png."""
    number = 0
    for batch in batches:
        for pixels in batch:
            name = f"{number:06d}_{raw['label'][number]}.png" if "label" in raw else f"{number:06d}.png"
            image.save_png(out / name, pixels)
            number += 1
