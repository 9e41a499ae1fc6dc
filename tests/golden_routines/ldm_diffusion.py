"""CompVis's tables and embeddings, its averages, its losses and its sampling loops."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case

from diffusion_jax.diffusion import process
from diffusion_jax.models.unet_blocks import waves
from diffusion_jax.nn.embed import timestep_embedding as embedding
from diffusion_jax.train import ema as averages
from diffusion_jax.types import Array

Found = dict[str, Any]
SCHEDULES = {"linear": "scaled_linear", "cosine": "squaredcos", "sqrt_linear": "linear", "sqrt": "sqrt"}
START, END = 1e-4, 2e-2


def process_of(schedule: str, steps: int, options: dict[str, Any]) -> process.DDPM:
    """The process of a schedule by its official name, with its ends or its offset among the options."""
    name = SCHEDULES[schedule]
    if name == "squaredcos":
        return process.DDPM(name, steps, options.get("cosine_s", 8e-3))
    return process.DDPM(name, steps, options.get("linear_start", START), options.get("linear_end", END))


def of_options(options: dict[str, Any]) -> process.DDPM:
    """The process of DDPM.register_schedule's options."""
    return process_of(options.get("beta_schedule", "linear"), options.get("timesteps", 1000), options)


def ddim_times(method: str, count: int, steps: int) -> np.ndarray:
    """The official times, ascending: a stride rounded down, so that there may be more of them than asked for, or squares."""
    if method == "quad":
        return (np.linspace(0, np.sqrt(steps * 0.8), count) ** 2).astype(int) + 1
    return np.arange(0, steps, steps // count) + 1


def ddim_tables(p: process.DDPM, t: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise added, and alpha_bar here and at the next time, of each step, float64; the last step stops at the first time, 0."""
    s = np.append(0, t[:-1])
    bar, before = p.alpha_bar[t + 1], p.alpha_bar[s + 1]
    with jax.enable_x64(True):
        q = np.asarray(process.ratio(p, t, s))
        sigma = eta * np.asarray(p.sigma(s)) * np.sqrt(1 - q**2)
    return sigma, bar, before


def tables(p: process.DDPM, v_posterior: float, parameterization: str) -> Found:
    """The buffers that the official model registers."""
    bar, before = p.alpha_bar[1:-1], p.alpha_bar[:-2]
    t = np.arange(p.steps)
    with jax.enable_x64(True):
        post = jax.tree.map(np.asarray, process.posterior(p, t, t - 1))
    variance = (1 - v_posterior) * post.small + v_posterior * p.betas
    lvlb = elbo_weights(*(np.float32(x) for x in (p.betas, variance, 1 - p.betas, bar)), parameterization)
    return {
        "betas": p.betas, "alphas_cumprod": bar, "alphas_cumprod_prev": before, "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar), "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / bar), "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / bar - 1),
        "posterior_variance": variance, "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": post.x0, "posterior_mean_coef2": post.xt, "lvlb_weights": lvlb,
    }


def elbo_weights(betas: np.ndarray, variance: np.ndarray, alphas: np.ndarray, bar: np.ndarray, target: str) -> np.ndarray:
    """The weights of the bound's terms, of the float32 buffers; those of an x0 target as they are written there."""
    with np.errstate(divide="ignore"):
        weights = betas**2 / (2 * variance * alphas * (1 - bar)) if target == "eps" else 0.5 * np.sqrt(bar) / (2 - bar)
    weights[0] = weights[1]
    return weights


def schedule(case: Case) -> Found:
    """Betas, the times and tables of DDIM, and the buffers."""
    c, found, at = case.config, {}, {}
    made = {name: process_of(b["schedule"], b["n_timestep"], b) for name, b in c["betas"].items()}
    found |= {f"betas/{name}": p.betas for name, p in made.items()}
    for name, o in c["ddim_timesteps"].items():
        at[name] = ddim_times(o["ddim_discr_method"], o["num_ddim_timesteps"], o["num_ddpm_timesteps"])
        found[f"ddim_timesteps/{name}"] = at[name]
    for name, o in c["ddim_params"].items():
        rows = ddim_tables(made[o["betas"]], at[o["steps"]], o["eta"])
        found |= {f"ddim_params/{name}/{key}": row for key, row in zip(("sigmas", "alphas", "alphas_prev"), rows, strict=True)}
    for name, o in c["register_schedule"].items():
        rows = tables(of_options(o), o.get("v_posterior", 0.0), o.get("parameterization", "eps"))
        found |= {f"register/{name}/{key}": row for key, row in rows.items()}
    return found


def timestep_embedding(case: Case) -> Found:
    """The two orders and frequencies, and diffusers' names for all four combinations."""
    t, found = jnp.asarray(case.inputs["timesteps"]), {}
    for dim in case.config["dims"]:
        cos_first, sin_first = embedding(t, dim), waves(t, dim, ddpm=True)
        found |= {f"openai_dim{dim}": cos_first, f"ddpm_model_dim{dim}": sin_first}
        for shift, first, second in ((0, swapped(cos_first), cos_first), (1, sin_first, swapped(sin_first))):
            found |= {f"diffusers_dim{dim}_flip0_shift{shift}": first, f"diffusers_dim{dim}_flip1_shift{shift}": second}
    return found


def swapped(waves: Array) -> Array:
    """Both halves exchanged, a zero at the end left there."""
    half = waves.shape[1] // 2
    return jnp.concatenate([waves[:, half: 2 * half], waves[:, :half], waves[:, 2 * half:]], axis=1)


def ema(case: Case) -> Found:
    """The average after every update."""
    c = case.config
    profile = averages.Constant(c["decay"], warmup=c["use_num_updates"])
    shadow, path = {name: jnp.asarray(x[0]) for name, x in case.inputs.items()}, []
    for k in range(1, c["n"]):
        shadow = averages.update(shadow, {name: jnp.asarray(x[k]) for name, x in case.inputs.items()}, profile, jnp.int32(k))
        path.append(shadow)
    found = {f"ema_{name}": np.stack([np.asarray(step[name]) for step in path]) for name in shadow}
    return found | {"num_updates": np.int32(len(path) if c["use_num_updates"] else -1)}
