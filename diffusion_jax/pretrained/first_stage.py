"""Published autoencoders by themselves, the first stages of models of latents: system vae.

Three families are read, in CompVis's layout and in that of diffusers, as one file or as a folder. Where
nothing is said of the latents,

    latent diffusion             KL and VQ of any factor: they are as they come
    Stable Diffusion 1, 2, XL    KL of 4 channels: scaled by 0.18215
    Stable Diffusion 3, FLUX     KL without maps between its halves, of 16 channels: shifted by 0.0609 and
                                 scaled by 1.5305, which is of version 3

A folder says what its latents are scaled and shifted by. A single file of XL or FLUX does not: --official has to.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.build import build, number
from diffusion_jax.pretrained import folder, sd, sd3_vae, vae
from diffusion_jax.pretrained.package import Spec
from diffusion_jax.pretrained.reader import read
from diffusion_jax.pretrained.rules import Shape
from diffusion_jax.types import Array, Params


def load(path: str | Path, official: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Params]:
    """A published first stage as (config, params): sd-vae-ft-mse for example.

    Args:
      path: a file of either layout, see `reader.read`, or a folder of diffusers; of a whole model's file the
        first stage.
      official: scaling_factor and shift_factor of the latents, in place of the file's.

    Returns:
      The sections model and task of a page, and {'model': the parameters}.

    Raises:
      ConfigError: see `read`, `vae.published` and `vae.convert`.
    """
    options = dict(official or {})
    if Path(path).is_dir():
        options = folder.options(Path(path)) | options
        weights = folder.weights(Path(path))
    else:
        weights = read(path, "state_dict")
    weights = vae.compvis(sd.part(weights, vae.FIRST) or weights)
    is_described = "block_out_channels" in options
    spec = sd3_vae.diffusers_config(options) if is_described else sd3_vae.published(weights)
    task = dict(
        name="diffusion_jax.tasks.autoencoder:Autoencoder",
        shape=(256, 256, spec["channels"]),
        **latents(spec, weights, options),
    )
    return dict(model=spec, task=task), {"model": sd3_vae.convert(weights, build(spec))}


def latents(spec: Spec, weights: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, float]:
    """The scale of the latents, and their shift where they have one, as tasks/autoencoder.py has them.

    Args:
      spec: of the network.
      weights: as they are in the file.
      options: what is said of it.

    Raises:
      ConfigError: no numbers.
    """
    is_kl = spec["name"] == vae.KL
    without_maps = is_kl and "quant_conv.weight" not in weights
    scale = sd3_vae.SCALE if without_maps else vae.SCALE if is_kl and spec["latent"] == 4 else 1.0
    # A config.json says all that there is; a file says nothing.
    shift = sd3_vae.SHIFT if without_maps and "block_out_channels" not in options else 0.0
    factors = {"scale": options.get("scaling_factor", scale), "shift": options.get("shift_factor") or shift}
    numbers = {name: number(f"{name} of the latents", value) for name, value in factors.items()}
    return numbers if numbers["shift"] else {"scale": numbers["scale"]}


def export(page: Mapping[str, Any], params: Params, shapes: Mapping[str, Shape]) -> dict[str, Array]:
    """A run's parameters as an official state dict of the given shapes; the inverse of `load`."""
    return sd3_vae.revert(params["model"], shapes)
