"""What a new run is, in five lines that are said before it starts.

    data      67 records of photos/ to train on, 8 held out
    task      a diffusion model of 64x64x3, told one of 3 classes: petunia, rose, sunflower
    model     DiT: patch 4, width 128, depth 6, heads 4
    training  5,000 steps of 32, each record 2,388 times; adamw, lr 0.001
    changing  --config.<key>=<value>, as --config.steps=10000; --mode page writes the page out ...
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import build
from diffusion_jax.data.folder import Folder
from diffusion_jax.data.source import Source
from diffusion_jax.tasks import kinds
from diffusion_jax.types import Task

NAMES = 5
"""Classes that are named; of more only their number is said."""
OPTIONS = ("patch", "width", "mults", "depth", "layers", "heads", "block", "latent", "dropout")
"""Of a network, those that say how large it is."""


def summary(config: Mapping[str, Any], task: Task, source: Source) -> list[str]:
    """The five lines.

    Args:
      config: the run's page, as it is stored.
      task: what is trained.
      source: the training data, open.
    """
    return [
        f"data      {_data(config, source)}",
        f"task      {_task(config, task, source)}",
        f"model     {_model(config)}",
        f"training  {_training(config, len(source))}",
        f"changing  --config.<key>=<value>, as --config.steps={2 * config['steps']}; the same "
        "command with --mode page --out mine.py in place of --workdir writes the page out to edit",
    ]


def _data(config: Mapping[str, Any], source: Source) -> str:
    spec = config["data"]["train"]
    where = spec.get("path") or spec.get("dataset") or spec["name"].rpartition(":")[2]
    told = f"{len(source):,} records of {where} to train on"
    # Other sources may have no held-out part here yet: nobody has asked for it.
    test = build(config["data"]["test"]) if isinstance(source, Folder) else None
    if isinstance(test, Folder) and test.split == "test":
        told += f", {len(test):,} held out"
    return told


def _task(config: Mapping[str, Any], task: Task, source: Source) -> str:
    told = ", told nothing of them" if isinstance(task, kinds.Denoising) else ""
    if "label" in task.needs:
        names = source.names or ()
        few = f": {', '.join(names)}" if 0 < len(names) <= NAMES else ""
        told = f", told one of {task.num_classes} classes{few}"
    if "tokens" in task.needs:
        tokenizer = config["data"]["decode"]["tokenizer"]
        told = f", told their captions, by {tokenizer['name'].rpartition(':')[2]}"
    return f"{task.noun} of {'x'.join(map(str, task.shape))}{told}"


def _model(config: Mapping[str, Any]) -> str:
    spec = config.get("model", {"name": config["task"]["name"]})
    sizes = [f"{key} {_spelt(spec[key])}" for key in OPTIONS if spec.get(key)]
    return ": ".join(filter(None, (spec["name"].rpartition(":")[2], ", ".join(sizes))))


def _training(config: Mapping[str, Any], records: int) -> str:
    steps, batch, optim = config["steps"], config["batch"], config["optim"]
    parts = optim.get("parts", {"": optim})
    rates = [
        f"{name and f'{name}: '}{part.get('method', 'adamw')}, lr {part['lr']:g}"
        for name, part in parts.items()
        if "lr" in part
    ]
    times = f"{steps:,} steps of {batch}, each record {steps * batch / records:,.0f} times"
    return "; ".join([times, *rates])


def _spelt(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
