"""openai/guided-diffusion: its diffusion on given network outputs and closed-form networks: tables, moments, losses, loops."""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.dit_diffusion import KEY, Spaced, loss_terms, mse_and_bound, sampled, tables
from golden_routines.replay import nchw, nhwc, record, replay

from diffusion_jax.diffusion import guidance, process, samplers, scales, times
from diffusion_jax.diffusion import losses as objectives
from diffusion_jax.metrics.bpd import bits_per_dim
from diffusion_jax.train import ema as averages
from diffusion_jax.types import Array, Cond, Denoiser, Guidance, Key, Network, Prediction

Found = dict[str, Any]
MEANS = {"EPSILON": scales.Eps(), "START_X": scales.X0(), "PREVIOUS_X": scales.PreviousMean()}
VARIANCES = ("LEARNED", "FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE")
LOSSES = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")


def spaced(options: dict[str, Any]) -> Spaced:
    """create_gaussian_diffusion's options as ours."""
    spec = options.get("timestep_respacing", "")
    renamed = {"diffusion_steps": options.get("steps", 1000), "timestep_respacing": spec if isinstance(spec, list) else str(spec)}
    return Spaced({"learn_sigma": False} | options | renamed)


@dataclass(frozen=True)
class Kept(process.DDPM):
    """The kept steps of a process, counted 0 ... S - 1, so that the step before one is the kept step before it.

    So the official code trains on a respaced process, and so it reads the output of a network of the type PREVIOUS_X.
    """

    kept: tuple[int, ...] = ()

    @functools.cached_property
    def alpha_bar(self) -> np.ndarray:
        """[S + 2] of the whole process's."""
        return process.DDPM(self.schedule, self.steps).alpha_bar[np.array([-1, *self.kept, self.steps]) + 1]

    @property
    def t_max(self) -> int:
        return len(self.kept) - 1

    def label(self, t: Array) -> Array:
        """The step of the whole process."""
        return jnp.asarray(self.kept, float)[t]


def kept(d: Spaced) -> Kept:
    """The steps that a respacing keeps."""
    return Kept(d.process.schedule, d.process.steps, kept=tuple(d.t.tolist()))


def typed(c: dict[str, Any], mean: str, variance: str) -> Spaced:
    """The process of a case that names T and its schedule, for an official mean and variance type."""
    d = spaced({"steps": c["T"], "noise_schedule": c["schedule"], "timestep_respacing": c["timestep_respacing"]})
    d.scale, d.variance = MEANS[mean], variance.lower()
    if mean == "PREVIOUS_X":
        d.process, d.t = kept(d), np.arange(len(d.t), dtype=np.int32)
        d.s, d.above = d.t - 1, d.t + 1
    return d


def given(d: Spaced, out: Array) -> Denoiser:
    """The denoiser of a network whose output [B, ..., C or 2C] is given, with variances behind it where the type has them."""
    return scales.denoiser(lambda x, label, cond: out, d.process, d.scale, d.variance.startswith("learned"))


def clipped(c: dict[str, Any]) -> Guidance:
    """clip_denoised, after denoised_fn: a formula in x that changes x0."""
    formula = c.get("denoised_fn")

    def change(denoise: Denoiser) -> Denoiser:
        def changed(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
            p = denoise(x, t, cond, key)
            return p.replace(x0=eval(formula, {**vars(jnp), "x": p.x0}))

        return changed

    clip = guidance.Clip() if c["clip_denoised"] else guidance.chain()
    return guidance.chain(clip, change) if formula else clip


def schedule(case: Case) -> Found:
    """Every table of the whole process, in float64."""
    found = {}
    with jax.enable_x64(True):
        for name, steps in case.config["schedules"]:
            d = spaced({"noise_schedule": name, "steps": steps})
            found |= {f"{name}_{steps}/{table}": value for table, value in tables(d).items()}
    return found


def respacing(case: Case) -> Found:
    """The kept times and the tables there, in float64."""
    found = {}
    with jax.enable_x64(True):
        for steps, spec, name in case.config["items"]:
            own = tables(spaced({"noise_schedule": name, "steps": steps, "timestep_respacing": spec}))
            own["timesteps"] = own["timestep_map"]
            found |= {f"{steps}:{spec}/{table}": value for table, value in own.items()}
    return found


def moments(c: dict[str, Any], mean: str, variance: str, x: Array, out: Array, i: np.ndarray) -> dict[str, Array]:
    """Mean and variance of p(x_s | x_t) at the i-th kept steps. The mean of PREVIOUS_X is the output, whatever clips x0."""
    d = typed(c, mean, variance)
    p, t, s = d.process, d.t[i], d.s[i]
    bare = given(d, out if "LEARNED" in variance else out[..., : x.shape[-1]])
    found = clipped(c)(bare)(x, t, {}, KEY)
    x0 = bare(x, t, {}, KEY).x0 if mean == "PREVIOUS_X" else found.x0
    q, logvar = process.posterior(p, t, s), samplers.log_variance(p, d.variance, t, s, d.above[i], found.logvar)
    logvar = jnp.broadcast_to(process.bcast(logvar, x), x.shape)
    small = jnp.broadcast_to(process.bcast(q.small, x), x.shape)
    return dict(
        mean=process.bcast(q.x0, x) * x0 + process.bcast(q.xt, x) * x, pred_xstart=found.x0, log_variance=logvar,
        variance=small if variance == "FIXED_SMALL" else jnp.exp(logvar),
    )


def p_mean_variance(case: Case) -> Found:
    """`moments` for every mean and variance type, in float64: the official tables are."""
    c, i = case.config, case.inputs["t"]

    @jax.jit
    def run(x: Array, out: Array) -> dict[str, Array]:
        found = {(mean, variance): moments(c, mean, variance, x, out, i) for mean in MEANS for variance in VARIANCES}
        return {f"{'+'.join(types)}/{name}": nchw(value) for types, own in found.items() for name, value in own.items()}

    with jax.enable_x64(True):
        found = run(*(jnp.asarray(nhwc(case.inputs[name]), jnp.float64) for name in ("x_t", "model_output")))
    t = typed(c, "EPSILON", "LEARNED").t[i].astype(np.int64)
    return found | {"t_model": t * (1000 / c["T"]) if c.get("rescale_timesteps") else t}


def losses(case: Case) -> Found:
    """The terms of every loss type, mean type and variance type."""
    c, i = case.config, case.inputs["t"]

    @jax.jit
    def run(inputs: dict[str, Array]) -> dict[str, Array]:
        x0, found = inputs["x_start"], {}
        for mean in MEANS:
            for variance in VARIANCES:
                d = typed(c, mean, variance)
                xt = process.noised(d.process, x0, d.t[i], inputs["noise"])
                names = [f"mean_{mean}", f"var_{variance}"][: 1 + ("LEARNED" in variance)]
                p = given(d, jnp.concatenate([inputs[name] for name in names], axis=-1))(xt, d.t[i], {}, KEY)
                parts = mse_and_bound(d, p, x0, xt, i)
                for kind in LOSSES:
                    terms = loss_terms(d, kind, *parts)
                    found |= {f"{kind}+{mean}+{variance}/{name}": value for name, value in terms.items()}
        return found

    return run({name: nhwc(a) for name, a in case.inputs.items() if name != "t"})


def likelihood(case: Case) -> Found:
    """The likelihood and the divergence of every element; the distribution function is the likelihood of black, an open bin."""
    @jax.jit
    def run(x: Array, means: Array, log_scales: Array, m2: Array, lv2: Array) -> dict[str, Array]:
        zero = jnp.zeros_like(x)
        return dict(
            discretized_ll=objectives.discretized_log_likelihood(x, means, log_scales),
            approx_cdf=jnp.exp(objectives.discretized_log_likelihood(zero - 1, 1 / 255 - 1 - m2, zero)),
            normal_kl=objectives.normal_kl(means, log_scales, m2, lv2),
            normal_kl_std=objectives.normal_kl(means, log_scales, zero, zero),
        )

    return run(**case.inputs)


def closed_form(case: Case) -> Network:
    """The network of the analytic cases: eps of Gaussian data, and variances where V is given."""
    n = {name: jnp.asarray(nhwc(a) if np.ndim(a) > 2 else a) for name, a in case.inputs.items()}

    def network(x: Array, label: Array, cond: Cond) -> Array:
        a = process.bcast(n["abar_base"][label.astype(int)], x)
        eps = jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * n["mu"][None]) / (a * n["s2"] + 1 - a)
        return jnp.concatenate([eps, jnp.tanh(x @ n["V"].T + 0.1)], axis=-1) if "V" in n else eps

    return network


def pull(case: Case) -> Guidance:
    """The gradient of the analytic cases."""
    target = jnp.asarray(nhwc(case.inputs["target"]))
    return guidance.Gradient(lambda x, t, cond: -jnp.sum((target[None] - x) ** 2) / 2, lambda t: 0.3 * (1 + t / 1000))


def noted(d: Spaced, c: dict[str, Any], denoise: Denoiser, tape: list) -> Denoiser:
    """`denoise`, every x0 and gradient of it recorded; DDIM's x0 is the one with the gradient folded in."""
    def call(x: Array, t: Array, cond: Cond, key: Key) -> Prediction:
        p = denoise(x, t, cond, key)
        x0 = samplers.resolve(d.process, p, x, t)[0] if "ddim" in c["sampler"] else p.x0
        record(tape, x0, jnp.zeros_like(x) if p.grad is None else p.grad)
        return p

    return call


def analytic(case: Case) -> tuple[Spaced, Callable[[list], Denoiser]]:
    """The process of an analytic case, and its denoiser, which notes its calls on a list."""
    c, d = case.config, spaced(case.config["create_gaussian_diffusion"])
    denoise = scales.denoiser(closed_form(case), d.process, d.scale, d.variance == "learned_range")
    guide = guidance.chain(pull(case), clipped(c)) if c.get("cond_fn") else clipped(c)
    return d, lambda tape: noted(d, c, guide(denoise), tape)


def trajectory_analytic(case: Case) -> Found:
    """A sampling loop with the closed-form network."""
    (d, denoise), calls = analytic(case), []
    path = sampled(d, case.config, denoise(calls), case.inputs["x_T"], case.inputs["noise"], {})
    return {"x": nchw(path), "pred_xstart": nchw([x0 for x0, _ in calls])}


def inversion_analytic(case: Case) -> Found:
    """DDIM upwards, beyond the last step to pure noise, and down again."""
    (d, denoise), up, down = analytic(case), [], []
    grid = np.append(d.t, np.int32(d.process.steps))
    invert = samplers.ddim(d.process)
    inverse = jax.jit(lambda x: samplers.sample(denoise(up), invert, x, grid, {}, KEY, keep=True))(nhwc(case.inputs["x_0"]))
    inverse = np.asarray(inverse)
    path = sampled(d, {"sampler": "ddim", "eta": 0.0}, denoise(down), nchw(inverse[-1]), case.inputs["noise"], {})
    found = {"inv": inverse, "inv_pred_xstart": [x0 for x0, _ in up], "x": path, "pred_xstart": [x0 for x0, _ in down]}
    return {name: nchw(value) for name, value in found.items()}


def bpd(case: Case) -> Found:
    """The whole variational bound of the closed-form network."""
    c, d = case.config, spaced(case.config["create_gaussian_diffusion"])
    denoise = clipped(c)(scales.denoiser(closed_form(case), d.process, d.scale, d.variance == "learned_range"))
    grid, noise = np.append(d.t[::-1], np.int32(-1)), replay(nhwc(case.inputs["noise"]))
    bits = jax.jit(lambda x0: bits_per_dim(denoise, d.process, x0, grid, {}, KEY, d.variance, noise))(nhwc(case.inputs["x_0"]))
    return dict(total_bpd=bits.total, prior_bpd=bits.prior, vb=bits.terms, xstart_mse=bits.x0_mse, mse=bits.eps_mse)


def loss_aware_sampler(case: Case) -> Found:
    """The history, probabilities and weights of importance sampling. The official weights are not normalised while uniform."""
    c, inputs, found = case.config, case.inputs, {}
    p, sampler = process.DDPM("squaredcos", c["num_timesteps"]), times.SecondMoment(c["history_per_term"], c["uniform_prob"])
    with jax.enable_x64(True):
        memory, done, learn, chances = sampler.memory(p), 0, jax.jit(sampler.learn), jax.jit(sampler.probabilities)
        for j, end in enumerate(inputs["checkpoints"]):
            memory = learn(memory, inputs["ts"][done:end], inputs["f64_losses"][done:end])
            warm, done = bool(np.all(np.asarray(memory["counts"]) >= sampler.history)), end
            chance = np.asarray(chances(memory))
            found |= {f"weights_{j}": chance * (1 if warm else p.steps), f"warmed_{j}": np.array(warm)}
            found[f"importance_{j}"] = 1 / (p.steps * chance[inputs["indices"]])
        ring = zip(np.asarray(memory["losses"]), np.asarray(memory["counts"]), strict=True)
        found["loss_history"] = np.stack([np.roll(row, -count if count >= sampler.history else 0) for row, count in ring])
        found["uniform_weights"] = times.Uniform().draw(p, {}, KEY, p.steps)[1]
    return found | {"loss_counts": np.minimum(memory["counts"], sampler.history)}


def ema(case: Case) -> Found:
    """The average after every update."""
    profile, average, found = averages.Constant(case.config["rate"], warmup=False), case.weights["w"], []
    for number, source in enumerate(case.inputs["src"], 1):
        average = averages.update(average, source, profile, number)
        found.append(average)
    return {"ema": np.stack(found)}
