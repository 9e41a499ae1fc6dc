"""openai/guided-diffusion: the networks and their parts. Official images are NCHW, ours NHWC."""
from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.adm_diffusion import (  # noqa: F401
    bpd,
    clipped,
    ema,
    inversion_analytic,
    kept,
    likelihood,
    loss_aware_sampler,
    losses,
    noted,
    p_mean_variance,
    respacing,
    schedule,
    spaced,
    trajectory_analytic,
)
from golden_routines.dit_diffusion import loss_kind, sampled
from golden_routines.replay import nchw, nhwc, record

from diffusion_jax.build import build
from diffusion_jax.diffusion import guidance
from diffusion_jax.diffusion.scales import denoiser
from diffusion_jax.models.classifier import AttentionPool, Classifier
from diffusion_jax.models.unet import Attention, Backbone, ResBlock
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.resample import bilinear, double, halve
from diffusion_jax.pretrained import adm as pretrained
from diffusion_jax.pretrained import rules
from diffusion_jax.tasks.classifier import NoisyClassifier
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.types import Array, Cond, Params

Found = dict[str, Any]


def load_adm(case: Case, config: dict[str, Any], prefix: str = "") -> tuple[Backbone, nn.Module, Params]:
    """The modules of an official constructor's options, and the case's weights, of which only those under `prefix` are theirs."""
    model, cond = map(build, pretrained.config(config))
    weights = {key.removeprefix(prefix): value for key, value in case.weights.items() if key.startswith(prefix)}
    return model, cond, pretrained.convert(weights, model, cond, new_order(config))


def new_order(config: dict[str, Any]) -> bool:
    """The order of query, key and value in the official weights."""
    return config.get("use_new_attention_order", False)


def embed(cond: nn.Module, params: Params, inputs: dict[str, Array]) -> Cond:
    """What the network sees of a label and a low-resolution image, where there are any."""
    seen = cond.apply({"params": params["cond"]}, {"label": inputs["y"]}) if "y" in inputs else {}
    return seen | ({"cat": nhwc(inputs["low_res"])} if "low_res" in inputs else {})


def forward(case: Case) -> Found:
    """The output, and that of every stage by its official number."""
    model, cond, params = load_adm(case, case.config)

    @jax.jit
    def run(params: Params, inputs: dict[str, Array]) -> Found:
        args = nhwc(inputs["x"]), inputs["timesteps"], embed(cond, params, inputs)
        out, stages = model.apply({"params": params["model"]}, *args, capture_intermediates=True)
        found = {"out": nchw(out), "time_embed": stages["intermediates"]["time"]["__call__"][0]}
        for official, ours in pretrained.block_names(model).items():  # the last block of a number gives the stage's output
            if ours in stages["intermediates"]:
                last = stages["intermediates"][ours]["__call__"][0]
            elif model.resample == "pool" and ours.endswith("_resize"):                    # a function, and no module
                last = (halve if ours.startswith("down") else double)(last)
            else:
                continue
            found[official.rpartition(".")[0].replace(".", "_")] = nchw(last)
        return {name: found[name] for name in found if name in case.want}

    return run(params, case.inputs)


def forward_superres(case: Case) -> Found:
    """An upsampler, and what it makes of the low-resolution image."""
    size = case.inputs["x"].shape[2:]
    return forward(case) | {"upsampled": nchw(bilinear(nhwc(case.inputs["low_res"]), *size))}


def classifier(case: Case) -> Found:
    """Logits, and the gradient that guides."""
    model, _, params = load_adm(case, case.config)
    y = case.inputs["y"]

    def log_prob(x: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = model.apply({"params": params["model"]}, x, case.inputs["timesteps"])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]
        return chosen.sum(), (logits, chosen)

    grad, (logits, chosen) = jax.device_get(jax.jit(jax.grad(log_prob, has_aux=True))(nhwc(case.inputs["x"])))
    scaled = nchw(case.inputs["classifier_scale"] * grad)
    return {"logits": logits, "log_prob_y": chosen, "grad": scaled, "cross_entropy": -chosen}


def blocks(case: Case) -> Found:
    """Every module alone: outputs are named '<module>/<input>'."""
    c, emb = case.config, case.inputs["emb"]
    same, wide, heads, size = c["channels"], c["out_channels"], c["num_heads"], c["num_head_channels"]
    modules = {
        "res": ("mid_res_0", ResBlock(wide, scale_shift=False)), "res_ss": ("mid_res_0", ResBlock(wide)),
        "res_down": ("down_0_resize", ResBlock(same, "down")), "res_up": ("up_0_resize", ResBlock(same, "up")),
        "attn_legacy": ("mid_attn", Attention(heads)), "attn_new": ("mid_attn", Attention(same // size)),
        "down_conv": ("down_0_resize", Conv(wide, stride=2)), "up_conv": ("up_0_resize", Conv(wide)),
        "pool": ("pool_attn", AttentionPool(size, 5)),
    }

    def apply(name: str, x: Array) -> Array:
        if name in ("down_pool", "up_nearest"):
            return halve(x) if name == "down_pool" else double(x)
        place, module = modules[name]
        args = (double(x) if name == "up_conv" else x, emb)[: 1 + isinstance(module, ResBlock)]
        target = {"model": {place: jax.eval_shape(module.init, jax.random.key(0), *args)["params"]}}
        official = {key.replace(f"{name}/", "out.2." if name == "pool" else f"{place}."): w for key, w in case.weights.items()}
        official = {key: w for key, w in official.items() if "/" not in key}
        table = pretrained.table(Classifier(same, heads=heads), new_order=name != "attn_legacy")
        return module.apply({"params": rules.convert(official, table, target)["model"][place]}, *args)

    out = {}
    for name in case.want:
        module, x = name.split("/")
        y = np.asarray(jax.jit(apply, static_argnums=0)(module, nhwc(case.inputs[x])))
        out[name] = nchw(y) if y.ndim == 4 else y
    return out


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only; it is told by its options and by its size."""
    options = dict(case.doc["constructor_attributes"])
    if case.doc["class"] == "EncoderUNetModel":
        options |= {"use_scale_shift_norm": True, "resblock_updown": True}
    if case.doc["class"] == "SuperResModel":
        options["in_channels"] //= 2
    options = case.doc["flags"] | options
    found, order = {}, new_order(options)
    model, cond = map(build, pretrained.config(options))
    for file, official in case.doc["keys"].items():
        structs = {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in official.items()}
        told, told_cond, told_order = pretrained.published(structs)
        params = jax.eval_shape(partial(pretrained.convert, model=model, cond=cond, new_order=order), structs)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case.doc["num_parameters"]
        assert build(told | {"dropout": 0.0}) == model.clone(dropout=0.0) and build(told_cond) == cond and told_order == order
        back = jax.eval_shape(partial(pretrained.revert, shapes=official, model=model, new_order=order, cond=cond), params)
        found |= {f"{file}/{key}": leaf.shape for key, leaf in back.items()}
    return found


def train_grads(case: Case) -> Found:
    """The loss of every sample and its parts, and the gradient of its weighted mean."""
    model, cond, params = load_adm(case, case.config["unet"])
    o, inputs = case.config["create_gaussian_diffusion"], {name: jnp.asarray(a) for name, a in case.inputs.items()}
    d, kind, batch = spaced(o), loss_kind(o), {"image": nhwc(inputs["x_start"]), "label": inputs.get("y")}
    learned, steps = d.variance == "learned_range", len(d.t)
    task = Diffusion(
        model, cond, kept(d), d.scale, batch["image"].shape[1:], variance=d.variance,
        objective="kl" if kind == "RESCALED_KL" else "hybrid" if learned else "mse",
        bound_weight={"RESCALED_KL": steps, "RESCALED_MSE": steps / 1000, "MSE": 1}[kind],
    )

    def loss(params: Params) -> tuple[Array, dict[str, Array]]:
        terms = task.terms(params, batch, inputs["t"], nhwc(inputs["noise"]))
        return jnp.mean(terms["loss"] * inputs["weights"]), terms

    grads, terms = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    shapes = {key: value.shape for key, value in case.weights.items()}
    grads = {f"grad/{key}": g for key, g in pretrained.revert(grads, shapes, model, new_order(case.config["unet"])).items()}
    return {"vb": task.bound_weight * terms.get("bound", 0), "mse": terms["mse"], "loss": terms["loss"]} | grads


def trajectory_classifier(case: Case) -> Found:
    """A sampling loop with the real networks, one of which guides the other."""
    c, d, inputs, outputs, calls = case.config, spaced(case.config), case.inputs, [], []
    model, cond, params = load_adm(case, c["unet"], "unet/")
    guide, _, weights = load_adm(case, c["classifier"], "classifier/")
    task = NoisyClassifier(guide, d.process, (c["unet"]["image_size"],) * 2 + (c["unet"]["in_channels"],))

    def network(x: Array, label: Array, vec: Cond) -> Array:
        out = model.apply({"params": params["model"]}, x, label, vec)
        record(outputs, label, out)
        return out

    def log_prob(x: Array, t: Array, vec: Cond) -> Array:
        return task.log_prob(weights, x, t, jnp.asarray(inputs["y"]), d.process)

    denoise = denoiser(network, d.process, d.scale, d.variance == "learned_range")
    denoise = guidance.chain(guidance.Gradient(log_prob, inputs["classifier_scale"]), clipped(c))(denoise)
    path = sampled(d, c, noted(d, c, denoise, calls), inputs["x_T"], inputs["noise"], embed(cond, params, inputs))
    labels, outs = (np.stack(column) for column in zip(*outputs, strict=True))
    x0, grad = (np.stack(column) for column in zip(*calls, strict=True))
    found = {"x": path, "pred_xstart": x0, "model_out": outs, "cond_grad": grad}
    return {name: nchw(value) for name, value in found.items()} | {"t_model": labels.astype(np.int64)}
