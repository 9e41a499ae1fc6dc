"""NVlabs/edm2: the network and its parts. Official images are NCHW, ours NHWC."""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.edm2_training import ema, lr_schedule, phema_math, phema_reconstruct, rate_of  # noqa: F401
from golden_routines.replay import nchw, nhwc, replay, watched

from diffusion_jax.data import image
from diffusion_jax.data.latents import Whitening
from diffusion_jax.diffusion import guidance, samplers, times
from diffusion_jax.diffusion import losses as objectives
from diffusion_jax.diffusion.process import EDM
from diffusion_jax.diffusion.scales import EDM as Scale
from diffusion_jax.diffusion.scales import denoiser
from diffusion_jax.models.edm2 import Block, Step
from diffusion_jax.nn import mp
from diffusion_jax.nn.resample import downsample, upsample
from diffusion_jax.pretrained import edm2 as pretrained
from diffusion_jax.pretrained import rules
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.train.ema import Power, update
from diffusion_jax.train.optim import optimizer
from diffusion_jax.types import Array, Params

Found = dict[str, Any]
PROCESS = EDM()
KEY = jax.random.key(0)


def task_of(config: dict[str, Any], data: float | None = None) -> Diffusion:
    """The task of an official Precond's options; `data` is sigma_data of the loss."""
    model, cond, uncertainty = pretrained.modules(config)
    sigma_data, side = config.get("sigma_data", 0.5), config["img_resolution"]
    return Diffusion(
        model, cond, PROCESS, Scale(sigma_data), (side, side, config["img_channels"]), uncertainty=uncertainty, forced=True,
        weight=objectives.EDM(sigma_data if data is None else data),
    )


def raw_of(config: dict[str, Any], labels: np.ndarray | None) -> dict[str, Array]:
    """The raw condition: soft labels, one row of zeros for all images where none are given."""
    return {"label": jnp.zeros((1, config["label_dim"])) if labels is None else jnp.asarray(labels)}


def forward(case: Case) -> Found:
    """The output of every stage."""
    c, x = case.config, nhwc(case.inputs["x"])
    task, params, sigma = task_of(c), pretrained.convert(case.weights, c), case.inputs["sigma"]
    raw = raw_of(c, case.inputs.get("class_labels"))
    scale = task.scale(PROCESS, jnp.asarray(sigma))

    @jax.jit
    def run(params: Params, x: Array) -> tuple[Array, Array, Params, Array, Array]:
        vec = task.embed(params, raw)
        scaled = scale.in_[:, None, None, None] * x
        out, stages = task.model.apply({"params": params["model"]}, scaled, scale.noise, vec, capture_intermediates=True)
        logvar = task.uncertainty.apply({"params": params["uncertainty"]}, scale.noise)
        return out, task.denoiser(params)(x, jnp.asarray(sigma), vec, KEY).x0, stages["intermediates"], vec, logvar

    out, x0, stages, vec, logvar = jax.device_get(run(params, x))
    found = {"F_x": nchw(out), "D_x": nchw(x0), "logvar": logvar[:, None, None, None]}
    found |= {"emb_fourier": stages["emb_fourier"]["__call__"][0], "emb_noise": stages["emb_noise"]["__call__"][0]}
    found |= {"emb_label": vec["vec"]} if "vec" in vec else {}
    for name in case.want:
        if name.startswith(("enc_", "dec_")):
            ours = pretrained.rename(name.replace("_", ".", 1), c["img_resolution"])
            found[name] = nchw(stages[ours]["__call__"][0])
    return found


def primitives(case: Case) -> Found:
    """The functions of nn/mp.py and its layer with gradients, before and after forced normalisation."""
    inputs, found = case.inputs, {}
    x, small, b, wide = (nhwc(inputs[name]) for name in ("x", "x_small", "b", "b_wide"))
    for name, value in (("x", x), ("x_small", small)):
        for label, axis in (("", (1, 2, 3)), ("_dim1", 3), ("_dim23", (1, 2))):
            found[f"normalize{label}_{name}"] = nchw(mp.normalize(jnp.asarray(value), axis))
    found["mp_silu"] = nchw(mp.mp_silu(x))
    for name in case.want:
        kind, _, t = name.rpartition("_")
        if kind == "mp_sum":
            found[name] = nchw(mp.mp_sum(x, b, float(t)))
        elif kind == "mp_cat":
            found[name] = nchw(mp.mp_cat(jnp.asarray(x), jnp.asarray(wide), float(t)))
    for taps in case.config["filters"]:
        digits = "".join(map(str, taps))
        found |= {f"down_{digits}": nchw(downsample(jnp.asarray(x), taps)), f"up_{digits}": nchw(upsample(jnp.asarray(x), taps))}
    buffers = {name: case.weights[f"fourier/{name}"] for name in ("freqs", "phases")}
    found["fourier"] = mp.Fourier(len(buffers["freqs"])).apply({"params": buffers}, inputs["c_noise"])
    for name, layout in (("linear", rules.TRANSPOSE), ("conv1", rules.POINT), ("conv3", rules.CONV)):
        weight = case.weights[f"{name}/weight"]
        layer = mp.MPLayer(len(weight), 3 if name == "conv3" else 1)
        value, out = (inputs["v"], lambda y: y) if name == "linear" else (x, nchw)
        for mode in ("eval", "train"):
            params = {"weight": jnp.asarray(layout.ours(weight))}
            params = mp.normalize_weights(params) if mode == "train" else params

            def loss(params: Params, value: Array, gain: Array, layer: mp.MPLayer = layer) -> Array:
                return jnp.mean(0.5 * layer.apply({"params": params}, value, gain) ** 2)

            dw, dx, dgain = jax.jit(jax.grad(loss, (0, 1, 2)))(params, jnp.asarray(value), jnp.asarray(inputs["gain"]))
            found |= {
                f"{name}_{mode}/y": out(jax.jit(layer.apply)({"params": params}, value, inputs["gain"])),
                f"{name}_{mode}/weight_after": layout.official(params["weight"], weight.shape),
                f"{name}_{mode}/dweight": layout.official(dw["weight"], weight.shape),
                f"{name}_{mode}/dx": out(dx), f"{name}_{mode}/dgain": dgain,
            }
            if mode == "eval":
                found[f"{name}_eval/y_gain1"] = out(jax.jit(layer.apply)({"params": params}, value))
    return found


def blocks(case: Case) -> Found:
    """Every flavour of the block alone: outputs are named after the block and its input."""
    c, o, found = case.config, pretrained.DEFAULTS | case.config, {}
    for name in sorted({key.partition("/")[0] for key in case.weights}):
        encoder, kind = name.startswith("enc"), name.partition("_")[2]
        heads = c["out_channels"] // c["channels_per_head"] if "attn" in kind else 0
        block = Block(
            c["out_channels"], Step.of("G"), encoder, kind if kind in ("down", "up") else None, heads,
            (o["res_balance"], o["attn_balance"]), tuple(o["resample_filter"]), clip=o["clip_act"],
        )
        x = nhwc(case.inputs["x_out" if kind in ("down", "up") else "x_in"])
        init = jax.eval_shape(lambda block=block, x=x: block.init(KEY, x, case.inputs["emb"]))["params"]
        own = {key.partition("/")[2]: w for key, w in case.weights.items() if key.startswith(f"{name}/")}
        weights = {f"unet.enc_0_block0.{key}": w for key, w in own.items()}
        params = rules.convert(weights, pretrained.RULES, {"model": {"enc_0_block0": init}})["model"]["enc_0_block0"]
        for label, value in (("", x), ("_small", x * np.float32(3e-4))):
            found[name + label] = nchw(jax.jit(block.apply)({"params": params}, value, case.inputs["emb"]))
    return found


def losses(case: Case) -> Found:
    """The loss pixel by pixel, every gradient, and the weights after forced normalisation."""
    c, inputs = case.config["precond"], case.inputs
    o = {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5} | case.config["EDM2Loss"]
    task = task_of(c, o["sigma_data"])
    params = jax.jit(task.project)(pretrained.convert(case.weights, c))
    x0, eps = nhwc(inputs["images"]), nhwc(inputs["noise"])
    sigma = PROCESS.time(jnp.exp(o["P_mean"] + o["P_std"] * inputs["rnd_normal"][:, 0, 0, 0]))
    batch = {"image": x0} | raw_of(c, inputs.get("labels"))

    @jax.jit
    def run(params: Params) -> tuple:
        def mean(params: Params) -> Array:
            return jnp.mean(task.terms(params, batch, sigma, eps)["loss"]) * x0[0].size

        p = task.denoiser(params)(x0 + sigma[:, None, None, None] * eps, sigma, task.embed(params, batch), KEY)
        return *jax.value_and_grad(mean)(params), p

    scalar, grads, p = jax.device_get(run(params))
    params = jax.device_get(params)
    scale = task.scale(PROCESS, sigma)
    u = task.uncertainty.apply({"params": params["uncertainty"]}, scale.noise)
    weight = task.weight(PROCESS, sigma, scale) / scale.out**2
    u, weight = u[:, None, None, None], weight[:, None, None, None]
    pixels = weight * jnp.exp(-u) * (p.x0 - x0) ** 2 + u
    found = dict(loss=nchw(pixels), sigma=sigma[:, None, None, None], D_x=nchw(p.x0), logvar=u, loss_scalar=scalar)
    for name, tree in (("grad", grads), ("weight_after", params)):
        found |= {f"{name}/{key}": value for key, value in official(case, tree, c).items()}
    return found


def official(case: Case, tree: Params, config: dict[str, Any]) -> dict[str, Array]:
    """Parameters or gradients under their official names, without the buffers."""
    shapes = {key: value.shape for key, value in case.weights.items()}
    found = pretrained.revert(tree, shapes, config["img_resolution"])
    return {key: value for key, value in found.items() if "fourier" not in key}


def train_steps(case: Case) -> Found:
    """Loss, Adam, learning rate and averages over some steps; weights are normalised before each gradient."""
    c, inputs = case.config, case.inputs
    task, stds = task_of(c["precond"]), c["stds"]
    params = pretrained.convert(case.weights, c["precond"])
    size = c["batch_size"]
    betas = dict(zip(("b1", "b2"), c["adam"]["betas"], strict=True))
    adam = optimizer("adam", **rate_of(c["lr_kwargs"], size), **betas, eps=c["adam"]["eps"])

    @jax.jit
    def step(params: Params, averages: list, state: Any, number: Array, batch: dict, sigma: Array, eps: Array):
        def mean(params: Params) -> Array:
            return jnp.mean(task.terms(params, batch, sigma, eps)["loss"]) * eps[0].size

        params = task.project(params)
        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = adam.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return params, [update(a, params, Power(std), number) for a, std in zip(averages, stds, strict=True)], state, loss

    averages, state, found, rates = [params] * len(stds), adam.init(params), [], []
    for number, (x0, draw, noise) in enumerate(zip(*(inputs[name] for name in ("images", "rnd_normal", "noise")), strict=True)):
        labels = inputs["labels"][number] if "labels" in inputs else None
        batch = {"image": nhwc(x0)} | raw_of(c["precond"], labels)
        sigma = jnp.exp(-0.4 + draw[:, 0, 0, 0])
        params, averages, state, loss = step(params, averages, state, number + 1, batch, sigma, nhwc(noise))
        found.append(loss)
        rates.append(state[-1].learning_rate)
    out = {"loss_scalar": np.stack(found), "lr": np.array(rates, np.float64)}
    out |= {f"after/{key}": value for key, value in official(case, params, c["precond"]).items()}
    for std, tree in zip(stds, averages, strict=True):
        out |= {f"ema-{std:.3f}/{key}": value for key, value in official(case, tree, c["precond"]).items()}
    return out


def trajectory(case: Case) -> Found:
    """Heun's sampler with every call of the networks, a closed-form one or real ones, guided or not."""
    c, inputs = case.config, case.inputs
    o = {"num_steps": 32, "sigma_min": 0.002, "sigma_max": 80, "rho": 7, "guidance": 1} | c["sampler"]
    calls, weak_calls = [], []
    denoise, cond = network(case, "net")
    denoise = watched(denoise, calls)
    if o["guidance"] != 1:
        weak, weak_cond = network(case, "gnet")
        weak = watched(weak, weak_calls)
        denoise = guidance.Autoguidance(o["guidance"], lambda x, t, _, key: weak(x, t, weak_cond, key))(denoise)
    grid = times.karras(PROCESS, o["num_steps"], o["sigma_min"], o["sigma_max"], o["rho"])
    names = {"S_churn": "s_churn", "S_min": "s_min", "S_max": "s_max", "S_noise": "s_noise"}
    churn = {ours: float(o[name]) for name, ours in names.items() if name in o}
    stored = iter(nhwc(inputs["churn_noise"]) if churn.get("s_churn") else [])
    inside = [churn.get("s_min", 0) <= t <= churn.get("s_max", np.inf) for t in grid[:-1]]       # the official code draws there
    noise = [next(stored) if drawn else np.zeros_like(nhwc(inputs["noise"])) for drawn in inside if churn.get("s_churn")]
    sampler = samplers.edm(PROCESS, **churn, noise=replay(noise))
    x = jax.jit(lambda x: samplers.sample(denoise, sampler, x, grid, cond, KEY))(nhwc(inputs["noise"]) * jnp.asarray(grid[0]))
    jax.effects_barrier()
    xs, sigmas, found = (np.stack([call[i] for call in calls]) for i in range(3))
    out = dict(x=nchw(x), calls_x=nchw(xs), calls_sigma=sigmas, calls_D=nchw(found), t_steps=grid)
    return out | ({"calls_Dref": nchw(np.stack([call[2] for call in weak_calls]))} if weak_calls else {})


def network(case: Case, name: str) -> tuple[Any, dict[str, Array]]:
    """(denoiser, condition): of a closed-form Gaussian, or of the Precond under `name`."""
    options, inputs = case.config[name], case.inputs
    if isinstance(options, str):
        mu, s2 = nhwc(inputs["mu"])[None], inputs["s2"]

        def gaussian(x: Array, noise: Array, cond: dict) -> Array:
            sigma2 = jnp.exp(8 * noise)[:, None, None, None]
            return (s2 * x + sigma2 * mu) / (s2 + sigma2)

        return denoiser(gaussian, PROCESS, Direct()), {}
    weights = {key.partition("/")[2]: w for key, w in case.weights.items() if key.startswith(f"{name}/")}
    params, task = pretrained.convert(weights, options), task_of(options)
    return task.denoiser(params), task.embed(params, raw_of(options, inputs.get("labels")))


class Direct:
    """A network that puts out x0, and is told ln(sigma) / 4."""

    def __call__(self, process: EDM, t: Array) -> Any:
        return Scale()(process, t)._replace(in_=jnp.ones_like(t), skip=jnp.zeros_like(t), out=jnp.ones_like(t))


def encoders(case: Case) -> Found:
    """The scaling of pixels, and that of latents."""
    c, inputs = case.config, case.inputs
    white = Whitening(tuple(c["raw_mean"]), tuple(c["raw_std"]), c["final_mean"], c["final_std"])
    mean, std = np.split(nhwc(inputs["raw_latents"]), 2, axis=-1)
    return dict(
        rgb_encoded=nchw(image.to_unit(nhwc(inputs["rgb"]))), rgb_decoded=nchw(image.to_uint8(nhwc(inputs["img"]))),
        latents=nchw(white.encode(mean, std, nhwc(inputs["noise"]))), scale=white.scale, bias=white.bias,
        vae_decoder_input=nchw(white.decode(nhwc(inputs["final_latents"]))),
    )


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only, from which the official options are read."""
    found = {}
    for file, shapes in case.doc["keys"].items():
        structs = {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in shapes.items()}
        read = pretrained.options(structs)
        assert {key: read[key] for key in case.config if key in read} == {key: v for key, v in case.config.items() if key in read}
        params = jax.eval_shape(partial(pretrained.convert, official=read), structs)
        parts = {"emb_fourier": params["model"]["emb_fourier"], "fourier": params["uncertainty"]["fourier"]}
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert case.doc["num_parameters"] in (count, count - sum(leaf.size for leaf in jax.tree.leaves(parts)))
        back = jax.eval_shape(partial(pretrained.revert, shapes=shapes, side=read["img_resolution"]), params)
        found |= {f"{file}/{key}": leaf.shape for key, leaf in back.items()}
    return found
