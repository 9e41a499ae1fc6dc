"""diffusers' schedulers, DDIM inversion, condition switches and guidance formulas, as grids and options of this package.

What a scheduler adds to its method is a grid (scheduler_grids.py). Euler and Heun keep the state as y = x / alpha.
"""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from golden_routines.replay import nchw, nhwc, record, replay, watched
from golden_routines.scheduler_grids import (
    Grid,
    chained,
    ddpm_of,
    deis_grid,
    dpm_grid,
    euler_grid,
    inverse,
    lcm_grid,
    on_x0,
    ratio,
    spaced,
    strided,
    unipc_grid,
)
from golden_routines.sdxl import network as sdxl_network

from diffusion_jax.build import build
from diffusion_jax.diffusion import guidance, lcm, multistep, process, samplers, scales, unipc
from diffusion_jax.models.guidance_weight import GuidanceWeight
from diffusion_jax.pipelines.recipe import Recipe, Strengths
from diffusion_jax.pretrained import ldm_unet, schedulers

SCALES = {"epsilon": scales.Eps(), "sample": scales.X0(), "v_prediction": scales.V(), "flow_prediction": scales.Velocity()}
KEY = jax.random.key(0)


# Schedulers -----------------------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """A scheduler: (options, steps) -> Grid, and (grid, options, step options, noise) -> Sampler."""

    grid: object
    sampler: object
    in_y: bool = False             # keeps y = x / alpha instead of x


def ddpm_sampler(grid, options, step, noise):
    kind = options.get("variance_type", "fixed_small").removesuffix("_log")
    return samplers.ancestral(grid.process, kind, noise)


def ddim_sampler(grid, options, step, noise):
    return samplers.ddim(grid.process, step.get("eta", 0.0), noise)


def euler_sampler(grid, options, step, noise):
    """Euler's method; with churn diffusers joins the state after it to the network's output from before."""
    p, churn, steps = grid.process, step.get("s_churn", 0.0), len(grid.pairs)
    if not churn:
        return samplers.euler(p)
    low, high, kind = step.get("s_tmin", 0.0), step.get("s_tmax", np.inf), options.get("prediction_type", "epsilon")

    def one(denoise, x, state, t, s, key):
        r, r_s = p.sigma(t) / p.alpha(t), p.sigma(s) / p.alpha(s)
        x0, eps = samplers.resolve(p, denoise(x, t, key), x, t)
        r_hat = r * (1 + jnp.where((low <= r) & (r <= high), min(churn / steps, 2**0.5 - 1), 0))
        added = step.get("s_noise", 1.0) * jnp.sqrt((r_hat - r) * (r_hat + r)) * noise(key, x.shape, x.dtype)
        if kind != "epsilon":                                          # v is turned into x0 with the old noise level
            x0 = x0 + (added / (r**2 + 1) if kind == "v_prediction" else 0)
            eps = (x / p.alpha(t) + added - x0) / r_hat
        return p.alpha(s) * (x / p.alpha(t) + added + (r_s - r_hat) * eps), state

    return samplers.Sampler(lambda x, steps: (), one)


def dpm_sampler(grid, options, step, noise):
    algorithm = options.get("algorithm_type", "dpmsolver++")
    return multistep.dpm_solver(
        grid.process, options.get("solver_order", 2), "x0" if algorithm.endswith("++") else "eps", algorithm.startswith("sde"),
        options.get("solver_type", "midpoint"), options.get("lower_order_final", True), options.get("euler_at_final", False),
        noise,
    )


def unipc_sampler(grid, options, step, noise):
    """UniPC; of a list of steps without the corrector that are not the first ones, each loses what it would be corrected by."""
    off = options.get("disable_corrector", [])
    first = off == list(range(len(off)))
    sampler = unipc.unipc(
        grid.process, options.get("solver_order", 2), "x0" if options.get("predict_x0", True) else "eps",
        options.get("solver_type", "bh2"), len(off) if first else 0, options.get("lower_order_final", True),
    )

    def one(*args):
        x, state = sampler.step(*args)
        on = ~jnp.isin(state.past.known - 1, jnp.asarray(off))
        return x, state._replace(owed=on * state.owed, gain=on * state.gain)

    return sampler if first else samplers.Sampler(sampler.init, one)


def deis_sampler(grid, options, step, noise):
    return unipc.deis(grid.process, options.get("solver_order", 2), options.get("lower_order_final", True))


METHODS = {
    "DDPMScheduler": Method(chained, ddpm_sampler),
    "DDIMScheduler": Method(strided, ddim_sampler),
    "DDIMInverseScheduler": Method(inverse, ddim_sampler),
    "EulerDiscreteScheduler": Method(euler_grid, euler_sampler, True),
    "EulerAncestralDiscreteScheduler": Method(euler_grid, lambda g, o, s, n: samplers.euler_ancestral(g.process, noise=n), True),
    "HeunDiscreteScheduler": Method(euler_grid, lambda g, o, s, n: samplers.edm(g.process), True),
    "DPMSolverMultistepScheduler": Method(dpm_grid, dpm_sampler),
    "UniPCMultistepScheduler": Method(unipc_grid, unipc_sampler),
    "DEISMultistepScheduler": Method(deis_grid, deis_sampler),
    "LCMScheduler": Method(lcm_grid, lambda g, o, s, n: lcm.lcm(g.process, o.get("timestep_scaling", 10.0), n)),
}


def toy(inputs: dict, tape: list):
    """A x + t / 1000 b, with Av x for the variance where there is one. Records its outputs."""
    def network(x, label, cond):
        out = x @ inputs["A"].T + label[:, None, None, None] / 1000 * inputs["b"][None, None, None]
        if "Av" in inputs:
            out = jnp.concatenate([out, x @ inputs["Av"].T], axis=-1)
        record(tape, out)
        return out

    return network


def from_clean(p: process.Process, network) -> guidance.Guidance:
    """At a clean time x0 tells nothing of eps; there the outputs of an eps and of a v network are eps itself."""
    def guide(denoise):
        def guided(x, t, cond, key):
            prediction = denoise(x, t, cond, key)
            known = guidance.eps_of(p, prediction.x0, x, t)
            shown = network(x, jnp.broadcast_to(p.label(t), x.shape[:1]), cond)
            return replace(prediction, eps=jnp.where(p.sigma(t) > 0, known, shown))

        return guided

    return guide


def last_noise(grid: Grid, options: dict, raw: np.ndarray | None, draw: np.ndarray) -> np.ndarray | float:
    """DDPMScheduler draws no noise at timestep 0 only: a grid that ends above it has noise in its result."""
    if grid.labels[-1] == 0:
        return 0.0
    large = np.asarray(process.posterior(grid.process, *grid.pairs[-1]).large)
    kind = options.get("variance_type", "fixed_small")
    share = {"fixed_large": 1.0, "learned_range": None if raw is None else (raw + 1) / 2}.get(kind, 0.0)
    return large ** (share / 2) * 1e-10 ** (1 - share) * draw                   # the posterior variance clipped to 1e-20


def draws(name: str, options: dict, step: dict, grid: Grid, r: np.ndarray) -> np.ndarray:
    """[N] 1 where the published step asks for noise."""
    churned = (step.get("s_churn", 0) > 0) & (step.get("s_tmin", 0) <= r[:-1]) & (r[:-1] <= step.get("s_tmax", np.inf))
    asked = {
        "DDPMScheduler": grid.labels > 0, "DDIMScheduler": step.get("eta", 0) > 0, "EulerAncestralDiscreteScheduler": True,
        "EulerDiscreteScheduler": churned, "LCMScheduler": np.arange(1, len(grid.labels) + 1) < len(grid.labels),
        "DPMSolverMultistepScheduler": options.get("algorithm_type", "").startswith("sde"),
    }
    return np.broadcast_to(asked.get(name, False), len(grid.labels)).astype(np.int64)


def twice(a: np.ndarray) -> np.ndarray:
    """Heun's two calls a step, of which the last step has one: [N, ...] -> [2 N - 1, ...]."""
    return np.repeat(a, 2, axis=0)[1:]


def scheduler(case) -> dict:
    """A run of one scheduler on the toy network: every state, network output and predicted x0."""
    name, options, step = case.config["scheduler_class"], case.config["scheduler"], case.config["step_kwargs"]
    method, learned = METHODS[name], case.config["learned_variance_channels"]
    grid = method.grid(options | case.config.get("set_timesteps_kwargs", {}), case.config["set_timesteps"])
    p, noise = grid.process, nhwc(case.inputs["noise"])
    outputs, calls = [], []
    denoise = scales.denoiser(toy(case.inputs, outputs), p, SCALES[options["prediction_type"]], learned)
    if name == "DDIMInverseScheduler":
        denoise = from_clean(p, toy(case.inputs, []))(denoise)
    keep = p if method.sampler is ddim_sampler and not step.get("use_clipped_model_output") else None
    denoise = watched(on_x0({"clip_sample": False} | options, keep)(denoise), calls)

    def scale(t):                               # from x to the scheduler's own state
        return 1 / np.asarray(p.alpha(t)) if method.in_y else np.ones_like(t, np.float32)

    ends = np.append(grid.pairs[:, 0], grid.pairs[-1, 1])
    sampler = method.sampler(grid, options, step, replay(noise))
    path = samplers.sample(
        denoise, sampler, nhwc(case.inputs["x_start"]) / scale(ends[0]), grid.pairs, {}, KEY, keep=True
    )
    jax.effects_barrier()
    x, t, x0 = (np.stack(column) for column in zip(*calls, strict=True))
    seen, r = x * process.bcast(scale(t), x), ratio(p, ends)
    states = np.append(seen[1:], [path[-1] * scale(ends[-1])], axis=0)
    if name == "DDPMScheduler":
        states[-1] += last_noise(grid, options, outputs[-1][0][..., 3:] if learned else None, noise[-1])
    if step.get("s_churn"):
        raised = 1 + draws(name, options, step, grid, r) * min(step["s_churn"] / len(x), 2**0.5 - 1)
        x0 = churned_x0(options["prediction_type"], states, seen, x0, *(process.bcast(a, x) for a in (r[:-1], r[1:], raised)))
    each = twice if name == "HeunDiscreteScheduler" else np.asarray
    found = dict(
        x=nchw(states), model_output=nchw([o for o, in outputs]), pred_x0=nchw(x0), timesteps=each(grid.labels),
        noise_used=each(draws(name, options, step, grid, r)), alphas_cumprod=ddpm_of(options).alpha_bar[1:-1],
        sigmas=np.append(each(r[:-1]), r[-1]) if not options.get("use_flow_sigmas") else p.sigma(ends),
    )
    if name == "LCMScheduler":
        alpha, sigma = (np.asarray(value(ends[1:])).reshape(-1, 1, 1, 1, 1) for value in (p.alpha, p.sigma))
        found["denoised"] = nchw((states - sigma * noise) / alpha)
    if options.get("interpolation_type") == "log_linear":                             # which lists a level that it never reaches
        found["sigmas"] = np.append(found["sigmas"], 0.0)
    return {key: value for key, value in found.items() if key in case.want}


def churned_x0(kind: str, states, y, x0, r, r_s, raised):
    """x0 of the state after the churn, which the step to the next level r_s reveals: states = x0' + r_s / r' (y' - x0')."""
    if kind == "epsilon":                                                              # y' - x0' = r' (y - x0) / r
        return states - r_s / r * (y - x0)
    if kind == "sample":
        return x0
    k = 1 / (r**2 + 1)                                                                 # x0' = x0 + k (y' - y)
    return (r_s * (x0 - k * y) + k * raised * r * states) / ((1 - k) * r_s + k * raised * r)


scheduler_inverse = scheduler


def imported(case) -> dict:
    """Schedulers as their configs are imported: the times that networks are shown, and the last state of some."""
    found, start = {}, nhwc(case.inputs["x_start"])
    for name, run in case.config["runs"].items():
        ours = schedulers.read({"_class_name": run["scheduler_class"]} | run["scheduler"])
        p, left = build(ours.process), iter(nhwc(case.inputs["noise"]))
        task = SimpleNamespace(process=p, scale=SCALES[ours.prediction], variance="fixed_large")
        recipe = Recipe.of(ours.sample | {"steps": case.config["set_timesteps"]})
        times = recipe.grid(p)
        found[f"times/{name}"] = p.label(times[:-1])
        if f"x/{name}" not in case.want:
            continue
        denoise = recipe.make_guidance(task, Strengths(), None, None)(scales.denoiser(plain(case.inputs), p, task.scale))
        sampler = recipe.make_sampler(task, lambda *_, left=left: jnp.asarray(next(left)))
        x = recipe.temperature * samplers.start(p, times, KEY, start.shape, lambda *_: jnp.asarray(start))
        with jax.disable_jit():                            # many runs of a few products: compiling takes longer
            found[f"x/{name}"] = nchw(samplers.sample(denoise, sampler, x, times, {}, KEY))
    return found


def plain(inputs: dict):
    """The network of `toy`, which records nothing."""
    a, b = jnp.asarray(inputs["A"].T), jnp.asarray(inputs["b"])[None, None, None]
    return lambda x, label, cond: jnp.dot(x, a, precision="highest") + label[:, None, None, None] / 1000 * b


# The weight of guidance as an input ---------------------------------------------------------------------------------------------


def lcm_guidance_embedding(case) -> dict:
    """The embedded weight, and a UNet of Stable Diffusion 1 or XL that sees it."""
    kwargs, inputs = case.config["kwargs"], case.inputs
    embedder = GuidanceWeight(kwargs["time_cond_proj_dim"])
    seen = embedder.apply({}, {"guidance": jnp.asarray(inputs["guidance_scale"])})
    found = {"embedding": seen["guidance"]}
    if "out" not in case.want:
        return found
    cond = seen | {"seq": jnp.asarray(inputs["encoder_hidden_states"])}
    if kwargs.get("addition_embed_type"):
        model, params, vec = sdxl_network(case)
        cond["vec"] = vec(inputs["text_embeds"], jnp.asarray(inputs["time_ids"]))
    else:
        model = build(ldm_unet.diffusers_config(kwargs)[0])
        params = ldm_unet.convert(case.weights, model)["model"]
    out = jax.jit(model.apply)({"params": params}, nhwc(inputs["sample"]), inputs["timestep"], cond)
    return found | {"out": nchw(out)}


# Inversion and switches -----------------------------------------------------------------------------------------------------


def conditional(inputs: dict):
    """A x + t / 1000 b + vec."""
    def network(x, label, cond):
        return x @ inputs["A"].T + label[:, None, None, None] / 1000 * inputs["b"][None, None, None] + cond["vec"][:, None, None]

    return network


def stepper(denoise, sampler_of):
    """A compiled (x, pair, cond, draw) -> x over one step of `sampler_of(noise)`: for loops of many lengths."""
    def step(x, pair, cond, draw):
        return samplers.sample(denoise, sampler_of(lambda key, shape, dtype: draw), x, pair[None], cond, KEY)

    return jax.jit(step)


def walk(step, x, pairs: np.ndarray, conds: list, draws: np.ndarray | None = None) -> list:
    """All states of a loop with one condition a step, the start included."""
    path = [x]
    for i, (pair, cond) in enumerate(zip(pairs, conds, strict=True)):
        path.append(step(path[-1], pair, cond, 0.0 if draws is None else draws[i]))
    return path


def notebook_inversion(case) -> dict:
    """Inversion with one condition, and resampling with it or another from the latent of some step on."""
    c, p = case.config, ddpm_of(case.config["scheduler"])
    n, first = c["num_inference_steps"], c["start_step"]
    t = spaced(c["scheduler"], p, n)
    down, up = np.stack([t, np.maximum(t - 1000 // n, 1)], 1), t[::-1][1:-1]
    up = np.stack([np.maximum(up - 1000 // n, 0), up], 1)
    vec = {name: {"vec": np.tanh(case.inputs[f"emb_{name}"])[None]} for name in ("null", "src", "edit")}
    guide = guidance.CFG(c["guidance_scale"], vec["null"], guidance.Mix(space=(p, scales.Eps())))
    denoise = guide(scales.denoiser(conditional(case.inputs), p, scales.Eps()))
    step = stepper(denoise, lambda noise: samplers.ddim(p))
    back = stepper(denoise, lambda noise: samplers.ddim_inversion(p))
    inverted = np.stack(walk(back, nhwc(case.inputs["x0"]), up, [vec["src"]] * len(up))[1:])

    def resample(start: int, name: str):
        return nchw(walk(step, inverted[-(start + 1)], down[start:], [vec[name]] * (n - start))[-1])

    return dict(
        inverted=nchw(inverted[:, 0]), recon_full=resample(0, "src"), recon_from_start_step=resample(first, "src"),
        edit=resample(first, "edit"), timesteps=t,
    )


def condition_switch(case) -> dict:
    """k steps with one class and the rest with another; and a given image noised to step k, finished with the other."""
    c, grid, inputs = case.config, strided(case.config["scheduler"], case.config["steps"]), case.inputs
    p, noise = grid.process, nhwc(inputs["noise"])
    one, two = ({"vec": inputs["emb"][inputs[name]]} for name in ("class1", "class2"))
    null = {"vec": np.zeros_like(one["vec"])}
    guide = guidance.CFG(c["cfg_scale"], null, guidance.Mix(phi=c["phi"], space=(p, scales.Eps())))
    denoise = guidance.chain(on_x0(c["scheduler"], p), guide)(scales.denoiser(conditional(inputs), p, scales.Eps()))
    step = stepper(denoise, lambda noise: samplers.ddim(p, c["eta"], noise))
    out = dict(timesteps=grid.labels)
    for k in c["switch_steps"]:
        rest = c["steps"] - k
        path = walk(step, nhwc(inputs["xT"]), grid.pairs, [one] * k + [two] * rest, noise)
        out |= {f"path_k{k}": nchw(path[1:]), f"final_k{k}": nchw(path[-1])}
        if rest and k:
            noised = process.noised(p, nhwc(inputs["x0_image"]), grid.pairs[k, 0], nhwc(inputs["image_noise"]))
            done = walk(step, noised, grid.pairs[k:], [two] * rest, noise[k:])[-1]
            out |= {f"noised_image_k{k}": nchw(noised), f"from_image_k{k}": nchw(done)}
    return out


# Formulas -------------------------------------------------------------------------------------------------------------------


def guidance_rescale(case) -> dict:
    """Guidance with rescaled standard deviation, on two given predictions."""
    c, n = nhwc(case.inputs["cond"]), nhwc(case.inputs["uncond"])
    return {
        f"g_{i}": nchw(guidance.mix_outputs(c, n, call["w"], guidance.Mix(phi=call["phi"])))
        for i, call in enumerate(case.config["calls"])
    }


def dynamic_threshold(case) -> dict:
    """Thresholding of given x0, per call and input."""
    return {
        f"y_{name[2:]}_{i}": guidance.threshold(jnp.asarray(x), call["ratio"], call["sample_max_value"])
        for name, x in case.inputs.items() for i, call in enumerate(case.config["calls"])
    }
