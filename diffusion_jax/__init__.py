"""Train, restore, sample, edit and measure every step of the text-to-image lineage, in JAX.

    import diffusion_jax as dj
    pipe = dj.pipeline("runs/digits")
    pipe.using(guidance=2.0)(3, num=4, seed=0).save("threes.png")
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from diffusion_jax.build import ConfigError as ConfigError
    from diffusion_jax.pipelines.pipeline import pipeline as pipeline
    from diffusion_jax.pipelines.replay import read_request as read_request
    from diffusion_jax.pipelines.request import Request as Request
    from diffusion_jax.runs.folder import open_run as open_run

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "build",
    "Request": "pipelines.request",
    "open_run": "runs.folder",
    "pipeline": "pipelines.pipeline",
    "read_request": "pipelines.replay",
}
"""Where each name of the front door lives: imported when it is first used, so that the import
itself takes no time."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
