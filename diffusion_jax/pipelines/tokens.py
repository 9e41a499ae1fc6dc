"""A transformer over text and image tokens: prompts -> images, whole or completed."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.pipelines import dalle
from diffusion_jax.pipelines.conditions import pictures_of
from diffusion_jax.pipelines.request import SIZES, Request
from diffusion_jax.runs.folder import Run

REFUSED = ("negative", "label", "low_res", "embedding", *SIZES)
"""Parts of a request that a token model cannot read."""
GREY = 128
"""Pixels whose tokens are not drawn yet: 0, the middle of [-1, 1], as a byte."""


def batches(
    run: Run,
    draw: dalle.Draw,
    request: Request,
    prompts: Sequence[str],
    num: int,
    seed: int,
    batch: int,
) -> Iterator[np.ndarray]:
    """Batches of images [b, H, W, C] in about [-1, 1], `num` in all, as many for each prompt.

    Args:
      run: the transformer's.
      draw: how tokens are drawn.
      request: what is asked for; the upper halves of `complete` are taken in turn.
      prompts: the texts.
      num, seed, batch: as for `dalle.generate`.

    Raises:
      ConfigError: parts of a request that a token model cannot read, or what the tokenizer and
        `dalle.generate` refuse.
    """
    for name in REFUSED:
        if getattr(request, name) is not None:
            raise ConfigError(
                f"{name} (--{name}) is for diffusion models: this one continues a text with image "
                "tokens"
            )
    if request.truncate and request.prompts is None:
        raise ConfigError(
            "truncate (--truncate) cuts prompts: give a prompt (--prompt), or leave it out"
        )
    # Before prompts and pictures are read, which `upper` needs it for.
    dalle.check_first_stage(run.model)
    # Captions of the data are cut as in training; a user's prompt only where they say so.
    truncate = request.truncate or request.prompts is None
    text = np.repeat(run.tokens(prompts, truncate), num // len(prompts), axis=0)  # [num, T]
    codes = None
    if request.complete is not None:
        halves = dalle.upper(run.model, pictures_of(request.complete, run.task.shape, "complete"))
        codes = np.resize(halves, (num, halves.shape[1]))  # in turn: resize repeats the rows
    return dalle.generate(run.model, draw, text, num, seed, batch, codes)


def row_by_row(
    run: Run, request: Request, images: np.ndarray, every: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Pictures as their tokens are drawn, from the top to the bottom.

    Nothing is sampled or decoded again: a token that is drawn stays, and what of it a picture shows
    is the square of pixels in its place. A decoder's kernels reach across the edge of that, so the
    lowest lines shown know a little of the tokens below them.

    Args:
      run: the transformer's.
      request: what was asked for; the upper halves of `complete` are there from the beginning.
      images: the pictures themselves, uint8 [N, H, W, C].
      every: rows of tokens between two looks; what does not divide comes first, so that the last
        look is at the pictures themselves.

    Yields:
      (rows drawn, uint8 [N, H, W, C]): grey where no token is yet.
    """
    grid = run.task.model.grid
    before = 0 if request.complete is None else dalle.rows_before(run.model)
    height = images.shape[1]
    total = grid - before
    for drawn in range(total % every or every, total + 1, every):
        look = images.copy()
        look[:, height * (before + drawn) // grid :] = GREY
        yield drawn, look
