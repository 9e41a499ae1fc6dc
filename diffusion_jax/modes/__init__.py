"""What the command line can do; each mode is a file with `Options` and `run(options, workdir)`."""
from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

DEFAULT = "train"
"""The mode of a command line that names none."""
_FILES = sorted(module.name for module in pkgutil.iter_modules(__path__))
MODES = (DEFAULT, *(name for name in _FILES if name not in ("options", DEFAULT)))
"""The files of this folder, the default first."""
WITHOUT_FOLDER = ("page",)
"""Modes that neither read nor make a run's folder, and take no --workdir."""


def module_of(mode: str) -> Any:
    """The module of a mode, imported when it is asked for: each brings what it needs."""
    return importlib.import_module(f"{__name__}.{mode}")


def _of_page(name: str) -> Any:
    """What was in modes/config.py and is in runs/page.py now, where somebody asks for it."""
    return getattr(importlib.import_module("diffusion_jax.runs.page"), name)


# Pages written for release 0.1 say `from diffusion_jax.modes.config import tiny, variant`.
_config = ModuleType(f"{__name__}.config", "The name that runs/page.py had in release 0.1.")
_config.__getattr__ = _of_page
sys.modules[_config.__name__] = _config
