"""What the command line can do; each mode is a file with `Options` and `run(options, workdir)`."""
from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

MODES = ("train", *sorted(
    module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("options", "train")
))
"""The files of this folder, the default first."""


def _of_page(name: str) -> Any:
    """What was in modes/config.py and is in runs/page.py now, where somebody asks for it."""
    return getattr(importlib.import_module("diffusion_jax.runs.page"), name)


# Pages written for release 0.1 say `from diffusion_jax.modes.config import tiny, variant`.
_config = ModuleType(f"{__name__}.config", "The name that runs/page.py had in release 0.1.")
_config.__getattr__ = _of_page
sys.modules[_config.__name__] = _config
