"""The UNets of latent diffusion in both layouts, its text encoder, and the names of all published files."""
from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.replay import nchw, nhwc
from quickly import quick

from diffusion_jax.build import build
from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_blocks import waves
from diffusion_jax.pretrained import ldm_text, ldm_unet
from diffusion_jax.types import Params

Found = dict[str, Any]


def load_unet(weights: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[UNet, nn.Module, Params]:
    """The network of CompVis's or diffusers' options, its conditioner, and the case's weights."""
    read = ldm_unet.diffusers_config if "block_out_channels" in options else ldm_unet.config
    model, cond = map(build, read(options))
    return model, cond, ldm_unet.convert(weights, model, cond, options.get("use_new_attention_order", False))


def unet(case: Case) -> Found:
    """The output, and the sines and cosines."""
    model, cond, params = load_unet(case.weights, case.config["kwargs"])
    inputs = case.inputs
    seen = cond.apply({"params": params["cond"]}, {"label": jnp.asarray(inputs["y"])}) if "y" in inputs else {}
    seen |= {"seq": jnp.asarray(inputs["context"])} if "context" in inputs else {}
    out = quick(model.apply)({"params": params["model"]}, nhwc(inputs["x"]), inputs["timesteps"], seen)
    return {"out": nchw(out), "t_emb": waves(jnp.asarray(inputs["timesteps"]), model.width)}


def diffusers_unet(case: Case) -> Found:
    """The same network by its other names."""
    model, _, params = load_unet(case.weights, case.config["kwargs"])
    inputs = case.inputs
    args = nhwc(inputs["sample"]), inputs["timestep"], {"seq": inputs["encoder_hidden_states"]}
    return {"out": nchw(quick(model.apply)({"params": params["model"]}, *args))}


def bert_embedder(case: Case) -> Found:
    """The tokens' embeddings."""
    c = case.config
    model = TextEncoder(c["num_tokens"], c["max_seq_len"], c["dim"], c["depth"])
    params = ldm_text.convert_bert(case.weights, model)
    return {"embeddings": quick(model.apply)({"params": params}, case.inputs["tokens"])}
