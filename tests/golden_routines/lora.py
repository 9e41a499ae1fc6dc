"""LoRA files in the layouts of Stable Diffusion 1, merged into its network and its text encoder."""
from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.replay import nchw, nhwc
from safetensors.numpy import save_file

from diffusion_jax.build import build
from diffusion_jax.models.text_cond import TowerText
from diffusion_jax.pretrained import clip, ldm_unet, lora
from diffusion_jax.types import Params

Found = dict[str, Any]
UNET, TEXT, FILE = "unet/", "text_encoder/", "lora/"


def part(weights: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """What lies under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def merge(case: Case) -> Found:
    """The merged weights under their official names, and both forwards with them."""
    model, _ = map(build, ldm_unet.diffusers_config(case.config["unet"]))
    unet, text = part(case.weights, UNET), part(case.weights, TEXT)
    tower = build(clip.towers(text, case.config["text_encoder"])["text"])
    params = {"model": ldm_unet.convert(unet, model)["model"], "cond": {"tower": clip.convert(text, tower)}}
    task = SimpleNamespace(model=model, cond=TowerText(tower))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lora.safetensors")
        save_file(part(case.weights, FILE), file)
        params = lora.merge(params, lora.read(file, task, params), case.config["scale"])
    official = {UNET: ldm_unet.revert(params | {"cond": {}}, {key: value.shape for key, value in unet.items()}, model)}
    official[TEXT] = clip.revert(params["cond"]["tower"], {key: value.shape for key, value in text.items()}, tower)
    found = {f"merged/{prefix}{key}": value for prefix, weights in official.items() for key, value in weights.items()}
    return found | forward(task, params, case)


def forward(task: Any, params: Params, case: Case) -> Found:
    """The text states, and the output of the network under them."""
    inputs = case.inputs

    @jax.jit
    def run(params: Params) -> Found:
        seen = task.cond.apply({"params": params["cond"]}, {"tokens": jnp.asarray(inputs["input_ids"], jnp.int32)})
        out = task.model.apply({"params": params["model"]}, nhwc(inputs["sample"]), inputs["timestep"], seen)
        return {"context": seen["seq"], "out": nchw(out)}

    return run(params)
