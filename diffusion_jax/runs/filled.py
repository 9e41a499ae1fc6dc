"""What a page leaves out and its data say.

    cond=dict(name="diffusion_jax.models.cond:Label", width=96)        num_classes = 3
    task=dict(name="diffusion_jax.tasks.diffusion:Diffusion", ...)     shape = (64, 64, 3)
    model=dict(name="diffusion_jax.models.dit:DiT", ...)               channels = 3
    cond=dict(name="diffusion_jax.models.glide:Text", ...)             vocab = 514, context = 24

Classes are those of data.train, a shape is that of its first picture once decoded, or of the
latents that a first stage makes of that; vocabulary and length are those of the tokenizer.

Only what has no default is filled, and channels that the shape rules out: a page that was whole
before means what it meant. What a run stores is complete.
"""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from diffusion_jax import hints
from diffusion_jax.build import ConfigError, build, check, symbol
from diffusion_jax.data.source import decoded
from diffusion_jax.data.tokenizers import length_of, vocab_of
from diffusion_jax.parts import KINDS
from diffusion_jax.runs.first_stage import latent_shape
from diffusion_jax.runs.folder import FIRST
from diffusion_jax.runs.held_out import still
from diffusion_jax.tasks import kinds


class _Data:
    """What the data of a page say, each read at first use.

    Args:
      config: the page, its first stage in its task.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    @functools.cached_property
    def _source(self) -> Any:
        return build(self._config["data"]["train"])

    @functools.cached_property
    def _decode(self) -> Any:
        return build(still(self._config["data"]["decode"]))

    @property
    def classes(self) -> int:
        """How many classes there are; `ConfigError` where the data have none."""
        labels = getattr(self._source, "labels", None)
        if self._source.names:
            return len(self._source.names)
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.size:
            return int(labels.max()) + 1
        raise ConfigError(f"{self._source} names no classes")

    @property
    def vocab(self) -> int:
        """How many tokens the tokenizer has."""
        return vocab_of(self._tokenizer)

    @property
    def length(self) -> int:
        """How many tokens a text has."""
        return length_of(self._tokenizer)

    @property
    def _tokenizer(self) -> Any:
        tokenizer = getattr(self._decode, "tokenizer", None)
        if tokenizer is None:
            raise ConfigError("data.decode has no tokenizer")
        return tokenizer

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the task sees of a record: a picture, or its latent."""
        image = decoded(self._source, self._decode, 0, np.random.default_rng(0))["image"]
        # Latents come as floats, and need no first stage to be made.
        if image.dtype != np.uint8 or FIRST not in self._config:
            return image.shape
        task = self._config["task"]
        if FIRST not in task:
            raise ConfigError(f"it is that of the latents of {self._config[FIRST]}")
        stage = build(task[FIRST])
        if not isinstance(stage, kinds.Encoding):
            return image.shape
        return latent_shape(stage, image.shape)


OPTIONS: dict[str, Callable[[_Data], int]] = {
    "num_classes": lambda data: data.classes,
    "vocab": lambda data: data.vocab,
    "context": lambda data: data.length,
    "text_length": lambda data: data.length,
}
"""Of networks and conditioners, wherever they stand in a page."""


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A page with what it leaves out and its data say; data that nothing is asked of are not read.

    Args:
      config: a page that `page.check` accepts, as plain JSON.

    Raises:
      ConfigError: something has no default, and the data do not say it.
    """
    config = dict(config)
    data = _Data(config)
    for section in ("model", "task"):
        if section in config:
            config[section] = _filled(config[section], section, data)
    task = config["task"]
    if _lacks(task, "shape"):
        shape = _of_data("task", "shape", lambda data: data.shape, data)
        task = config["task"] = {**task, "shape": list(shape)}
    model = config.get("model")
    if model is not None and "shape" in task and len(task["shape"]) == 3:
        config["model"] = _with_channels(model, task["shape"][-1])
    return config


def check_parts(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for what `build` would refuse of a page once it is filled: an option that
    a part does not have, a value of another kind or out of bounds. No data are read."""
    for spec in _parts(config):
        # Parts inside it are looked at by themselves, and of what data say nothing is known yet.
        own = {key: value for key, value in spec.items() if next(_parts(value), None) is None}
        required = inspect.Parameter.empty
        lacking = [key for key, default in _parameters(spec["name"]).items() if default is required]
        check(own, **dict.fromkeys({*spec, *lacking} - {*own}))


def _parts(tree: Any) -> Iterator[Mapping[str, Any]]:
    """All specs in a tree, `{'name': ...}`."""
    if isinstance(tree, Mapping):
        if "name" in tree:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for entry in tree:
            yield from _parts(entry)


def _filled(spec: Any, place: str, data: _Data) -> Any:
    """A part of a page, and the parts in it, with their `OPTIONS`."""
    if isinstance(spec, (list, tuple)):
        return [_filled(part, f"{place}.{i}", data) for i, part in enumerate(spec)]
    if not isinstance(spec, Mapping):
        return spec
    # A first stage comes whole out of its own checkpoint.
    parts = {
        key: part if key == FIRST else _filled(part, f"{place}.{key}", data)
        for key, part in spec.items()
    }
    for option in OPTIONS:
        if _lacks(spec, option):
            parts[option] = _of_data(place, option, OPTIONS[option], data)
    return parts


def _lacks(spec: Mapping[str, Any], option: str) -> bool:
    """Whether a part of this package needs an option that its spec leaves out."""
    return option not in spec and _defaults(spec).get(option) is inspect.Parameter.empty


def _with_channels(model: Mapping[str, Any], channels: int) -> Mapping[str, Any]:
    """A network with the channels of what it denoises, where its own default are others."""
    default = _defaults(model).get("channels", channels)
    return model if "channels" in model or default == channels else {**model, "channels": channels}


def _defaults(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a part of this package with their defaults; {} for anything else."""
    name = spec.get("name")
    return _parameters(name) if isinstance(name, str) and name in KINDS else {}


@functools.cache
def _parameters(name: str) -> Mapping[str, Any]:
    signature, annotations = hints.signature(symbol(name))
    parameters = signature.parameters.items()
    return {key: parameter.default for key, parameter in parameters if key in annotations}


def _of_data(place: str, option: str, read: Callable[[_Data], Any], data: _Data) -> Any:
    """What the data say of an option; `ConfigError` where they do not, or cannot be read."""
    try:
        return read(data)
    except ConfigError as error:
        raise ConfigError(
            f"config.{place} lacks {option!r}, and the data do not say it ({error}): give it"
        ) from None
