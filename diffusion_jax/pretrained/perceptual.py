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
from diffusion_jax.pretrained import names, rules
from diffusion_jax.pretrained.package import WEIGHTS, Package
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import CONV, Layout, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

CHANNELS = Layout(lambda w: w.reshape(w.shape[1]), lambda w, shape: w.reshape(shape), lambda shape: (1, *shape))
"""One number for each channel: (1, C, 1, 1) <-> (C)."""
IGNORED = ("scaling_layer.", "classifier.")
"""The constants of `models.lpips`, and a head that LPIPS does not use."""


def _vgg() -> list[Rule]:
    """The rules of VGG's convolutions, numbered with all that stands between them, and of w_k."""
    table: list[Rule] = []
    number = 0
    for k, layers in enumerate(LAYERS, 1):
        for i in range(layers):
            key = rf"(?:net\.slice{k}|features)\.{number}"
            table += layer(key, f"vgg/stage_{k}_conv_{i}", CONV)
            number += 2                                            # and its ReLU
        number += 1                                                # the pool
        table.append(Rule(rf"lin{k - 1}\.model\.(?:1|0)\.weight", f"w_{k}", CHANNELS))
    return table


LPIPS_RULES = _vgg()


def lpips(state_dict: Mapping[str, Array], model: LPIPS) -> Params:
    """The weights of a distance, one state dict with both VGG's and w_k, as parameters of `model`.

    Raises:
      ConfigError: they do not fit; the line says where.
    """
    x = jnp.zeros((1, SMALLEST, SMALLEST, 3))
    target = shapes_of(model.init, jax.random.key(0), x, x)["params"]
    return rules.convert({k: w for k, w in state_dict.items() if not k.startswith(IGNORED)}, LPIPS_RULES, target)


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """Parameters as an official state dict of the given shapes, without what LPIPS does not use."""
    used = {key: shape for key, shape in shapes.items() if not key.startswith(IGNORED)}
    return rules.revert(params["model"], LPIPS_RULES, used)


CODE = """from safetensors.torch import load_file
from taming.modules.losses.lpips import LPIPS            # github.com/CompVis/taming-transformers
LPIPS().load_state_dict(load_file("FOLDER/model.safetensors"), strict=False)"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """LPIPS in one file, under the names of taming-transformers."""
    # w_k is a convolution over single pixels.
    keys = names.shapes(params["model"], LPIPS_RULES, {r"lin\d\..*": 4})
    return Package({WEIGHTS: rules.revert(params["model"], LPIPS_RULES, keys)}, "LPIPS", CODE)


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
    table: list[Rule] = []
    for i in range(model.depth + 2):
        number = max(3 * i - 1, 0)               # a norm and an activation follow, but for the first
        table += layer(rf"main\.{number}", f"conv_{i}" if i <= model.depth else "final_conv", CONV)
        if 0 < i <= model.depth:
            key = rf"main\.{number + 1}"
            table += norm(key, f"norm_{i}")      # a batch norm, or an ActNorm, which has these two:
            table += [Rule(rf"{key}\.{name}", f"norm_{i}/{name}", CHANNELS) for name in ("scale", "loc")]
    return table


def discriminator(state_dict: Mapping[str, Array], model: Discriminator) -> tuple[Params, Stats]:
    """An official state dict as the parameters of `model` and the statistics that its batch norms have seen.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    side = 2 ** (model.depth + 2)
    channels = state_dict["main.0.weight"].shape[1]
    target = shapes_of(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))["params"]
    trained = {k: w for k, w in state_dict.items() if k.rpartition(".")[2] in ("weight", "bias", "scale", "loc")}
    running = {f"norm_{i}": f"main.{3 * i}.running_" for i in range(1, model.depth + 1)} if model.norm == "batch" else {}
    stats = {name: {which: jnp.asarray(state_dict[key + which]) for which in ("mean", "var")} for name, key in running.items()}
    return rules.convert(trained, discriminator_rules(model), target), stats
