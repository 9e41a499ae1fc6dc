"""lucidrains' Gaussian diffusion: beta schedules, both sampling loops, guidance with rescaling, the weighted losses; and the
attention of linear cost of its UNet and of its source, cmsflash's efficient attention."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_routines.replay import nchw, nhwc, record, replay

from diffusion_jax.diffusion import guidance, losses, process, samplers, scales
from diffusion_jax.nn.linear_attention import linear_attention as attend
from diffusion_jax.nn.linear_attention import scaled_linear_attention
from diffusion_jax.types import Array, Guidance

SCHEDULES = {"linear": "linear", "cosine": "squaredcos", "sigmoid": "sigmoid"}
OBJECTIVES = {"pred_noise": scales.Eps(), "pred_x0": scales.X0(), "pred_v": scales.V()}
KEY = jax.random.key(0)


def schedule(case) -> dict[str, Any]:
    """The three tables of betas."""
    return {f"{name}_{n}": process.SCHEDULES[ours](n) for name, ours in SCHEDULES.items() for n in case.config["timesteps"]}


def rescaled_phi(case) -> dict[str, Any]:
    """Guidance as a function of two outputs, and the split of their difference that it may drop."""
    c, n = jnp.asarray(nhwc(case.inputs["cond"])), jnp.asarray(nhwc(case.inputs["null"]))
    found = {}
    for i, call in enumerate(case.config["calls"]):
        mix = guidance.Mix(
            call["rescaled_phi"], remove_parallel=call["remove_parallel_component"], keep_parallel=call["keep_parallel_frac"]
        )
        found[f"g_{i}"] = nchw(guidance.mix_outputs(c, n, call["cond_scale"], mix))
    parallel = guidance.parallel_part(c - n, c)
    return found | {"parallel": nchw(parallel), "orthogonal": nchw(c - n - parallel)}


def network(case, tape: list) -> Callable:
    """M x + t / T b + vec. Records the inputs."""
    weights, steps = case.inputs, case.config["timesteps"]

    def net(x, label, cond):
        record(tape, x)
        vec = cond["vec"] if cond else jnp.zeros((len(x), 1))
        return x @ weights["M"].T + (label / steps)[:, None, None, None] * weights["b"][None, None, None] + vec[:, None, None]

    return net


def clip_null(p: process.DDPM) -> Guidance:
    """CFG++ of x0 and v networks here takes eps from the null x0 after clipping it."""
    def guide(denoise):
        def guided(x, t, cond, key):
            prediction = denoise(x, t, cond, key)
            null = (x - p.sigma(t) * prediction.eps) / p.alpha(t)
            return replace(prediction, eps=guidance.eps_of(p, jnp.clip(null, -1, 1), x, t))

        return guided

    return guide


def loop(case, guide: Guidance, cond: dict) -> tuple[np.ndarray, np.ndarray]:
    """(the input of every network call, every state after it): the ancestral loop, or DDIM where fewer steps are asked for."""
    c, p, seen = case.config, ddpm(case), []
    noise, steps = replay(nhwc(case.inputs["noise"])), c["sampling_timesteps"] or c["timesteps"]
    few = steps < c["timesteps"]
    times = np.linspace(-1, c["timesteps"] - 1, steps + 1, dtype=np.float32).astype(np.int32)[::-1]
    sampler = samplers.ddim(p, c["ddim_sampling_eta"], noise) if few else samplers.ancestral(p, "fixed_small", noise)
    denoise = guide(scales.denoiser(network(case, seen), p, OBJECTIVES[c["objective"]]))
    path = samplers.sample(denoise, sampler, nhwc(case.inputs["xT"]), times, cond, KEY, keep=True)
    jax.effects_barrier()
    return np.stack([x for x, in seen]), np.asarray(path)


def ddpm(case) -> process.DDPM:
    return process.DDPM(SCHEDULES[case.config["beta_schedule"]], case.config["timesteps"])


def training(case, cond: dict) -> dict[str, Any]:
    """q_sample, the posterior and the weighted loss of given draws."""
    c, p, scale = case.config, ddpm(case), OBJECTIVES[case.config["objective"]]
    weigh = losses.MinSNR(c.get("min_snr_gamma", 5.0) if c.get("min_snr_loss_weight") else np.inf)
    x0, eps, t = nhwc(case.inputs["x0"]), nhwc(case.inputs["eps"]), case.inputs["t"]
    xt, every = process.noised(p, x0, t, eps), np.arange(p.steps)
    s = scale(p, t)
    out = network(case, [])(process.bcast(s.in_, xt) * xt, s.noise, cond)
    loss = losses.mean_flat((out - scales.target(p, scale, x0, xt, t)) ** 2) * weigh(p, t, s)
    q = process.posterior(p, t, t - 1)
    return dict(
        q_sample=nchw(xt), p_losses=loss, post_mean=nchw(process.bcast(q.x0, x0) * x0 + process.bcast(q.xt, xt) * xt),
        post_logvar=process.bcast(jnp.log(jnp.maximum(q.small, 1e-20)), xt), alphas_cumprod=p.alpha_bar[1:-1],
        loss_weight=weigh(p, every, scale(p, every)),
    )


def diffusion(case) -> dict[str, Any]:
    """Unconditional: eps follows from the clipped x0."""
    seen, path = loop(case, guidance.Clip(), {})
    states = np.moveaxis(np.concatenate([seen[:1], path]), 0, 1)
    return training(case, {}) | {"all": nchw((states + 1) / 2)}


def diffusion_cfg(case) -> dict[str, Any]:
    """Guided without the parallel part: an eps network keeps its eps next to a clipped x0, the others do not."""
    c, p, scale = case.config, ddpm(case), OBJECTIVES[case.config["objective"]]
    cond = {"vec": case.inputs["emb"][case.inputs["classes"]]}
    null, plus_plus = {"vec": np.zeros_like(cond["vec"])}, c.get("use_cfg_plus_plus", False)
    mix = guidance.Mix(c["rescaled_phi"], (p, scale), remove_parallel=True, plus_plus=plus_plus)
    eps_network = c["objective"] == "pred_noise"
    after = [clip_null(p)] if plus_plus and not eps_network else []
    guide = guidance.chain(guidance.Clip(keep_eps=p if eps_network else None), *after, guidance.CFG(c["cond_scale"], null, mix))
    seen, path = loop(case, guide, cond)
    half = seen.shape[1] // 2
    return training(case, cond) | {"states": nchw(seen[:, :half]), "final": nchw((path[-1] + 1) / 2)}


def project(case, name: str, x: Array) -> Array:
    """A convolution over single pixels by its official name: [B, H, W, C] -> [B, H, W, D]."""
    weights = case.weights
    return x @ weights[f"{name}.weight"][:, :, 0, 0].T + weights.get(f"{name}.bias", np.zeros(1, np.float32))[None, None, None]


def split_heads(x: Array, heads: int) -> Array:
    """[B, H, W, heads * D] -> [B, heads, H * W, D]."""
    return jnp.swapaxes(x.reshape(len(x), -1, heads, x.shape[-1] // heads), 1, 2)


def linear_attention(case) -> dict[str, Any]:
    """The UNet's own, with the root mean square norm behind it: gain sqrt(C) y / |y|."""
    x, weights = jnp.asarray(nhwc(case.inputs["x"])), case.weights
    q, k, v = (split_heads(part, case.config["heads"]) for part in jnp.split(project(case, "to_qkv", x), 3, axis=-1))
    out = jnp.swapaxes(scaled_linear_attention(q, k, v), 1, 2).reshape(*x.shape[:3], -1)
    y = project(case, "to_out.0", out)
    return {"y": nchw(nhwc(weights["to_out.1.g"]) * y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True)))}


def efficient_attention(case) -> dict[str, Any]:
    """The residual block of 1812.01243."""
    x = jnp.asarray(nhwc(case.inputs["x"]))
    q, k, v = (split_heads(project(case, name, x), case.config["head_count"]) for name in ("queries", "keys", "values"))
    out = jnp.swapaxes(attend(q, k, v), 1, 2).reshape(*x.shape[:3], -1)
    return {"y": nchw(x + project(case, "reprojection", out))}
