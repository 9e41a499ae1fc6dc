"""CADS: annealing, the corruption of a condition with the statistics of two public plug-ins, and whole sampling loops."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from golden_routines import diffit
from golden_routines.replay import record, replay
from golden_routines.samplers import KEY
from golden_routines.scheduler_grids import chained, on_x0, strided

from diffusion_jax.diffusion import guidance, samplers, scales


def schedule(case) -> dict:
    """gamma(t), and guidance scaled by it."""
    with jax.enable_x64(True):
        t, taus = jnp.asarray(case.inputs["t"]), [(call["tau1"], call["tau2"]) for call in case.config["calls"]]
        found = {f"gamma_{i}": guidance.annealing(t, *tau) for i, tau in enumerate(taus)}
        w = case.config["dynamic_cfg_w"]
        found |= {f"dynamic_cfg_{i}": guidance.dynamic_cfg(w, lambda t: t, *tau)(t) for i, tau in enumerate(taus)}
        return {name: np.asarray(value) for name, value in found.items()}


def add_noise(case) -> dict:
    """One corruption per call, mean and standard deviation over the whole tensor."""
    y, n = (jnp.asarray(case.inputs[name]) for name in ("y", "noise"))
    return {
        f"y_{i}": guidance.corrupt(y, n, c["gamma"], c["s"], c["psi"], c["rescale"], "batch")
        for i, c in enumerate(case.config["calls"])
    }


def per_sample_noise(case) -> dict:
    """A run of corruptions with statistics per sample; rows of the batch may be left clean. The clock is ahead by one step."""
    c, y, noise = case.config, jnp.asarray(case.inputs["y"]), case.inputs["noise"]
    steps = c["start_step"] + 1 + np.arange(len(noise))
    u = jnp.asarray(1 - np.clip(steps / c["total_steps"], 0, 1))
    uncond = np.resize(np.array(c["cond_or_uncond"]) == 1, len(y))
    rows = {"both": uncond | True, "cond": ~uncond, "uncond": uncond}
    found = {}
    for i, call in enumerate(c["calls"]):
        gamma, s, psi = guidance.annealing(u, call["t1"], call["t2"]), call["noise_scale"], call["rescale_psi"]
        run = [guidance.corrupt(y, n, g, s, psi, True, "sample") for n, g in zip(noise, gamma, strict=True)]
        noised = rows[call["apply_to"]].reshape(1, -1, *[1] * (y.ndim - 1))
        found[f"y_{i}"] = jnp.where(noised, jnp.stack(run), y[None])
    return found


def trajectory(case) -> dict:
    """A guided loop whose condition is corrupted at every step, and the unconditional one too where asked for."""
    c, inputs, options = case.config, case.inputs, case.config["scheduler"]
    grid = (strided if options["type"] == "ddim" else chained)(options, c["steps"])
    p, fed = grid.process, []
    clock = guidance.progress(np.append(grid.pairs[:, 0], -1))
    null = {"seq": jnp.asarray(inputs["y_null"])}

    def network(x, label, cond):
        record(fed, cond["seq"])
        tokens = jnp.tanh(cond["seq"]).mean(1)
        return x @ inputs["A"].T + tokens @ inputs["B"].T + label[:, None] / 1000 * inputs["b"][None]

    def cads(draws: np.ndarray) -> guidance.Guidance:
        return guidance.CADS(
            clock, c["tau1"], c["tau2"], c["s"], c["psi"], rescale=c["rescale"], statistics="batch", keys=("seq",),
            noise=replay(draws),
        )

    bare, draws = scales.denoiser(network, p, scales.Eps()), inputs["cond_noise"]
    if c["noise_on_uncond"]:
        noisy_null = cads(draws[:, 1])(bare)
        weak = guidance.Autoguidance(c["cfg_scale"], lambda x, t, cond, key: noisy_null(x, t, null, key))
        guide = guidance.chain(weak, cads(draws[:, 0]))
    else:
        guide = guidance.chain(cads(draws[:, 0]), guidance.CFG(c["cfg_scale"], null))
    noise = replay(inputs["step_noise"])
    ddim, ddpm = samplers.ddim(p, options["eta"], noise), samplers.ancestral(p, options["variance_type"], noise)
    denoise, sampler = guidance.chain(on_x0(options, p), guide)(bare), ddim if options["type"] == "ddim" else ddpm
    x = samplers.sample(denoise, sampler, inputs["xT"], grid.pairs, {"seq": inputs["y"]}, KEY, keep=True)
    jax.effects_barrier()
    both = np.concatenate([rows for rows, in fed]).reshape(c["steps"], 2, *inputs["y"].shape)
    gamma = guidance.annealing(clock(grid.labels), c["tau1"], c["tau2"])
    return dict(x=x, y_hat=both[:, 0], y_null_hat=both[:, 1], gamma=gamma, timesteps=grid.labels)


def trajectory_class_embedding(case) -> dict:
    """A guided DiffiT whose label embedding is corrupted at every step; the statistics are those of the conditional rows."""
    c, fed = case.config, []
    net, params, embed = diffit.load_diffit(case, c["model"])
    vec, null = jnp.split(embed(case.inputs["y_label"])["vec"], 2)
    times = np.append(diffit.spaced(c).t[::-1], -1)

    def network(x, label, cond):
        record(fed, cond["vec"])
        return net.apply({"params": params}, x, label, {"vec": jnp.concatenate([cond["vec"], cond["null"]])})

    cads = guidance.CADS(
        guidance.progress(times), c["tau1"], c["tau2"], c["s"], c["psi"], rescale=c["rescale"], statistics="batch", keys=("vec",),
        noise=replay(case.inputs["cond_noise"]),
    )
    path, _ = diffit.loop(case, network, {"vec": vec, "null": null}, cads)
    return dict(samples=path, y_hat=[rows for rows, in fed], timestep_map=times[-2::-1].astype(np.int64))
