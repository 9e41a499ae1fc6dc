"""What the conditioners of Stable Diffusion XL and 3 share: a text through two CLIPs, tokens side by side.

A row of tokens is [those of the smaller CLIP | those of the larger one], `context` each: start, words, end, and what
fills up, which is the end for the smaller one and 0 for the larger one.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextTower
from diffusion_jax.types import Raw


def check_skip(towers: Sequence[TextTower], skip: int) -> None:
    """Refuses to leave out as many layers as a tower has, the last one aside.

    Raises:
      ConfigError: says how many there are.
    """
    least = min(tower.layers for tower in towers)
    if not 0 <= skip < least:
        raise ConfigError(f"clip_skip leaves out 0 ... {least - 1} of the {least} layers of a CLIP, "
                          f"got {skip}")


def empty_rows(tower: TextTower, context: int) -> tuple[np.ndarray, np.ndarray]:
    """The empty text for the smaller and the larger CLIP, int32 [context] each, by a tower's vocabulary."""
    start, end = tower.vocab - 2, tower.vocab - 1
    small, large = np.full(context, end, np.int32), np.zeros(context, np.int32)
    small[0] = large[0] = start
    large[1] = end
    return small, large


def check_tokens(raw: Raw, length: int, parts: str) -> None:
    """Refuses what is no batch of rows of so many tokens.

    Args:
      raw: with 'tokens'.
      length: of a row.
      parts: what a row is made of, for the error.

    Raises:
      ConfigError: says what it is.
    """
    tokens = np.asarray(raw["tokens"])
    if tokens.ndim != 2 or tokens.dtype.kind != "i" or tokens.shape[1] != length:
        raise ConfigError(f"texts are tokens [B, {length}] int, {parts}, not {tokens.dtype} {tokens.shape}")
