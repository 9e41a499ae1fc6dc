"""ru-DALL-E, minDALL-E and DALLE-pytorch: masks, transformers and the choice of tokens."""
from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case

from diffusion_jax.models.dalle import DALLE
from diffusion_jax.nn import tokens
from diffusion_jax.nn.sparse_attention import Pattern, mask
from diffusion_jax.pipelines.dalle import Draw, draw
from diffusion_jax.pretrained import dalle as pretrained
from diffusion_jax.tasks.autoregressive import Autoregressive
from diffusion_jax.types import Array, Params

Found = dict[str, Any]
KINDS = {"row": "row", "col": "column", "lucid_axial_row_static": "axial_row", "lucid_axial_col_static": "axial_column"}


def attention_masks(case: Case) -> Found:
    """Every mask; those of DALLE-pytorch leave the last token out."""
    found = {}
    for text, grid, kernel in case.config["cases"]:
        place = f"text{text}_grid{grid}/"
        for version in ("v2", "v3"):
            found[f"{place}conv{kernel}_{version}"] = mask(Pattern("conv", text, grid, kernel, wrap=version == "v2"))
        for name, kind in KINDS.items():
            seen = mask(Pattern(kind, text, grid))
            found[place + name] = seen[:-1, :-1] if "static" in name else seen
    return found


def ar_rudalle(case: Case) -> Found:
    """All logits, the losses, and the masks of the layers."""
    o = {"loss_img_weight": 7, "hf_version": "v3"} | case.config["kwargs"]
    net = DALLE(**pretrained.options(case.weights, o))
    params = {"model": pretrained.convert(case.weights, net)}
    task = Autoregressive(net, image_weight=o["loss_img_weight"], first_as_text=net.start is None)
    text, codes = np.split(np.asarray(case.inputs["input_ids"], np.int32), [net.text_length], axis=1)

    @jax.jit
    def run(params: Params) -> tuple[Array, dict[str, Array]]:
        h = net.apply({"params": params["model"]}, text, codes, method="hidden")
        return net.apply({"params": params["model"]}, h, method="logits"), task.terms(params, text, codes)

    logits, terms = jax.device_get(run(params))
    loss, loss_text, loss_img = (np.float32(terms[name].mean()) for name in ("loss", "text", "image"))
    return dict(logits=logits, loss=loss, loss_text=loss_text, loss_img=loss_img,
                layer_masks=np.stack([mask(pattern)[: net.length, : net.length] for pattern in net.patterns]))


def ar_mindalle(case: Case) -> Found:
    """Logits of both heads, and generation of the most likely tokens with the cache."""
    net = DALLE(**pretrained.options(case.weights, case.config["hparams"]))
    params = {"model": pretrained.convert(case.weights, net)}
    text, codes = (jnp.asarray(case.inputs[name], jnp.int32) for name in ("texts", "images"))

    @jax.jit
    def run(params: Params) -> tuple[Array, ...]:
        both = net.apply({"params": params["model"]}, text, codes)
        return *both, draw(net, Draw(top_k=1), params, text, codes[:, :0], jnp.arange(len(text)), jax.random.key(0))

    logits_txt, logits_img, greedy = jax.device_get(run(params))
    return dict(logits_img=logits_img, logits_txt=logits_txt, greedy_codes=greedy.astype(np.int64))


def token_sampling(case: Case) -> Found:
    """One choice of tokens under every option that an output is named after."""
    logits, found = jnp.asarray(case.inputs["logits"]), {}
    gumbel = -jnp.log(-jnp.log(jnp.asarray(case.inputs["uniform"])))
    for name in case.want:
        o = {key: float(value) for key, value in re.findall(r"(thres|T|_k|_p)(\d[\d.]*)", name)}
        k = max(int((1 - o["thres"]) * logits.shape[-1]), 1) if "thres" in o else int(o.get("_k", 0))
        cut = tokens.top_k(logits, k)
        if name.startswith("lucid_top_k"):
            found[name] = jnp.isfinite(cut)
        elif name.startswith("lucid_gumbel"):
            found[name] = np.asarray(tokens.choose(cut / o["T"], gumbel), np.int64)
        else:
            found[name] = jax.nn.softmax(tokens.filtered(logits, o["T"], k, o.get("_p", 0.0)))
    return found


