"""NVlabs/edm2: learning rate, averages and their reconstruction."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case

from diffusion_jax.train import ema as averages
from diffusion_jax.train import posthoc
from diffusion_jax.train.optim import learning_rate

Found = dict[str, Any]


def rate_of(options: dict[str, Any], batch: int) -> dict[str, Any]:
    """learning_rate_schedule's options as those of `learning_rate`."""
    o = {"ref_lr": 0.01, "ref_batches": 70e3, "rampup_Mimg": 10} | options
    schedule = {"schedule": "inverse_sqrt", "ref": o["ref_batches"]} if o["ref_batches"] else {}
    return dict(lr=o["ref_lr"], warmup=o["rampup_Mimg"] * 1e6 / batch, **schedule)


def lr_schedule(case: Case) -> Found:
    """The learning rate at numbers of images."""
    found = {}
    for i, item in enumerate(case.config["items"]):
        rate = learning_rate(**rate_of(item, item["batch_size"]))
        found[f"lr_{i}"] = np.asarray(rate(case.inputs["f64_cur_nimg"] / item["batch_size"]), np.float64)
    return found


def ema(case: Case) -> Found:
    """Both kinds of average after every update of a moving weight, with batches of changing size."""
    c, inputs = case.config, case.inputs
    o = {"rampup_ratio": 0.09} | c["TraditionalEMA"]
    traditional = averages.HalfLife(o["halflife_Mimg"] * 1e6, o["rampup_ratio"], "after")
    profiles = [*(averages.Power(std) for std in c["stds"]), traditional]
    state, images, rows = [jnp.asarray(case.weights["weight"])] * len(profiles), 0, []
    for weight, batch in zip(inputs["weights"], inputs["batch_sizes"], strict=True):
        images += batch
        state = [averages.update(old, jnp.asarray(weight), p, images, batch) for old, p in zip(state, profiles, strict=True)]
        rows.append(state)
    found = np.array(rows)
    return {"power": found[:, :-1], "traditional": found[:, -1]}


def phema_math(case: Case) -> Found:
    """Exponents, decays, correlations, coefficients and profiles, in float64."""
    i, steps = case.inputs, case.config["profile_steps"]
    gammas = np.array([averages.exponent(std) for std in i["f64_stds"]])
    std = averages.relative_std(i["f64_exps"])
    with jax.enable_x64(True):
        beta = np.array([averages.Power(std).beta(i["f64_t_next"], i["f64_t_delta"]) for std in i["f64_stds"]])
    exps = np.vectorize(averages.exponent)
    found = dict(std_to_exp=gammas, exp_to_std=std, beta=beta, correlation=posthoc.correlation(
        np.array([[5], [8]]), exps([[0.05], [0.1]]), np.array([[3, 8, 9]]), exps([[0.1, 0.1, 0.2]])))
    for k in range(case.config["sets"]):
        ofs, stds, to_ofs, to_stds = (i[f"f64_{name}_{k}"] for name in ("in_ofs", "in_std", "out_ofs", "out_std"))
        to_ofs = np.broadcast_to(to_ofs, to_stds.shape)
        weights = posthoc.coefficients(ofs, stds, to_ofs, to_stds)
        unit = steps[k] / ofs.max()
        profiles = posthoc.response(ofs * unit, stds, steps[k])
        found |= {f"coefs_{k}": weights, f"profile_in_{k}": profiles, f"profile_reconstructed_{k}": weights.T @ profiles,
                  f"profile_target_{k}": posthoc.response(to_ofs * unit, to_stds, steps[k])}
    return found


def phema_reconstruct(case: Case) -> Found:
    """Snapshots of averages in float16, their combination, and the averages tracked directly."""
    c, weights = case.config, case.inputs["weights"]
    stds = [*c["in_std"], *c["out_std"]]
    profiles, state, snapshots, at = [averages.Power(std) for std in stds], [jnp.zeros_like(weights[0])] * len(stds), [], []
    for step, weight in enumerate(weights, 1):
        state = [averages.update(old, jnp.asarray(weight), profile, step) for old, profile in zip(state, profiles, strict=True)]
        if step % c["snapshot_every_steps"] == 0:
            snapshots += [np.asarray(average, np.float16) for average in state[: len(c["in_std"])]]
            at += [(step * c["batch_size"], std) for std in c["in_std"]]
    times, in_std = np.array(at).T
    coefs = posthoc.coefficients(times, in_std, [times[-1]] * len(c["out_std"]), c["out_std"])
    combined = np.array(posthoc.combine(snapshots, coefs), np.float16)
    return dict(snapshots=np.array(snapshots), snapshot_nimg=times.astype(np.int64), snapshot_std=in_std, coefs=coefs,
                reconstructed=combined, direct=np.array(state[len(c["in_std"]):]))
