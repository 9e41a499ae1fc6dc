"""The autoencoder of Stable Diffusion 3 as our KL: 16 channels, which are shifted too, and no maps between its halves.

Our `KL` has such maps, (3) of models/vae.py. Files without them get the identity, which leaves every number as it is, and lose it
again on the way back; a file that has them is read as it is.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.build import number
from diffusion_jax.models.vae import KL
from diffusion_jax.pretrained import vae
from diffusion_jax.pretrained.package import Spec
from diffusion_jax.pretrained.rules import Shape, Weights
from diffusion_jax.types import Array, Params

SCALE, SHIFT = 1.5305, 0.0609
"""Of the latents: x = (z - shift) scale."""
MAPS = {"quant_conv": 2, "post_quant_conv": 1}
"""Layer -> its channels over those of the latent: mean and log variance, and the latent."""
HERE = "vae/config.json"


def diffusers_config(options: Mapping[str, Any]) -> Spec:
    """What to `build` the autoencoder of a vae/config.json from.

    Raises:
      ConfigError: an option that has no counterpart here.
    """
    own = ("use_quant_conv", "use_post_quant_conv", "shift_factor")
    widths = options["block_out_channels"]
    # Of any widths: those of Stable Diffusion are multiples of the first, to which vae.py holds others.
    plain = {key: value for key, value in options.items() if key not in own} | {"block_out_channels": [widths[0]] * len(widths)}
    mults = tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths)
    return vae.diffusers_config(plain) | {"mults": mults}


def latents(options: Mapping[str, Any]) -> dict[str, float]:
    """scale and shift of the latents, as tasks/autoencoder.py has them, by a vae/config.json.

    Raises:
      ConfigError: no numbers.
    """
    factor, moved = (options.get(key) for key in ("scaling_factor", "shift_factor"))
    return {"scale": number(f"scaling_factor of {HERE}", SCALE if factor is None else factor),
            "shift": number(f"shift_factor of {HERE}", 0.0 if moved is None else moved)}


def published(state_dict: Mapping[str, Any]) -> Spec:
    """What to `build` the autoencoder of a state dict (of arrays or shapes) in CompVis's names from.

    Raises:
      ConfigError: it is none.
    """
    return vae.published(with_maps(state_dict))


def with_maps(state_dict: Weights) -> dict[str, Any]:
    """A state dict, of either layout, with the identity for the maps that it does not have."""
    whole = dict(state_dict)
    if "decoder.conv_in.weight" not in whole:                      # no autoencoder: whoever reads it says so
        return whole
    latent = whole["decoder.conv_in.weight"].shape[1]
    for name, times in MAPS.items():
        if f"{name}.weight" not in whole:
            whole[f"{name}.weight"] = np.eye(times * latent, dtype=np.float32)[:, :, None, None]
            whole[f"{name}.bias"] = np.zeros(times * latent, np.float32)
    return whole


def convert(state_dict: Weights, model: KL) -> Params:
    """An official state dict, of either layout, as our parameters.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    return vae.convert(with_maps(state_dict), model)


def revert(params: Params, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """Parameters (or gradients) as an official state dict of the given shapes, in either layout; maps that it lacks are left."""
    blank = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    whole = vae.revert(params, {key: value.shape for key, value in with_maps(blank).items()})
    return {key: whole[key] for key in shapes}


def has_maps(params: Params) -> bool:
    """Whether the maps between the halves do anything."""
    return not all(_is_identity(params[name]) for name in ("quant", "post_quant"))


def _is_identity(layer: Params) -> bool:
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    return np.array_equal(kernel, np.eye(len(kernel))) and not bias.any()
