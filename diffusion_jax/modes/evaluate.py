"""Mode `evaluate`: how good the samples of a run's newest checkpoint are, in pixel space; writes report.json."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.build import ConfigError, build
from diffusion_jax.data import image
from diffusion_jax.data.source import Source
from diffusion_jax.metrics import pixels
from diffusion_jax.modes import config as page
from diffusion_jax.modes.sample import pixels_of
from diffusion_jax.pipelines.diffusion import conditions, generate
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.checkpoint import load
from diffusion_jax.train.state import plain


def run(config: Any, workdir: str, options: Mapping[str, Any]) -> None:
    """Samples as many images as the checkpoint's config says, classes in turn, and measures them against its data.

    Args:
      config: not needed: the checkpoint carries its own.
      workdir: the run's folder.
      options: num, seed, which, step, batch, and the fields of `Recipe`.

    Raises:
      ConfigError: what `check`, `load` or `generate` refuse.
    """
    options = dict(options)
    stored, task, params = load(workdir, options.pop("which", "ema"), options.pop("step", None))
    stored = plain(stored)
    num, seed, batch = options.pop("num", stored["evaluate"]["num"]), options.pop("seed", 1), options.pop("batch", 250)
    recipe = page.recipe_of(stored, {"guidance": stored["evaluate"]["guidance"]} | options)
    train, test, decode = (build(stored["data"][part]) for part in ("train", "test", "decode"))
    check(task, num, len(train.names or ()))
    raw = conditions(task, num)
    samples = np.concatenate(list(pixels_of(generate(task, params, recipe, raw, num, seed, batch), num)))
    report = {"samples": num, "sampler": recipe.sampler, "steps": recipe.steps, "guidance": recipe.guidance}
    report |= measure(samples, raw["label"], whole(train, decode), whole(test, decode))
    if jax.process_index() == 0:
        path = Path(workdir) / "report.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(table(report))
        print(f"report: {path}")


def check(task: Diffusion, num: int, classes: int) -> None:
    """Raises ConfigError where `num` images of `task`, classes in turn, cannot be measured against data of `classes` classes."""
    if "label" not in task.cond.keys:
        raise ConfigError("these metrics need a class-conditional model, and this one takes no label: set evaluate.num to 0")
    if num < max(classes, 1):
        raise ConfigError(f"{num} samples do not cover the {classes} classes of the data: raise num")


def whole(source: Source, decode: image.Decode) -> tuple[np.ndarray, np.ndarray]:
    """A whole data set as images uint8 [N, H, W, C] and labels [N]."""
    records = [decode(source[i], np.random.default_rng(0)) for i in range(len(source))]
    if "label" not in records[0]:
        raise ConfigError(f"{source} has no labels; these metrics need them")
    return np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])


def measure(samples: np.ndarray, labels: np.ndarray, train: tuple, test: tuple) -> dict[str, Any]:
    """The metrics of metrics/pixels.py; train and test are (images, labels)."""
    return {
        "accuracy[pixel SVC]": pixels.class_accuracy(samples, labels, *train),
        "accuracy[pixel SVC] of held-out images": pixels.class_accuracy(*test, *train),
        "novelty[pixels]": pixels.novelty(samples, train[0], test[0]),
        "variance[pixels] by class": pixels.class_variance(samples, labels, *train),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as aligned lines."""
    lines = []
    for name, value in report.items():
        if isinstance(value, Mapping):
            value = "  ".join(f"{key}: {ratio:.2f}" for key, ratio in value.items())
        lines.append(f"{name:40s} {value:.4f}" if isinstance(value, float) else f"{name:40s} {value}")
    return "\n".join(lines)
