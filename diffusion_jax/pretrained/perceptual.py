"""The networks inside an autoencoder's loss: LPIPS with the user's weights, and the patch discriminator of published checkpoints.

LPIPS comes in two files, w_k of the distance (vgg.pth of the lpips package, 'v0.1': lin0.model.1.weight ...) and VGG-16 of
torchvision (vgg16-397923af.pth: features.0.weight ... and a classifier that is not needed), or in one with the names of
taming-transformers (net.slice1.0.weight ..., lin0.model.1.weight). All number VGG's layers in one row.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.models.gan import Discriminator, Stats
from diffusion_jax.models.lpips import LAYERS, LPIPS, SMALLEST
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import CONV, SAME, Layout, Rule
from diffusion_jax.types import Array, Params

CHANNELS = Layout(lambda w: w.reshape(w.shape[1]), lambda w, shape: w.reshape(shape))
"""One number for each channel: (1, C, 1, 1) <-> (C)."""
IGNORED = ("scaling_layer.", "classifier.")
"""The constants of `models.lpips`, and a head that LPIPS does not use."""


def _vgg() -> list[Rule]:
    found, number = [], 0
    for k, layers in enumerate(LAYERS, 1):
        for i in range(layers):
            key, path = rf"(?:net\.slice{k}|features)\.{number}", f"vgg/stage_{k}_conv_{i}"
            found += [Rule(rf"{key}\.weight", f"{path}/kernel", CONV), Rule(rf"{key}\.bias", f"{path}/bias")]
            number += 2
        number += 1                                                              # the pool
        found.append(Rule(rf"lin{k - 1}\.model\.\d\.weight", f"w_{k}", CHANNELS))
    return found


LPIPS_RULES = _vgg()


def lpips(state_dict: Mapping[str, Array], model: LPIPS) -> Params:
    """The weights of a distance, one state dict with both VGG's and w_k, as parameters of `model`.

    Raises:
      ConfigError: they do not fit; the line says where.
    """
    x = jnp.zeros((1, SMALLEST, SMALLEST, 3))
    target = jax.eval_shape(model.init, jax.random.key(0), x, x)["params"]
    return rules.convert({k: w for k, w in state_dict.items() if not k.startswith(IGNORED)}, LPIPS_RULES, target)


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """LPIPS from the user's files as (config, params), for config.first_stage of an autoencoder's page.

    Args:
      path: the files, see the top of this file, with a comma between two.
      official: not needed.

    Raises:
      ConfigError: see `read`; the weights do not fit.
    """
    state_dict: dict[str, Any] = {}
    for part in str(path).split(","):
        state_dict |= read(part, "state_dict")
    model = LPIPS()
    page = dict(model=dict(name="diffusion_jax.models.lpips:LPIPS"), task=dict(name="diffusion_jax.tasks.autoencoder:Perceptual"))
    return page, {"model": lpips(state_dict, model)}


def discriminator_rules(model: Discriminator) -> list[Rule]:
    """The rules of the official names, which number all layers in one row."""
    found = []
    for i in range(model.depth + 2):
        number, path = (0 if i == 0 else 3 * i - 1), f"conv_{i}" if i <= model.depth else "final_conv"
        found += [Rule(rf"main\.{number}\.weight", f"{path}/kernel", CONV), Rule(rf"main\.{number}\.bias", f"{path}/bias")]
        if 0 < i <= model.depth:
            names = {"weight": ("scale", SAME), "bias": ("bias", SAME), "scale": ("scale", CHANNELS), "loc": ("loc", CHANNELS)}
            found += [Rule(rf"main\.{number + 1}\.{key}", f"norm_{i}/{name}", layout) for key, (name, layout) in names.items()]
    return found


def discriminator(state_dict: Mapping[str, Array], model: Discriminator) -> tuple[Params, Stats]:
    """An official state dict as the parameters of `model` and the statistics that its batch norms have seen.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    side = 2 ** (model.depth + 2)
    channels = state_dict["main.0.weight"].shape[1]
    target = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))["params"]
    trained = {k: w for k, w in state_dict.items() if k.rpartition(".")[2] in ("weight", "bias", "scale", "loc")}
    running = {f"norm_{i}": f"main.{3 * i}.running_" for i in range(1, model.depth + 1)} if model.norm == "batch" else {}
    stats = {name: {which: jnp.asarray(state_dict[key + which]) for which in ("mean", "var")} for name, key in running.items()}
    return rules.convert(trained, discriminator_rules(model), target), stats
