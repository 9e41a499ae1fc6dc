"""A folder of diffusers or transformers: a config.json beside one file of weights."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion_jax.build import ConfigError
from diffusion_jax.pretrained.reader import read

WEIGHTS = tuple(f"{stem}{suffix}" for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
                for suffix in (".safetensors", ".bin"))


def options(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON of a part of a folder.

    Raises:
      ConfigError: it is not there, or does not read.
    """
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / name} does not read as JSON: {error}") from None


def weights(folder: Path) -> dict[str, Any]:
    """The weights of a part of a folder.

    Raises:
      ConfigError: there are none under any of the names, or see `read`.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"{folder} holds no weights; they are called {', '.join(WEIGHTS)}")
    return read(file)
