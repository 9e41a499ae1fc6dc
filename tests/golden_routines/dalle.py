"""openai/DALL-E and DALLE-pytorch: the discrete VAEs. Official images are NCHW in [0, 1], ours NHWC in [-1, 1]."""
from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.dalle_tokens import ar_mindalle, ar_rudalle, attention_masks, token_sampling  # noqa: F401
from golden_routines.replay import nchw, nhwc

from diffusion_jax.models import dvae as model
from diffusion_jax.pretrained import dvae as pretrained
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.types import Array, Params

Found = dict[str, Any]
HALVES = ((0.5, 0.5, 0.5, 0.0), (0.5, 0.5, 0.5, 1.0))
"""Mean and deviation of DALLE-pytorch's images, by channel."""


def halves(weights: dict[str, Any], names: tuple[str, str]) -> list[dict[str, Any]]:
    """The weights under 'encoder/...' and 'decoder/...', or other names of the two."""
    return [{key.removeprefix(f"{name}/"): w for key, w in weights.items() if key.startswith(f"{name}/")} for name in names]


def dvae(case: Case) -> Found:
    """Both halves, hard and relaxed codes, and what stands around the networks."""
    encoder, decoder = halves(case.weights, pretrained.FILES)
    net = model.DVAE(**pretrained.options(encoder, decoder))
    params = pretrained.convert(encoder, decoder, net)
    unit = nhwc(case.inputs["image"])

    @jax.jit
    def run(params: Params) -> tuple[Array, ...]:
        logits = net.apply({"params": params}, 2 * unit - 1, method="encode")
        hard = jax.nn.one_hot(jnp.argmax(logits, -1), net.codes)
        soft = jax.nn.softmax(nhwc(jnp.asarray(case.inputs["code_logits"])))
        stats = [net.apply({"params": params}, z, method="decode") for z in (hard, soft)]
        return logits, *stats, *[(net.pixels(s) + 1) / 2 for s in stats]

    logits, hard, soft, image, soft_image = jax.device_get(run(params))
    return dict(
        mapped=nchw(model.map_pixels(unit)), logits=nchw(logits), indices=np.argmax(logits, -1).astype(np.int64),
        decoder_stats=nchw(hard), decoder_stats_soft=nchw(soft), reconstruction=nchw(image), unmapped_soft=nchw(soft_image),
    )


def dvae_training(case: Case) -> Found:
    """The loss of DALLE-pytorch with stored Gumbel noise, and all its gradients; it sums the divergence over the batch too."""
    defaults = {"temperature": 0.9, "straight_through": False, "kl_div_loss_weight": 0.0, "smooth_l1_loss": False}
    o = defaults | case.config["kwargs"]
    net = pretrained.codebook_model(o)
    params = {"model": pretrained.convert_codebook(case.weights, net)}
    moments = o.get("normalization", HALVES) or ((0.0,) * 4, (1.0,) * 4)
    mean, std = (np.float32(part)[: net.channels] for part in moments)
    x = jnp.asarray((nhwc(case.inputs["image"]) - mean) / std)
    rec = "smooth_l1" if o["smooth_l1_loss"] else "l2"
    task = DiscreteVAE(net, x.shape[1:], rec, straight_through=o["straight_through"], reinmax=o.get("reinmax", False))
    gumbel = -jnp.log(nhwc(jnp.asarray(case.inputs["exponential"])))
    tau = case.config["run"].get("temp") or o["temperature"]

    @jax.jit
    def run(params: Params) -> tuple:
        def loss(params: Params) -> tuple[Array, Array]:
            logits = task.logits(params, x)
            z = task.relaxed(logits, gumbel, tau)
            return task.terms(params, x, logits, z, o["kl_div_loss_weight"] * x.size)["loss"], (logits, z)

        (value, (logits, z)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        codes, recon = task.encode(params, x), task.model.apply({"params": params["model"]}, z, method="decode")
        return value, logits, recon, codes, task.decode(params, codes), grads

    value, logits, recon, codes, decoded, grads = jax.device_get(run(params))
    official = pretrained.revert_codebook(grads["model"], net, {key: w.shape for key, w in case.weights.items()})
    found = dict(loss=value, logits=nchw(logits), recon=nchw(recon), indices=codes.astype(np.int64), decoded=nchw(decoded))
    last = max((key for key in official if re.fullmatch(r"encoder\.\d+\.weight", key)), key=lambda key: int(key.split(".")[1]))
    return found | {f"grad/{key}": w for key, w in (official | {"encoder.last.weight": official[last]}).items()}


def keys(case: Case) -> Found:
    """The published state dicts onto our parameters and back, on shapes only, from which the options are read."""
    structs = {file: {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in part.items()}
               for file, part in case.doc["keys"].items()}
    parts = [structs[f"{half}.pkl"] for half in pretrained.FILES]
    net = model.DVAE(**pretrained.options(*parts))
    params = jax.eval_shape(partial(pretrained.convert, model=net), *parts)
    shapes = {f"{half}/{key}": s.shape for half, part in zip(pretrained.FILES, parts, strict=True) for key, s in part.items()}
    back = jax.eval_shape(partial(pretrained.revert, wanted=shapes), params)
    counts = {group["elements"] for group in case.doc["groups"].values()}
    assert {sum(leaf.size for leaf in jax.tree.leaves(params[half])) for half in pretrained.FILES} == counts
    return {f"{key.replace('/', '.pkl/', 1)}": leaf.shape for key, leaf in back.items()}
