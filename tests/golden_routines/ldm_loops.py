"""Losses and sampling loops of latent diffusion, end to end, and those of diffusers with its UNet."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines import samplers as diffusers
from golden_routines import scheduler_grids as grids
from golden_routines.ldm_diffusion import ddim_tables, ddim_times, of_options, tables
from golden_routines.ldm_network import first_stage_of, load_unet
from golden_routines.replay import nchw, nhwc, replay, watched

from diffusion_jax.build import build
from diffusion_jax.diffusion import guidance, losses, multistep, samplers, scales
from diffusion_jax.diffusion.process import noised
from diffusion_jax.pretrained import ldm_unet, sd, vae
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.types import Array, Cond, Denoiser, Network, Params

Found = dict[str, Any]
KEY = jax.random.key(0)
DIFFERENCE = {"l1": jnp.abs, "l2": jnp.square}


def network_of(case: Case) -> tuple[Any, Any, Params]:
    """The UNet, its conditioner and its weights."""
    return load_unet(sd.part(case.weights, sd.UNET), case.config["unet"])


def latent_diffusion_loss(case: Case) -> Found:
    """The loss with a weight for each time, the bound's terms, and gradients."""
    c, o, inputs = case.config, case.config["ldm"], case.inputs
    model, cond, params = network_of(case)
    p, t, target = of_options(o), jnp.asarray(inputs["t"]), o.get("parameterization", "eps")
    scale = scales.Eps() if target == "eps" else scales.X0()
    x0, eps = (jnp.asarray(nhwc(inputs[name])) for name in ("x_start", "noise"))
    xt = noised(p, x0, t, eps)
    lvlb = jnp.asarray(tables(p, o.get("v_posterior", 0.0), target)["lvlb_weights"], jnp.float32)
    logvar = jnp.asarray(case.weights.get("logvar", np.full(p.steps, o.get("logvar_init", 0.0), np.float32)))

    def seen(params: Params) -> Cond:
        kind, given = o["conditioning_key"], jnp.asarray(inputs["cond"])
        if kind == "adm":
            return cond.apply({"params": params["cond"]}, {"label": given})
        return {"cat": nhwc(given)} if kind == "concat" else {"seq": given}

    def loss(params: Params, logvar: Array) -> tuple[Array, tuple[Array, Array]]:
        out = model.apply({"params": params["model"]}, xt, scale(p, t).noise, seen(params))
        simple = losses.mean_flat(DIFFERENCE[o.get("loss_type", "l2")](out - scales.target(p, scale, x0, xt, t)))
        vlb = jnp.mean(lvlb[t] * simple)
        total = o.get("l_simple_weight", 1.0) * jnp.mean(simple / jnp.exp(logvar[t]) + logvar[t])
        return total + o.get("original_elbo_weight", 0.0) * vlb, (jnp.mean(simple), vlb)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, (simple, vlb)), (grads, by_logvar) = jax.device_get(both(params, logvar))
    shapes = {key: w.shape for key, w in sd.part(case.weights, sd.UNET).items()}
    back = ldm_unet.revert(grads, shapes, model, cond, c["unet"].get("use_new_attention_order", False))
    found = {f"grad/{sd.UNET}{key}": value for key, value in back.items()} | {"grad/logvar": by_logvar}
    return found | {"x_noisy": nchw(xt), "loss": total, "loss_simple": simple, "loss_vlb": vlb}


def guided(case: Case, denoise: Denoiser) -> tuple[Denoiser, Cond]:
    """Guidance as the case has it, and what the network sees."""
    inputs, w = case.inputs, case.config["run"].get("scale", 1.0)
    cond = {"seq": jnp.asarray(inputs["cond"])}
    if w == 1.0 or "uncond" not in inputs:
        return denoise, cond
    return guidance.CFG(w, {"seq": jnp.asarray(inputs["uncond"])})(denoise), cond


def network(model: Any, params: Params) -> Network:
    return lambda x, label, cond: model.apply({"params": params["model"]}, x, label, cond)


def latent_diffusion_trajectory(case: Case) -> Found:
    """A whole loop: from noise or from an image's latent, with or without a known region, to the decoded image."""
    c, run, inputs, calls = case.config, case.config["run"], case.inputs, []
    model, _, params = network_of(case)
    p, scale = of_options(c["ldm"]), scales.X0() if c["ldm"].get("parameterization") == "x0" else scales.Eps()
    first, first_params = first_stage(case)
    t, eta = ddim_times("uniform", run["S"], p.steps), run.get("eta", 0.0)
    found: Found = {"ddim_timesteps": t.astype(np.int64)}
    found |= dict(zip(("ddim_sigmas", "ddim_alphas", "ddim_alphas_prev"), ddim_tables(p, t, eta), strict=True))
    found["ddim_alphas"] = np.float32(found["ddim_alphas"])
    times, noise = np.append(0, t)[::-1].astype(np.int32), iter(nhwc(inputs.get("noise", np.zeros((0, 1, 1, 1, 1)))))
    denoise = scales.denoiser(network(model, params), p, scale)
    denoise, cond = guided(case, denoise)
    if run["mode"] == "img2img":
        encode = jax.jit(lambda image, noise: first.scaled(first.posterior(first_params, image).sample(noise)))
        x = encode(nhwc(inputs["image"]), nhwc(inputs["posterior_noise"]))
        found["init_latent"] = nchw(x)
        kept = int(run["strength"] * run["S"])
        x = noised(p, x, t[kept], nhwc(inputs["encode_noise"]))
        found["z_enc"], times = nchw(x), times[-kept - 1:]
    else:
        x = jnp.asarray(nhwc(inputs["x_T"]))
    draws = replay([run.get("temperature", 1.0) * draw for draw in noise]) if eta else jax.random.normal
    sampler = multistep.plms(p) if run["mode"] == "plms" else samplers.ddim(p, eta, draws)
    if run.get("mask"):
        sampler = kept_region(case, p, sampler)
    denoise = watched(denoise, calls)
    path = jax.jit(lambda x: samplers.sample(denoise, sampler, x, times, cond, KEY, keep=True))(x)
    jax.effects_barrier()
    image = jax.jit(first.decode)(first_params, path[-1])
    found |= {"trajectory": nchw(path), "samples": nchw(path[-1]), "image_out": nchw(image)}
    return found | {"pred_x0": nchw(x0_of(p, times, x, path, calls, run))}


def x0_of(p: Any, times: np.ndarray, x: Array, path: Array, calls: list, run: dict[str, Any]) -> np.ndarray:
    """The predicted x0 of every step; of the multistep method that of its combined eps, which the step itself tells."""
    if run["mode"] != "plms":
        return np.stack([x0 for _, _, x0 in calls])
    before = jnp.concatenate([x[None], path[:-1]])
    t, s = times[:-1], times[1:]
    rows = [jnp.asarray(f(a)).reshape(-1, 1, 1, 1, 1) for a in (t, s) for f in (p.alpha, p.sigma)]
    alpha_t, sigma_t, alpha_s, sigma_s = rows
    return np.asarray((sigma_t * path - sigma_s * before) / (sigma_t * alpha_s - sigma_s * alpha_t))


def runge_kutta(denoise: Denoiser, grid: grids.Grid, cond: Cond, x: Array, steps: int) -> tuple[Array, np.ndarray]:
    """PNDM (2202.09778): three Runge-Kutta steps of four calls, then Adams-Bashforth; every call's latent and time.

    The times between are rounded as the scheduler rounds them: half of an odd stride, down from one end and up from the other.
    """
    p, half = grid.process, grid.process.steps // steps // 2

    @jax.jit
    def eps(x: Array, t: Array) -> Array:
        return samplers.resolve(p, denoise(x, t, cond, KEY), x, t)[1]

    def move(x: Array, t: int, s: int, eps: Array) -> Array:
        return p.alpha(s) * (x - p.sigma(t) * eps) / p.alpha(t) + p.sigma(s) * eps

    states, labels, past = [], [], []
    for a, b in np.asarray(grid.labels[:4]).repeat(2)[1:-1].reshape(3, 2):
        middle = b + half
        seen, found = x, []
        for label, to in ((a, a - half), (middle, middle), (middle, middle - half), (b, b)):
            found.append(eps(seen, jnp.int32(label)))
            e = found[-1] if len(found) < 4 else (found[0] + 2 * found[1] + 2 * found[2] + found[3]) / 6
            seen = move(x, a, to, e)
            states.append(seen)
            labels.append(label)
        x, past = seen, [found[0], *past]
    for t, s in grid.pairs[3:]:
        past = [eps(x, jnp.int32(t)), *past[:3]]
        x = move(x, t, s, (55 * past[0] - 59 * past[1] + 37 * past[2] - 9 * past[3]) / 24)
        states.append(x)
        labels.append(t)
    return jnp.stack(states), np.asarray(labels, np.int64)


def kept_region(case: Case, p: Any, sampler: Any) -> Any:
    """Before every step the known latent, noised to the time, goes where the mask is 1."""
    mask, x0, draws = nhwc(case.inputs["mask"]), nhwc(case.inputs["x0"]), replay(nhwc(case.inputs["q_noise"]))

    def step(denoise: Any, x: Array, state: Any, t: Array, s: Array, key: Array) -> Any:
        known = noised(p, x0, t, draws(key, x0.shape, x0.dtype))
        return sampler.step(denoise, mask * known + (1 - mask) * x, state, t, s, key)

    return sampler._replace(step=step)


def first_stage(case: Case) -> tuple[Autoencoder, Params]:
    """The case's autoencoder with the scale of its latents."""
    model = build(first_stage_of(case.config["first_stage"]))
    params = {"model": vae.convert(sd.part(case.weights, sd.FIRST), model)}
    return Autoencoder(model, (0, 0, 0), scale=case.config["ldm"].get("scale_factor", 1.0)), params


def diffusers_sampler(case: Case) -> Found:
    """A scheduler's loop with guidance and diffusers' UNet."""
    c, run = case.config, case.config["run"]
    model, _, params = load_unet(case.weights, c["kwargs"])
    kind, options = c["scheduler"]["class"].removesuffix("Scheduler"), c["scheduler"]["kwargs"]
    grid = grids.strided(options, run["steps"])
    denoise = scales.denoiser(network(model, params), grid.process, diffusers.SCALES[options.get("prediction_type", "epsilon")])
    denoise, cond = guided(case, denoise)
    x = jnp.asarray(nhwc(case.inputs["x_T"]))
    labels, eta = np.asarray(grid.labels, np.int64), run.get("eta", 0.0)

    def path(sampler: Any, pairs: np.ndarray) -> Array:
        return jax.jit(lambda x: samplers.sample(denoise, sampler, x, pairs, cond, KEY, keep=True))(x)

    if kind == "DDIM":
        denoise = grids.on_x0(options, grid.process)(denoise)
        draws = replay(nhwc(case.inputs["noise"])) if eta else jax.random.normal
        states = path(samplers.ddim(grid.process, eta, draws), grid.pairs)
    elif not options.get("skip_prk_steps", False):
        states, labels = runge_kutta(denoise, grid, cond, x, run["steps"])
    else:
        # The scheduler shows the trial step of its first, improved one as a step of its own.
        trial = path(samplers.ddim(grid.process), grid.pairs[:1])
        states = jnp.concatenate([trial, path(multistep.plms(grid.process), grid.pairs)])
        labels = np.insert(labels, 1, labels[1])
    return {"trajectory": nchw(states), "timesteps": labels, "alphas_cumprod": grid.process.alpha_bar[1:-1]}
