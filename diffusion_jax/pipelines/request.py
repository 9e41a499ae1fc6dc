"""What to make pictures of: the request that a pipeline is called with, and beside it how many to
make and with whose help. Nothing here opens a run or imports a network: flags are made of it.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, check_options, number, option, short

Pictures = np.ndarray | str | Path
"""Images uint8 [N, H, W, C], or the file or folder that they are in."""
SEEDS = 2**32
"""How many seeds there are: of a larger one `jax.random.key` would drop bits without a word."""
Pair = Sequence[int] | str
"""Two sizes, (1024, 768) or '1024,768'."""
SIZES = {"original_size": 1, "crop": 0, "target_size": 1}
"""Fields of a request that are such a pair, and their least value."""
LARGEST = 2**16
"""Of sizes, in pixels."""
MOST = 10**7
"""Pictures of one call: their conditions are made before the first."""


@dataclass(frozen=True, eq=False)  # arrays among its fields have no single truth value
class Request:
    """What to make an image of.

    Attributes:
      prompt: a text, or several.
      negative: what is not wanted, in place of the empty text of guidance.
      label: a class by its name or its number, or several; without it the classes in turn. A text
        that is a class's name is that class, also where it spells a number.
      truncate: cut prompts that have more tokens than the model reads, which is refused without it.
      low_res: images for an upsampler.
      complete: images whose upper halves a token model completes.
      embedding: CLIP's embeddings [N, F] for a decoder of unCLIP, in place of a prior's.
      original_size, crop, target_size: what Stable Diffusion XL is told of a picture, in place of
        its page's sizes; pipelines/sizes.py.

    Example:
      pipe(Request(prompt="a cat", negative="blurry"), num=4)

    Raises:
      ConfigError: a text, a class, pictures or embeddings that are none, at construction.
    """

    prompt: str | Sequence[str] | None = option(
        None, "Text to make an image of; may be given again"
    )
    negative: str | None = option(
        None, "Text of what is not wanted, in place of the empty text of guidance"
    )
    label: int | str | Sequence[int | str] | None = option(
        None,
        "Class to sample, by its name or its number; may be given again; without it the classes in "
        "turn",
    )
    truncate: bool = option(
        False, "Cut prompts that have more tokens than the model reads, which is refused without it"
    )
    low_res: Pictures | None = option(None, "Images for an upsampler: x.npz, an image or a folder")
    complete: Pictures | None = option(
        None, "Images whose upper halves a token model completes: x.npz, an image or a folder"
    )
    embedding: np.ndarray | None = None
    original_size: Pair | None = option(
        None,
        "Height and width that Stable Diffusion XL is told the picture had before it was resized: "
        "1024,768",
    )
    crop: Pair | None = option(
        None, "Top and left of the crop that Stable Diffusion XL is told: 0,0 is none"
    )
    target_size: Pair | None = option(
        None, "Height and width that Stable Diffusion XL is told the picture has: 1024,768"
    )

    def __post_init__(self):
        _check_each("prompt", self.prompt, str, "a text, or several")
        _check_each(
            "label",
            self.label,
            (int, str, np.integer),
            "a class by its number or its name, or several",
        )
        if self.negative is not None and not isinstance(self.negative, str):
            raise ConfigError(f"negative (--negative) is a text: got {short(self.negative)}")
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"truncate (--truncate) is True or False: got {short(self.truncate)}")
        for name in ("low_res", "complete"):
            check_pictures(name, getattr(self, name))
        _check_embedding(self.embedding)
        for name, value in self.sizes.items():
            if value is not None:
                pair(name, value)

    @classmethod
    def of(cls, what: Any) -> Request:
        """A request from what is shortest to write: a text or texts, a label or labels, nothing, or
        a request as it is.

        Raises:
          ConfigError: something else.
        """
        if isinstance(what, Request):
            return what
        several = _several(what)
        if what is None or not several:
            return cls()
        if all(isinstance(one, str) for one in several):
            return cls(prompt=several)
        if all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in several):
            return cls(label=tuple(int(one) for one in several))
        raise ConfigError(
            f"ask for a text, a label, a list of either, or a Request: got {short(what)}"
        )

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """The texts; None without one."""
        return None if self.prompt is None else _several(self.prompt)

    @property
    def labels(self) -> tuple[int | str, ...] | None:
        """The classes; None without one."""
        return None if self.label is None else _several(self.label)

    @property
    def sizes(self) -> dict[str, Pair | None]:
        """What a model is told of a picture's size, by name; None where nothing is said."""
        return {name: getattr(self, name) for name in SIZES}

    @property
    def rows(self) -> int:
        """How many different pictures this describes, each of which is made `num` times.

        Raises:
          ConfigError: several prompts and another number of labels.
        """
        prompts, labels = len(self.prompts or ()), len(self.labels or ())
        if prompts > 1 and labels > 1 and prompts != labels:
            raise ConfigError(
                f"{prompts} prompts and {labels} labels: give as many of both, or one"
            )
        return max(prompts, labels, 1)


@dataclass(frozen=True)
class Batch:
    """How many images, from which draws."""

    num: int | None = option(
        None,
        "Samples, or held-out images; by default as many as the page says, 100 captions for clip, "
        "all that are held out",
        least=1,
        most=MOST,
    )
    seed: int | None = option(None, "Seed of all draws; 1 by default", least=0, most=SEEDS - 1)
    batch: int | None = option(None, "Images at a time; 250 by default", least=1, most=MOST)

    def __post_init__(self):
        check_options(self)


@dataclass(frozen=True)
class Helpers:
    """Other runs that help to sample, by their folders."""

    classifier: str | None = option(
        None, "Folder of a noisy classifier that guides towards the label, or of a CLIP"
    )
    weak: str | None = option(
        None, "Folder of a weaker model to guide away from (autoguidance), in place of no condition"
    )
    weak_step: int | None = option(None, "Checkpoint of --weak; the newest by default", least=0)
    upsampler: tuple[str, ...] = option(
        (), "Folder of a model that makes the images larger; may be given again"
    )
    prior: str | None = option(
        None,
        "Where unCLIP's decoder has its embeddings from: a prior's folder, or text, or caption",
    )
    prior_guidance: float | None = option(
        None, "Guidance of the prior; as its page says by default"
    )
    prior_steps: str | None = option(
        None, "Steps of a diffusion prior; as its page says by default"
    )
    prior_best: int | None = option(
        None, "Embeddings that the prior makes for each that is used; 2 by default", least=1
    )
    rerank: str | None = option(
        None, "Folder of a classifier, or of a CLIP, that chooses among --candidates"
    )
    candidates: int | None = option(
        None, "Images that --rerank chooses one among; metric clip takes it alone", least=1
    )

    def __post_init__(self):
        check_options(self)
        if self.weak is None and self.weak_step is not None:
            raise ConfigError("--weak_step is a step of the run --weak: give that too")


def strengths(texts: Sequence[str]) -> dict[str, float]:
    """LoRAs as the command line names them: ('x.safetensors=0.7', 'y.safetensors') -> {file:
    strength}, 1 where none is named.

    Raises:
      ConfigError: a strength that is no number, or a file that comes again.
    """
    loras: dict[str, float] = {}
    for text in texts:
        file, sign, strength = text.rpartition("=")
        if not sign:
            file, strength = text, "1"
        if not file or file in loras:
            what = f"names {file} again" if file else "names no file"
            raise ConfigError(f"--lora {text} {what}: write --lora x.safetensors=0.7, once each")
        loras[file] = number(f"the strength of --lora {text}", strength)
    return loras


def _several(value: Any) -> tuple[Any, ...]:
    """A value, or the values of a list or an array, as a tuple."""
    if isinstance(value, np.ndarray):  # a scalar array is one value
        return tuple(np.atleast_1d(value))
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _check_each(name: str, value: Any, kinds: Any, what: str) -> None:
    """Raises ConfigError where a field is neither None nor one or several values of `kinds`; a bool
    is none of them, though Python takes it for an int."""
    if value is None:
        return
    several = _several(value)
    if not several or not all(
        isinstance(one, kinds) and not isinstance(one, bool) for one in several
    ):
        raise ConfigError(f"{name} (--{name}) is {what}: got {short(value)}")


def check_pictures(name: str, value: Any) -> None:
    """Raises ConfigError where pictures are neither None nor `Pictures`."""
    if value is None or isinstance(value, (str, os.PathLike)):
        return
    is_array = isinstance(value, np.ndarray)
    if not is_array or value.dtype != np.uint8 or value.ndim not in (3, 4) or not value.size:
        got = f"{value.dtype} {value.shape}" if is_array else f"{short(value)}"
        raise ConfigError(
            f"{name} (--{name}) are pictures, uint8 [N, H, W, C], or their file: got {got}"
        )


def _listed(value: Any) -> list[Any]:
    """A list, a tuple or an array as a list; [] for anything else."""
    # A scalar array has no length.
    is_list = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
    return list(value) if is_list else []


def pair(name: str, value: Pair) -> tuple[int, int]:
    """Two sizes, of text or of numbers.

    Raises:
      ConfigError: they are no two whole numbers, or out of bounds.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple, np.ndarray)) or len(parts) != 2:
        raise ConfigError(f"{name} (--{name}) is two whole numbers, 1024,768: got {short(value)}")
    first, second = (
        number(f"{name} (--{name})", part, SIZES[name], LARGEST, integer=True) for part in parts
    )
    return int(first), int(second)


def check_rects(rects: Any) -> None:
    """Raises ConfigError where rectangles are no list of four whole numbers each."""
    several = _listed(rects)
    for rect in several or [rects]:
        sides = _listed(rect)
        whole = all(isinstance(side, (int, np.integer)) for side in sides)
        if len(sides) != 4 or not whole or any(isinstance(side, bool) for side in sides):
            raise ConfigError(
                f"rectangles are a list of (top, left, bottom, right) in pixels: got {short(rects)}"
            )


def _check_embedding(value: Any) -> None:
    """Raises ConfigError where embeddings are neither None nor finite numbers [N, F]."""
    if value is None:
        return
    array = np.asarray(value)
    numbers = array.dtype.kind in "fiu" and array.ndim == 2 and array.size > 0
    if not numbers or not np.isfinite(array).all():
        raise ConfigError(
            f"embedding is an array of finite numbers [N, F]: got {array.dtype} {array.shape}"
        )


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raises ConfigError where a value is no int, or out of these bounds."""
    # `jax.random.key` and `range` take ints alone, so that 3.0 and '3' are refused as well.
    if not isinstance(value, (int, np.integer)):
        raise ConfigError(f"{name} is a whole number, {least} ... {most}: got {short(value)}")
    number(name, value, least, most, integer=True)


def check_numbers(num: int, seed: int, batch: int = 1) -> None:
    """Raises ConfigError where `num` or `batch` is no whole number from 1 on, or the seed none of
    the `SEEDS`."""
    check_whole("num", num, 1, MOST)
    check_whole("batch", batch, 1, MOST)
    check_whole("seed", seed, 0, SEEDS - 1)


def check_negative(request: Request, guided: bool) -> None:
    """Raises ConfigError for a text to guide away from where nothing is guided."""
    if request.negative is not None and not guided:
        raise ConfigError(
            "negative (--negative) is what guidance leads away from, and guidance is 1, none: "
            "give guidance too"
        )
