"""diffusers' schedulers, DDIM inversion, condition switches and guidance formulas, as grids and options of this package.

What a scheduler adds to its method is a grid: which times, where each step ends, and what the network is shown. Euler, Heun and
DPM-Solver think in noise levels r = sigma / alpha; the first two also keep the state as y = x / alpha.
"""
from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from golden_routines.replay import Shown, nchw, nhwc, record, replay, watched

from diffusion_jax.diffusion import guidance, multistep, process, samplers, scales, times

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squaredcos"}
SCALES = {"epsilon": scales.Eps(), "sample": scales.X0(), "v_prediction": scales.V(), "flow_prediction": scales.Velocity()}
KEY = jax.random.key(0)


class Grid(NamedTuple):
    """Steps [N, 2] on the times of `process`, and the labels [N] that their networks see."""

    process: process.Process
    pairs: np.ndarray
    labels: np.ndarray


def ddpm_of(options: dict) -> process.DDPM:
    """The process of a scheduler's options, by default as the schedulers have them."""
    schedule = SCHEDULES[options.get("beta_schedule", "linear")]
    ends = {} if schedule == "squaredcos" else dict(start=options.get("beta_start", 1e-4), end=options.get("beta_end", 0.02))
    return process.DDPM(schedule, options["num_train_timesteps"], zero_snr=options.get("rescale_betas_zero_snr", False), **ends)


def spaced(options: dict, p: process.DDPM, steps: int) -> np.ndarray:
    """The descending timesteps of an option `timestep_spacing`, without the clean end."""
    kind = options.get("timestep_spacing", "leading")
    grid = times.leading(p, steps, options.get("steps_offset", 0)) if kind == "leading" else getattr(times, kind)(p, steps)
    return grid[:-1]


def on_x0(options: dict, keep_eps: process.Process | None = None) -> guidance.Guidance:
    """Thresholding or clipping of the predicted x0."""
    if options.get("thresholding", False):
        ratio, largest = options.get("dynamic_thresholding_ratio", 0.995), options.get("sample_max_value", 1.0)
        return guidance.Threshold(ratio, largest, keep_eps)
    if options.get("clip_sample", True):
        return guidance.Clip(options.get("clip_sample_range", 1.0), keep_eps)
    return guidance.chain()


# Grids ----------------------------------------------------------------------------------------------------------------------


def chained(options: dict, steps: int) -> Grid:
    """DDPMScheduler: every step ends where the next begins."""
    p = ddpm_of(options)
    t = spaced(options, p, steps)
    return Grid(p, np.stack([t, np.append(t[1:], np.int32(-1))], 1), t)


def strided(options: dict, steps: int) -> Grid:
    """DDIMScheduler: a step always goes back T // N, whatever the spacing."""
    p = ddpm_of(options)
    t = spaced(options, p, steps)
    s = np.maximum(t - p.steps // steps, -1)
    return Grid(p, np.stack([t, s if options.get("set_alpha_to_one", True) else np.maximum(s, 0)], 1), t)


def inverse(options: dict, steps: int) -> Grid:
    """DDIMInverseScheduler: ascending, and the network is shown the time that the step goes to."""
    p = ddpm_of(options)
    s = spaced(options, p, steps)[::-1]
    t = (s - p.steps // steps).astype(np.float32)
    t[t < 0] = -1 if options.get("set_alpha_to_one", True) else 1e-4       # not quite 0, which the next step may start from
    return Grid(Shown(p, t, s), np.stack([t, s], 1), s)


def beta_levels(high: float, low: float, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) between two noise levels (2407.12173)."""
    from scipy.stats import beta

    return low + beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (high - low)


def holding(p: process.DDPM, high: float, low: float) -> process.Process:
    """`p`, or where noise levels lie outside of its table the process that has them all."""
    return p if table(p)[0] <= low and high <= table(p)[-1] else process.Cosine()


def levels(options: dict, p: process.DDPM, high: float, low: float, steps: int) -> np.ndarray | None:
    """The noise levels of an option that replaces the timesteps by them; None where no such option is set."""
    high, low = options.get("sigma_max") or high, options.get("sigma_min") or low
    p = holding(p, high, low)
    if options.get("use_karras_sigmas"):
        return ratio(p, times.karras(p, steps, low, high)[:-1])
    if options.get("use_exponential_sigmas"):
        return ratio(p, times.log_snr(p, steps, low, high)[:-1])
    if options.get("use_beta_sigmas"):
        return beta_levels(high, low, steps)
    return None


def ratio(p: process.Process, t: np.ndarray) -> np.ndarray:
    return np.asarray(p.sigma(t) / p.alpha(t))


def table(p: process.DDPM) -> np.ndarray:
    """[T] noise levels; the schedulers replace an infinite last one by that of alpha_bar = 2^-24."""
    bar = p.alpha_bar[1:-1]
    bar = np.where(bar > 0, bar, 2.0**-24)
    return np.sqrt((1 - bar) / bar)


def at_levels(options: dict, p: process.DDPM, r: np.ndarray, labels: np.ndarray | None, last: float | None = None) -> Grid:
    """Steps through the noise levels r [N] to the final one. Labels default to the times at which r is found."""
    if last is None:
        last = table(p)[0] if options.get("final_sigmas_type") == "sigma_min" else 0.0
    if labels is None:
        labels = np.interp(np.log(r), np.log(table(p)), np.arange(p.steps)).astype(np.float32)
    p = holding(p, r.max() * (1 - 1e-6), r.min() * (1 + 1e-6))
    t = np.asarray(p.time(jnp.asarray(np.append(r, last), jnp.float32)))
    return Grid(Shown(p, t[:-1], labels), np.stack([t[:-1], t[1:]], 1), labels)


def euler_grid(options: dict, steps: int) -> Grid:
    """Euler, Euler ancestral and Heun: float timesteps, noise levels interpolated linearly between the table's."""
    options = {"timestep_spacing": "linspace"} | options
    p = ddpm_of(options)
    whole = options["timestep_spacing"] != "linspace"
    t = (spaced(options, p, steps) if whole else np.linspace(0, p.steps - 1, steps)[::-1]).astype(np.float32)
    r = np.interp(t, np.arange(p.steps), table(p))
    if (special := levels(options, p, r[0], r[-1], steps)) is not None:
        r, t = special, None
    if options.get("interpolation_type") == "log_linear" and special is None:           # one level more, which ends the last step
        r = np.exp(np.linspace(np.log(table(p)[-1]), np.log(table(p)[0]), steps + 1))
        return at_levels(options, p, r[:-1], t, r[-1])
    grid = at_levels(options, p, r, t)
    if options.get("timestep_type") == "continuous" and options.get("prediction_type") == "v_prediction":
        return at_levels(options, p, r, np.log(r) / 4)
    return grid


def dpm_grid(options: dict, steps: int) -> Grid:
    """DPM-Solver: linspace and leading take one time more and drop the last; timesteps are rounded, noise levels are not."""
    options = {"timestep_spacing": "linspace"} | options
    p = ddpm_of(options)
    if options.get("use_flow_sigmas"):
        flow = process.Flow(options.get("flow_shift", 1.0))
        t = np.linspace(0, 1 - 1 / p.steps, steps + 1)[:0:-1].astype(np.float32)
        labels = (p.steps * np.asarray(flow.sigma(t))).astype(np.int32)
        return Grid(Shown(flow, t, labels), np.stack([t, np.append(t[1:], np.float32(0))], 1), labels)
    kept = p.steps - int(np.sum(-np.log(table(p)) < options.get("lambda_min_clipped", -np.inf)))
    if options["timestep_spacing"] == "trailing":
        t = np.round(np.arange(kept, 0, -p.steps / steps)).astype(np.int32) - 1
    else:
        t = spaced(options, replace(p, steps=kept), steps + 1)[:-1]
    r = levels(options, p, table(p)[-1], table(p)[0], steps)
    if options.get("use_lu_lambdas"):
        r = np.exp(np.linspace(np.log(table(p)[-1]), np.log(table(p)[0]), steps))
    if r is None:
        return at_levels(options, p, table(p)[t], t)
    t = np.interp(np.log(r), np.log(table(p).astype(np.float32)), np.arange(p.steps))
    rounds = (options.get("use_karras_sigmas") or options.get("use_lu_lambdas")) and p.schedule != "squaredcos"
    return at_levels(options, p, r, (np.round(t) if rounds else t).astype(np.int32))


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


METHODS = {
    "DDPMScheduler": Method(chained, ddpm_sampler),
    "DDIMScheduler": Method(strided, ddim_sampler),
    "DDIMInverseScheduler": Method(inverse, ddim_sampler),
    "EulerDiscreteScheduler": Method(euler_grid, euler_sampler, True),
    "EulerAncestralDiscreteScheduler": Method(euler_grid, lambda g, o, s, n: samplers.euler_ancestral(g.process, noise=n), True),
    "HeunDiscreteScheduler": Method(euler_grid, lambda g, o, s, n: samplers.edm(g.process), True),
    "DPMSolverMultistepScheduler": Method(dpm_grid, dpm_sampler),
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
        "EulerDiscreteScheduler": churned, "DPMSolverMultistepScheduler": options.get("algorithm_type", "").startswith("sde"),
    }
    return np.broadcast_to(asked.get(name, False), len(grid.labels)).astype(np.int64)


def twice(a: np.ndarray) -> np.ndarray:
    """Heun's two calls a step, of which the last step has one: [N, ...] -> [2 N - 1, ...]."""
    return np.repeat(a, 2, axis=0)[1:]


def scheduler(case) -> dict:
    """A run of one scheduler on the toy network: every state, network output and predicted x0."""
    name, options, step = case.config["scheduler_class"], case.config["scheduler"], case.config["step_kwargs"]
    method, learned = METHODS[name], case.config["learned_variance_channels"]
    grid = method.grid(options, case.config["set_timesteps"])
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
