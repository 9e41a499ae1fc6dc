"""NVlabs/DiffiT: the network of latents and its parts, its guidance, and the block of image space. Official images are NCHW."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.dit_diffusion import Spaced, guided, sampled
from golden_routines.replay import nchw, nhwc, watched

from diffusion_jax.diffusion import guidance, scales
from diffusion_jax.models.cond import Label
from diffusion_jax.models.diffit import TMSA, Block, DiffiT, Final
from diffusion_jax.models.diffit_image import ResBlock
from diffusion_jax.nn.embed import sincos_2d
from diffusion_jax.pretrained import diffit as pretrained
from diffusion_jax.pretrained import rules
from diffusion_jax.types import Array, Cond, Network, Params

Found = dict[str, Any]
PARTS = [
    *pretrained.RULES,
    rules.Rule(r"norm\.weight", "model/norm/scale"), rules.Rule(r"norm\.bias", "model/norm/bias"),
    rules.Rule(r"conv\.weight", "model/conv/kernel", rules.CONV), rules.Rule(r"conv\.bias", "model/conv/bias"),
]


def load_diffit(case: Case, config: dict[str, Any]) -> tuple[DiffiT, Params, Callable[[np.ndarray], Cond]]:
    """The network of an official constructor's options, the case's weights, and labels -> what the network sees of them."""
    model, cond = pretrained.config(config)
    model, cond = DiffiT(**model), Label(**cond)
    params = pretrained.convert(case.weights, model, cond)
    return model, params["model"], lambda y: cond.apply({"params": params["cond"]}, {"label": y})


def filled(weights: dict[str, np.ndarray], prefix: str, target: Params) -> Params:
    """Parameters of the shapes `target` out of official weights whose keys lack `prefix`."""
    return rules.convert({prefix + key: w for key, w in weights.items()}, PARTS, {"model": target})["model"]


def shapes(part: nn.Module, *inputs: np.ndarray) -> Params:
    return jax.eval_shape(part.init, jax.random.key(0), *inputs)["params"]


def apply(part: nn.Module, params: Params, *inputs: np.ndarray) -> Array:
    return jax.jit(part.apply)({"params": params}, *inputs)


def tmsa(case: Case) -> Found:
    """TMSA over one window. Official options that ours lacks are folded into the weights: no bias, another scale of q."""
    c, weights, inputs = case.config, dict(case.weights), (case.inputs["x"], case.inputs["temb"])
    part, width = TMSA(c["num_heads"], c["window_size"]), c["dim"]
    factor = np.ones(3 * width, np.float32)
    factor[:width] = (c.get("qk_scale") or (width // c["num_heads"]) ** -0.5) * (width // c["num_heads"]) ** 0.5
    for layer in ("qkv", "qkv_temb"):
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * factor[:, None]
        weights[f"{layer}.bias"] = weights.get(f"{layer}.bias", np.zeros_like(factor)) * factor
    params = filled(weights, "blocks.0.attn.", {"blocks_0": {"attn": shapes(part, *inputs)}})
    return {"y": apply(part, params["blocks_0"]["attn"], *inputs)}


def block(case: Case) -> Found:
    """The transformer block."""
    c, inputs = case.config, (case.inputs["x"], case.inputs["c"])
    part = Block(c["num_heads"], c["window_size"], c["mlp_ratio"])
    return {"y": apply(part, filled(case.weights, "blocks.0.", {"blocks_0": shapes(part, *inputs)})["blocks_0"], *inputs)}


def final_layer(case: Case) -> Found:
    """The last layer."""
    part, x = Final(case.config["patch_size"] ** 2 * case.config["out_channels"]), case.inputs["x"]
    return {"y": apply(part, filled(case.weights, "final_layer.", {"final": shapes(part, x)})["final"], x)}


def image_resblock(case: Case) -> Found:
    """The residual block of image space."""
    c, inputs = case.config, (nhwc(case.inputs["x"]), case.inputs["c"])
    part = ResBlock(c["num_heads"], c["window_size"], c["mlp_ratio"], c["gn_groups"], c["gn_eps"])
    weights, target = {key.replace("block.", "blocks.0."): w for key, w in case.weights.items()}, shapes(part, *inputs)
    params = filled(weights, "", {"norm": target["norm"], "conv": target["conv"], "blocks_0": target["block"]})
    return {"y": nchw(apply(part, params | {"block": params.pop("blocks_0")}, *inputs))}


def scale_of(w: float, power: float, steps: int, size: int = 0) -> guidance.Schedule:
    """The official guidance scale at a timestep, for latents of `size` pixels: large ones are guided by a constant."""
    if size > pretrained.LATENT_256:
        return lambda t: jnp.float32(w)
    return guidance.power_cosine(jnp.float32(w), lambda t: t / steps, power)


def guidance_scale(case: Case) -> Found:
    """The scale over all timesteps."""
    calls, steps = case.config["calls"], case.config["diffusion_steps"]
    return {f"s_{i}": scale_of(c["cfg_scale"], c["scale_pow"], steps)(case.inputs["t"]) for i, c in enumerate(calls)}


def guided_as(network: Network, call: dict[str, Any], steps: int, size: int) -> Network:
    """The official guidance with the options `call`; with no scale there is none."""
    if call["cfg_scale"] is None:
        return network
    return guided(network, scale_of(call["cfg_scale"], call["scale_pow"], steps, size))


def model(case: Case) -> Found:
    """The network with its first stages, and guided."""
    c, inputs = case.config, case.inputs
    net, params, embed = load_diffit(case, c)
    shown = embed(inputs["y_label"])

    @jax.jit
    def stages(x: Array, t: Array, cond: Cond) -> tuple[Array, Array, Array]:
        out, seen = net.apply({"params": params}, x, t, cond, capture_intermediates=True)
        return out, *(seen["intermediates"][name]["__call__"][0] for name in ("patch", "time"))

    y, patches, time = stages(nhwc(inputs["x"]), inputs["t"], shown)
    found = {"c": time + shown["vec"], "tokens0": patches + sincos_2d(net.grid, net.grid, net.width)[None], "y": nchw(y)}
    calls = {f"cfg_{i}": call for i, call in enumerate(c["cfg_calls"])} | {"cfg_none": {"cfg_scale": None}}
    for name, call in calls.items():
        network = guided_as(lambda *inputs: stages(*inputs)[0], call, call.get("diffusion_steps", 1000), c["input_size"])
        found[name] = nchw(network(nhwc(inputs["cfg_x"]), inputs["cfg_t"], embed(inputs["cfg_y"])))
    return found


def loop(case: Case, network: Network, cond: Cond, annealed: guidance.Guidance = guidance.chain()) -> tuple[np.ndarray, Array]:
    """Every state and every x0 of the sampling loop of `network`, which sees the first half of x twice: [cond, null] rows."""
    c, calls = case.config, []
    d, eta = spaced(c), c["diffusion"].get("eta", c.get("eta"))
    network = guided_as(network, c, d.process.steps, c["model"]["input_size"])
    denoise = annealed(scales.denoiser(network, d.process, d.scale, d.variance == "learned_range"))
    clip = c["diffusion"].get("clip_denoised", c.get("clip_denoised"))
    denoise = watched((guidance.Clip() if clip else guidance.chain())(denoise), calls)
    sampler = {"sampler": "ddim" if c["diffusion"]["timestep_respacing"].startswith("ddim") else "ddpm", "eta": eta}
    noise = case.inputs.get("noise", np.zeros((len(d.t), *case.inputs["z"].shape), np.float32))
    path = sampled(d, sampler, denoise, case.inputs["z"], noise, cond)
    return nchw(path), nchw([x0 for _, _, x0 in calls])


def spaced(c: dict[str, Any]) -> Spaced:
    """The case's process; whether the variance is learned is told by its own options or by the network's."""
    return Spaced({"learn_sigma": c["model"]["learn_sigma"]} | c["diffusion"])


def trajectory(case: Case) -> Found:
    """A guided loop."""
    net, params, embed = load_diffit(case, case.config["model"])
    path, x0 = loop(case, lambda *inputs: net.apply({"params": params}, *inputs), embed(case.inputs["y_label"]))
    return {"samples": path, "pred_xstart": x0, "timestep_map": spaced(case.config).t.astype(np.int64)}
