"""What to make pictures of: the request that a pipeline is called with, and beside it how many to
make and with whose help. Nothing here opens a run or imports a network: flags are made of it.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError, check_options, option

Pictures = np.ndarray | str | Path
"""Images uint8 [N, H, W, C], or the file or folder that they are in."""
SEEDS = 2**32
"""How many seeds there are: of a larger one `jax.random.key` would drop bits without a word."""


@dataclass(frozen=True, eq=False)  # arrays among its fields have no single truth value
class Request:
    """What to make an image of.

    Attributes:
      prompt: a text, or several.
      negative: what is not wanted, in place of the empty text of guidance.
      label: a class by its number or its name, or several; without it the classes in turn.
      truncate: cut prompts that have more tokens than the model reads, which is refused without it.
      low_res: images for an upsampler.
      complete: images whose upper halves a token model completes.
      embedding: CLIP's embeddings [N, F] for a decoder of unCLIP, in place of a prior's.

    Example:
      >>> pipe(Request(prompt="a cat", negative="blurry"), num=4)

    Raises:
      ConfigError: a text or a class that is none, at construction.
    """

    prompt: str | Sequence[str] | None = option(
        None, "Text to make an image of; may be given again"
    )
    negative: str | None = option(
        None, "Text of what is not wanted, in place of the empty text of guidance"
    )
    label: int | str | Sequence[int | str] | None = option(
        None, "Class to sample, by its number or its name; without it the classes in turn"
    )
    truncate: bool = option(
        False, "Cut prompts that have more tokens than the model reads, which is refused without it"
    )
    low_res: Pictures | None = option(None, "Images for an upsampler: x.npz, an image or a folder")
    complete: Pictures | None = option(
        None, "Images whose upper halves a token model completes: x.npz, an image or a folder"
    )
    embedding: np.ndarray | None = None

    def __post_init__(self):
        _check_each("prompt", self.prompt, str, "a text, or several")
        _check_each(
            "label",
            self.label,
            (int, str, np.integer),
            "a class by its number or its name, or several",
        )
        if self.negative is not None and not isinstance(self.negative, str):
            raise ConfigError(f"negative (--negative) is a text: got {self.negative!r}")

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
        raise ConfigError(f"ask for a text, a label, a list of either, or a Request: got {what!r}")

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """The texts; None without one."""
        return None if self.prompt is None else _several(self.prompt)

    @property
    def labels(self) -> tuple[int | str, ...] | None:
        """The classes; None without one."""
        return None if self.label is None else _several(self.label)

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
    )
    seed: int | None = option(None, "Seed of all draws; 1 by default", least=0, most=2**32 - 1)
    batch: int | None = option(None, "Images at a time; 250 by default", least=1)

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
        raise ConfigError(f"{name} (--{name}) is {what}: got {value!r}")


def check_numbers(num: int, seed: int, batch: int = 1) -> None:
    """Raises ConfigError where `num` or `batch` is no whole number from 1 on, or the seed none of
    the `SEEDS`."""
    for name, value in (("num", num), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigError(f"{name} is a whole number, at least 1: got {value!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < SEEDS:
        raise ConfigError(f"seed is a whole number, 0 ... 2^32 - 1: got {seed!r}")


def check_negative(request: Request, guided: bool) -> None:
    """Raises ConfigError for a text to guide away from where nothing is guided."""
    if request.negative is not None and not guided:
        raise ConfigError(
            "negative (--negative) is what guidance leads away from, and guidance is 1, none: "
            "give guidance too"
        )
