"""facebookresearch/DiT: its diffusion, which is also ADM's: tables, sampling loops, losses and training steps."""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from golden_case import Case
from golden_routines.replay import nchw, nhwc, record, replay, watched

from diffusion_jax.diffusion import guidance, process, samplers, scales, times
from diffusion_jax.diffusion import losses as objectives
from diffusion_jax.models.cond import Label
from diffusion_jax.models.dit import DiT
from diffusion_jax.pretrained import dit as pretrained
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train import ema
from diffusion_jax.train.optim import optimizer
from diffusion_jax.types import Array, Cond, Denoiser, Network, Params, Prediction

Found = dict[str, Any]
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "squaredcos", "cosine": "squaredcos"}
KEY = jax.random.key(0)
class Spaced:
    """create_diffusion's options as ours, and the steps that its respacing keeps.

    Attributes: process, scale, variance; t, s, above [S], the kept times ascending, the time below and above each.
    """

    def __init__(self, options: dict[str, Any]):
        steps = options.get("diffusion_steps", 1000)
        self.process = process.DDPM(SCHEDULES[options.get("noise_schedule", "linear")], steps)
        self.scale = scales.X0() if options.get("predict_xstart") else scales.Eps()
        fixed = "fixed_small" if options.get("sigma_small") else "fixed_large"
        self.variance = "learned_range" if options.get("learn_sigma", True) else fixed
        respacing = options.get("timestep_respacing") or ""
        self.t = times.space(respacing if isinstance(respacing, list) else str(respacing), steps)
        self.s, self.above = np.append(-1, self.t[:-1]), np.append(self.t[1:], steps)


def schedule(case: Case) -> Found:
    """The tables of each respacing, in float64."""
    found = {}
    with jax.enable_x64(True):
        for spec in case.config["timestep_respacing"]:
            d = Spaced(case.config | {"diffusion_steps": int(case.inputs["diffusion_steps"]), "timestep_respacing": spec})
            found |= {f"{spec.replace(',', '+') or 'full'}/{name}": value for name, value in tables(d).items()}
    return found


def tables(d: Spaced) -> dict[str, np.ndarray]:
    """The official tables of a respaced process, by their official names; one compilation for all respacings of it."""
    found = _tables(d.process, *(np.resize(a, d.process.steps) for a in (d.t, d.s, d.above)))
    return {name: np.asarray(value)[: len(d.t)] for name, value in found.items()}


@partial(jax.jit, static_argnums=0)
def _tables(p: process.DDPM, t: Array, s: Array, above: Array) -> dict[str, Array]:
    q, alpha, sigma = process.posterior(p, t, s), p.alpha(t), p.sigma(t)
    return dict(
        timestep_map=t.astype(jnp.int64), betas=q.large, alphas_cumprod=alpha**2, alphas_cumprod_prev=p.alpha(s) ** 2,
        alphas_cumprod_next=p.alpha(above) ** 2, sqrt_alphas_cumprod=alpha, sqrt_one_minus_alphas_cumprod=sigma,
        log_one_minus_alphas_cumprod=2 * jnp.log(sigma), sqrt_recip_alphas_cumprod=1 / alpha,
        sqrt_recipm1_alphas_cumprod=sigma / alpha, posterior_variance=q.small, posterior_mean_coef1=q.x0,
        posterior_log_variance_clipped=samplers.log_variance(p, "fixed_small", t, s, above, None), posterior_mean_coef2=q.xt,
    )


def q_sample(case: Case) -> Found:
    """The forward process, its posterior and the two conversions at given steps of a respaced process, in float64."""
    with jax.enable_x64(True):
        d, i = Spaced(case.config), case.inputs["t"]
        p, t, s, above = d.process, d.t[i], d.s[i], d.above[i]
        x0, eps = (jnp.asarray(nhwc(case.inputs[name]), jnp.float64) for name in ("x_start", "noise"))
        xt, q = process.noised(p, x0, t, eps), process.posterior(p, t, s)
        logvar = samplers.log_variance(p, "fixed_small", t, s, above, None)
        images = dict(
            x_t=xt, q_mean=process.noised(p, x0, t, 0 * eps), q_var=p.sigma(t) ** 2, q_logvar=2 * jnp.log(p.sigma(t)),
            post_mean=process.bcast(q.x0, x0) * x0 + process.bcast(q.xt, xt) * xt, post_var=q.small, post_logvar_clipped=logvar,
            eps_from_xstart=guidance.eps_of(p, x0, xt, t), xstart_from_eps=scales.to_x0(scales.Eps()(p, t), xt, eps),
        )
        found = {name: nchw(jnp.broadcast_to(process.bcast(value, x0), x0.shape)) for name, value in images.items()}
        return found | {"prior_bpd": np.asarray(objectives.BITS * objectives.prior_bound(p, x0, d.t[-1]))}


def load(case: Case) -> tuple[DiT, Label, Params]:
    """The network, its conditioner and their official weights."""
    model, cond = pretrained.config(case.config["model"])
    model, cond = DiT(**model), Label(**cond)
    return model, cond, pretrained.convert(case.weights, model, cond)


def guided(network: Network, w: Array | guidance.Schedule) -> Network:
    """The official guidance: three channels only, both halves of the result from the first half of x, [cond, null] rows."""
    def both(x: Array, label: Array, cond: dict[str, Array]) -> Array:
        half = jnp.split(x, 2)[0]
        c, n = jnp.split(network(jnp.concatenate([half, half]), label, cond), 2)
        g = guidance.mix_outputs(c, n, w(label[: len(half)]) if callable(w) else w, guidance.Mix(channels=3))
        return jnp.concatenate([g, jnp.concatenate([g[..., :3], n[..., 3:]], axis=-1)])

    return both


def sampled(d: Spaced, c: dict[str, Any], denoise: Denoiser, x: Array, draws: np.ndarray, cond: Cond) -> np.ndarray:
    """Every state of the loop that c['sampler'] and c['eta'] name, from x [B,C,H,W] with stored noise, [S,B,H,W,C]."""
    noise, grid = replay(nhwc(draws)), np.append(d.t[::-1], np.int32(-1))
    ddim, ddpm = samplers.ddim(d.process, c.get("eta") or 0.0, noise), samplers.ancestral(d.process, d.variance, noise)
    sampler = ddim if c["sampler"] == "ddim" else ddpm
    path = jax.jit(lambda x, cond: samplers.sample(denoise, sampler, x, grid, cond, KEY, keep=True))(nhwc(x), cond)
    jax.effects_barrier()
    return np.asarray(path)


def trajectory(case: Case) -> Found:
    """A sampling loop with the real network."""
    c, d, (model, cond, params) = case.config, Spaced(case.config["create_diffusion"]), load(case)
    outputs, calls = [], []
    bare = lambda x, label, cond: model.apply({"params": params["model"]}, x, label, cond)  # noqa: E731
    network = guided(bare, case.inputs["cfg_scale"]) if c["guided"] else bare

    def recorded(x: Array, label: Array, cond: dict[str, Array]) -> Array:
        out = network(x, label, cond)
        record(outputs, label, out)
        return out

    denoise = scales.denoiser(recorded, d.process, d.scale, d.variance == "learned_range")
    denoise = watched((guidance.Clip() if c["clip_denoised"] else guidance.chain())(denoise), calls)
    vec = cond.apply({"params": params["cond"]}, {"label": case.inputs["y"]})
    path = sampled(d, c, denoise, case.inputs["x_T"], case.inputs["noise"], vec)
    labels, outs = (np.stack(column) for column in zip(*outputs, strict=True))
    return dict(x=nchw(path), pred_xstart=nchw([x0 for _, _, x0 in calls]), t_model=labels.astype(np.int64), model_out=nchw(outs))


def task_of(case: Case, d: Spaced) -> tuple[Diffusion, Params]:
    """The training task and the official weights."""
    model, cond, params = load(case)
    objective = "hybrid" if d.variance == "learned_range" else "mse"
    rate = case.config["model"]["class_dropout_prob"]
    drop = {"label": rate} if rate else {}
    shape = nhwc(case.inputs["x_start"]).shape[-3:]
    return Diffusion(model, cond, d.process, d.scale, shape, variance=d.variance, objective=objective, drop=drop), params


def loss_kind(options: dict[str, Any]) -> str:
    """The official loss type that create_diffusion's options choose."""
    return "RESCALED_KL" if options.get("use_kl") else "RESCALED_MSE" if options.get("rescale_learned_sigmas") else "MSE"


def mse_and_bound(d: Spaced, found: Prediction, x0: Array, xt: Array, i: np.ndarray, both: bool = False) -> tuple[Array, Array]:
    """|F - F*|^2 and the bound in bits/dim, each [B], at the i-th kept steps; only with `both` does the bound teach x0."""
    p, t = d.process, d.t[i]
    mse = objectives.mean_flat((found.x0 - x0) ** 2) / d.scale(p, t).out ** 2
    if not both:
        found = replace(found, x0=jax.lax.stop_gradient(found.x0))
    return mse, objectives.BITS * objectives.bound(p, found, x0, xt, t, d.s[i], d.above[i], d.variance)


def loss_terms(d: Spaced, kind: str, mse: Array, bound: Array) -> dict[str, Array]:
    """The terms of an official loss type: MSE, RESCALED_MSE, KL or RESCALED_KL."""
    if "KL" in kind:
        return {"loss": bound * (len(d.t) if kind == "RESCALED_KL" else 1)}
    if not d.variance.startswith("learned"):
        return {"loss": mse, "mse": mse}
    bound = bound * (len(d.t) / 1000 if kind == "RESCALED_MSE" else 1)
    return {"loss": mse + bound, "mse": mse, "vb": bound}


def drop_draws(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The draws that labels are dropped by; where none were made, none is dropped."""
    return inputs.get("u", np.ones(inputs["y"].shape, np.float32))


def losses(case: Case) -> Found:
    """The terms of the loss and the gradient of its mean, label dropout from stored draws; t counts the respaced steps."""
    o, d, inputs = case.config["create_diffusion"], Spaced(case.config["create_diffusion"]), case.inputs
    task, params = task_of(case, d)
    i = inputs["t"]
    x0, eps, t = nhwc(inputs["x_start"]), nhwc(inputs["noise"]), d.t[i]
    xt = process.noised(d.process, x0, t, eps)
    kind = loss_kind(o)

    def mean(params: Params) -> tuple[Array, dict[str, Array]]:
        raw = task.dropped({"label": inputs["y"]}, {"label": drop_draws(inputs)})
        found = task.denoiser(params)(xt, t, task.embed(params, raw), KEY)
        found = loss_terms(d, kind, *mse_and_bound(d, found, x0, xt, i, "KL" in kind))
        return jnp.mean(found["loss"]), found

    grads, found = jax.jit(jax.grad(mean, has_aux=True))(params)
    return found | {f"grad/{key}": value for key, value in official(case, grads).items() if key != "pos_embed"}


def official(case: Case, params: Params) -> dict[str, np.ndarray]:
    """Parameters or their gradients under the official keys."""
    return pretrained.revert(jax.device_get(params), {key: w.shape for key, w in case.weights.items()})


def train_steps(case: Case) -> Found:
    """Loss, AdamW and EMA over some steps."""
    c, inputs = case.config, case.inputs
    task, params = task_of(case, Spaced({"learn_sigma": c["model"]["learn_sigma"]}))
    adam, profile = optimizer("adamw", c["lr"], weight_decay=c["weight_decay"], no_decay=()), ema.Constant(c["ema_decay"], False)

    @jax.jit
    def step(params: Params, average: Params, state: Any, number: Array, x0: Array, eps: Array, t: Array, y: Array, u: Array):
        def mean(params: Params) -> Array:
            batch = task.dropped({"image": x0, "label": y}, {"label": u})
            return jnp.mean(task.terms(params, batch, t, eps)["loss"])

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = adam.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, ema.update(average, params, profile, number), state, loss

    average, state, found = params, adam.init(params), []
    draws = zip(nhwc(inputs["x_start"]), nhwc(inputs["noise"]), inputs["t"], inputs["y"], drop_draws(inputs), strict=True)
    for number, draw in enumerate(draws, 1):
        params, average, state, loss = step(params, average, state, number, *draw)
        found.append(loss)
    out = {"losses": np.stack(found)}
    for name, tree in (("after", params), ("ema", average)):
        out |= {f"{name}/{key}": value for key, value in official(case, tree).items()}
    return out
