"""How pictures arise: x0 as it stands every few steps of a sampler, of a transformer over tokens the
rows that are drawn, and at last the pictures.

    arising(pipe, 3, num=4).save("threes.gif")
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import animation, pictures
from diffusion_jax.pipelines import tokens
from diffusion_jax.pipelines.conditions import request_of
from diffusion_jax.pipelines.pipeline import Pipeline
from diffusion_jax.pipelines.request import MOST, check_numbers, check_whole
from diffusion_jax.pipelines.samples import columns_of

FRAMES = 40
"""Looks, about, where nobody says how often."""
SECONDS = 0.1
"""How long an animation shows a look."""
HELD = 15
"""Frames for which it shows the pictures themselves."""


class Animation(NamedTuple):
    """Pictures as they arise.

    Attributes:
      looks: uint8 [F, N, H, W, C]; the last are the pictures themselves.
      steps: of the sampler, or rows of tokens, done before each look, F of them.
      columns: of a grid of N; None for about square.
    """

    looks: np.ndarray
    steps: tuple[int, ...]
    columns: int | None

    def save(self, out: str | Path) -> str:
        """Writes a frame for each look, a grid of all pictures, and holds the last.

        Args:
          out: x.gif or x.mp4, which is written over.

        Returns:
          Where it is.

        Raises:
          ConfigError: another suffix, or what writes it is not installed.
        """
        path = str(Path(out).expanduser())
        if not is_animation(path):
            raise ConfigError(f"an animation is written as .gif or .mp4: got {out}")
        frames = [pictures.grid(look, self.columns) for look in self.looks]
        frames += frames[-1:] * HELD
        animation.animate(path, np.stack(frames), SECONDS)
        return path


def is_animation(out: str | Path) -> bool:
    """Whether a file's name is that of an animation."""
    return Path(out).suffix in pictures.ANIMATIONS and not str(out).endswith("/")


def arising(
    pipe: Pipeline,
    request: Any = None,
    num: int = 1,
    seed: int = 0,
    every: int | None = None,
    batch: int | None = None,
) -> Animation:
    """The pictures of a call of a pipeline as they arise.

    Args:
      pipe: what makes them.
      request, num, seed: as for its call.
      every: steps between two looks, of a transformer over tokens rows of them; for about `FRAMES`
        looks by default.
      batch: pictures at a time, as for its call, at most; a diffusion model's are one batch,
        however many there are by default.

    Raises:
      ConfigError: what `check`, the call or `Pipeline.stream` refuses, or more pictures of a
        diffusion model than go in a batch.
    """
    check(pipe)
    if pipe.makes_tokens:
        return _rows_drawn(pipe, request, num, seed, every, batch)
    check_numbers(num, seed, 1 if batch is None else batch)
    rows = request_of(request, pipe.run, pipe.guide).rows
    total = num * rows
    if batch is not None and total > batch:
        raise ConfigError(
            f"an animation of {total} pictures is made as one batch: give a smaller --num, or "
            f"--batch {total}"
        )
    if every is None:
        times = pipe.diffusion.grid(pipe.run.task.process)
        every = max(1, (len(times) - 1) // FRAMES)
    looks = list(pipe.stream(request, num, seed, every))
    steps, images = zip(*looks, strict=True)
    return Animation(np.stack(images), steps, num if rows > 1 and num > 1 else None)


def _rows_drawn(
    pipe: Pipeline, request: Any, num: int, seed: int, every: int | None, batch: int | None
) -> Animation:
    """The same of a transformer over tokens."""
    if every is None:
        every = max(1, pipe.run.task.model.grid // FRAMES)
    # Before the sampling, which may take an hour.
    check_whole("every", every, 1, MOST)
    samples = pipe(request, num, seed, **({} if batch is None else {"batch": batch}))
    looks = list(tokens.row_by_row(pipe.run, samples.request, samples.images, every))
    drawn, images = zip(*looks, strict=True)
    return Animation(np.stack(images), drawn, columns_of(samples.origin))


def check(pipe: Pipeline) -> None:
    """Raises ConfigError for a pipeline whose pictures do not arise in steps that can be shown."""
    # Of tokens what a judge chose can be shown: what was drawn first is a part of the last picture.
    if not pipe.makes_tokens and (pipe.upsamplers or pipe.judge is not None):
        raise ConfigError(
            "an animation shows the steps of one model: where upsamplers or a judge follow, end "
            "--out in .png, .npz or /"
        )
