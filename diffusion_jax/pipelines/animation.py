"""How pictures arise: x0 as it stands every few steps of a sampler, and at last the pictures.

    arising(pipe, 3, num=4).save("threes.gif")
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.data import animation, pictures
from diffusion_jax.pipelines.conditions import request_of
from diffusion_jax.pipelines.pipeline import Pipeline

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
      steps: of the sampler, done before each look, F of them.
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
    pipe: Pipeline, request: Any = None, num: int = 1, seed: int = 0, every: int | None = None
) -> Animation:
    """The pictures of a call of a pipeline, made as one batch, as they arise.

    Args:
      pipe: what makes them.
      request, num, seed: as for its call.
      every: steps between two looks; for about `FRAMES` of them by default.

    Raises:
      ConfigError: what `check` or `Pipeline.stream` refuses.
    """
    check(pipe)
    if every is None:
        times = pipe.diffusion.grid(pipe.run.task.process)
        every = max(1, (len(times) - 1) // FRAMES)
    rows = request_of(request, pipe.run, pipe.guide).rows
    looks = list(pipe.stream(request, num, seed, every))
    steps, images = zip(*looks, strict=True)
    return Animation(np.stack(images), steps, num if rows > 1 and num > 1 else None)


def check(pipe: Pipeline) -> None:
    """Raises ConfigError for a pipeline whose pictures do not arise in steps that can be shown."""
    stills = "end --out in .png, .npz or /"
    if pipe.makes_tokens:
        raise ConfigError(
            f"an animation shows the steps of a sampler: {pipe.run.folder} holds "
            f"{pipe.run.task.noun}, which draws one token after the other: {stills}"
        )
    if pipe.upsamplers or pipe.judge is not None:
        raise ConfigError(
            "an animation shows the steps of one model: where upsamplers or a judge follow, "
            f"{stills}"
        )
