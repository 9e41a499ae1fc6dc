"""Sizes that Stable Diffusion XL is told of a picture (models/sdxl_text.py), as requests say them.

    original_size    height and width of the picture before it was resized: small ones look blurred
    crop             top and left of the crop: where the middle of the picture lies
    target_size      height and width of what is made

each as two whole numbers, (1024, 768) or '1024,768'. What is not said is as the model's page says.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import optional_keys
from diffusion_jax.pipelines.request import Pair, pair
from diffusion_jax.types import Raw


def conditions(task: Any, sizes: Mapping[str, Pair | None], num: int) -> Raw:
    """The raw conditions of sizes, float32 [num, 2] each.

    Args:
      task: the model's.
      sizes: by field; None for what is not said.
      num: how many pictures.

    Raises:
      ConfigError: the model is not told such sizes.
    """
    raw = {}
    for name, value in sizes.items():
        if value is None:
            continue
        if name not in optional_keys(task.cond):
            raise ConfigError(
                f"{name} (--{name}) is for models that were told the sizes of their pictures, as "
                "Stable Diffusion XL, and this one was not told it: leave it out"
            )
        raw[name] = np.tile(np.array(pair(name, value), np.float32), (num, 1))
    return raw
