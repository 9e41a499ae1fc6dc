"""Stable Diffusion 3 in diffusers' form. Official images are NCHW, ours NHWC."""
from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.equal_blocks import thinned
from golden_routines.replay import nchw, nhwc

from diffusion_jax.build import build
from diffusion_jax.diffusion import guidance, samplers, scales
from diffusion_jax.diffusion.flow_times import flow_match
from diffusion_jax.diffusion.process import Flow, noised
from diffusion_jax.diffusion.skip_layers import Skip, skip_layers
from diffusion_jax.models.mmdit import Joint, MMDiT, Seen, Streams
from diffusion_jax.models.sd3_text import SD3Text
from diffusion_jax.pipelines import spelling
from diffusion_jax.pretrained import clip, rules, sd3_mmdit, sd3_scheduler, sd3_vae, t5
from diffusion_jax.pretrained import vae as pretrained_vae
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.types import Array, Cond, Denoiser, Params

Found = dict[str, Any]


def network(case: Case) -> tuple[MMDiT, Params, float]:
    """The transformer of a case, its parameters, and the factor of its table of positions: 1 but in low-variance cases."""
    model = build(sd3_mmdit.diffusers_config(case.config["kwargs"]))
    table, weights = case.weights[sd3_mmdit.HF_POSITIONS], dict(case.weights)
    plain = sd3_mmdit.position_table(model)
    factor = float(np.sum(table * plain) / np.sum(plain * plain))
    np.testing.assert_allclose(table, factor * plain, atol=1e-6)
    weights[sd3_mmdit.HF_POSITIONS] = table if factor > 0.5 else plain
    return model, sd3_mmdit.convert(weights, model), factor if factor < 0.5 else 1.0


def scaled(factor: float):
    """A context in which the positions of every MMDiT are multiplied."""
    positions = MMDiT.positions
    return mock.patch.object(MMDiT, "positions", lambda self, h, w: factor * positions(self, h, w))


def cond_of(case: Case) -> Cond:
    """What it sees."""
    return {"seq": case.inputs["encoder_hidden_states"], "vec": case.inputs["pooled_projections"]}


def block(case: Case) -> Found:
    """One block alone."""
    kwargs = case.config["kwargs"]
    module = Joint(kwargs["num_attention_heads"], qk_norm="rms" if kwargs["qk_norm"] else "", dual=kwargs["use_dual_attention"],
                   last=kwargs["context_pre_only"])
    streams = Streams(case.inputs["hidden_states"], case.inputs["encoder_hidden_states"])
    seen = Seen(case.inputs["temb"], None)
    weights = sd3_mmdit.original({f"transformer_blocks.0.{key}": value for key, value in case.weights.items()})
    named = {name: weights[key] for name, key in sd3_mmdit.grouped(weights).items()}
    kind = next(iter(named)).partition(".")[0]
    target = jax.eval_shape(module.init, jax.random.key(0), streams, seen)["params"]
    tree = rules.convert(named, sd3_mmdit.RULES, {kind: target if kind == "last" else {"blocks_0": target}})[kind]
    out = jax.jit(module.apply)({"params": tree if kind == "last" else tree["blocks_0"]}, streams, seen)
    return {"hidden_states": out.x, "encoder_hidden_states": out.c}


def embedding(case: Case) -> Found:
    """What goes into the blocks."""
    model = build(sd3_mmdit.diffusers_config(case.config["kwargs"]))
    weights = sd3_mmdit.original(case.weights)
    weights.pop(sd3_mmdit.POSITIONS)
    cond, x = cond_of(case), nhwc(case.inputs["hidden_states"])
    whole = sd3_mmdit.shapes(model, cond["seq"].shape[-1], cond["vec"].shape[-1])
    target = {name: whole[name] for name in ("patch", "context", "time", "pooled")}
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), whole)
    params = blank | rules.convert(weights, sd3_mmdit.RULES, target)
    run = jax.jit(partial(model.apply, capture_intermediates=True))
    _, seen = run({"params": params}, x, case.inputs["timestep"], cond)
    parts = {name: value["__call__"][0] for name, value in seen["intermediates"].items() if "__call__" in value}
    positions = model.positions(x.shape[1] // model.patch, x.shape[2] // model.patch)
    return {"tokens": parts["patch"] + positions[None], "pos_embed": positions[None], "context": parts["context"],
            "temb": parts["time"] + parts["pooled"]}


def transformer(case: Case) -> Found:
    """The whole network, with some of its blocks passed over where the case says so."""
    model, params, factor = network(case)
    model = model.clone(skip=tuple(case.config["run"].get("skip_layers", ())))
    with scaled(factor):
        out = jax.jit(model.apply)({"params": params}, nhwc(case.inputs["hidden_states"]), case.inputs["timestep"], cond_of(case))
    return {"out": nchw(out)}


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only, with one block of each kind."""
    found = {}
    for name, official in case.doc["keys"].items():
        prefix = {"transformer": "model.diffusion_model.", "vae": "first_stage_model."}.get(name, "")
        bare = {key.removeprefix(prefix): tuple(shape) for key, shape in official.items()}
        few, places = thinned(bare, r"(.*\.layers\.|encoder\.block\.|(?:joint|transformer)_blocks\.)(\d+)(\..+)")
        back = jax.eval_shape(partial(KEYS[name], case, whole=structs(bare)), structs(few))
        assert set(back) == set(few)
        found |= {f"{name}/{key}": back[places[key.removeprefix(prefix)]].shape for key in official}
    return found


def structs(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arrays without numbers."""
    return {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}


def sizes(weights: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape."""
    return {key: value.shape for key, value in weights.items()}


def _transformer(case: Case, few: dict[str, Any], *, whole: dict[str, Any]) -> dict[str, Any]:
    def plain(weights: dict[str, Any]) -> dict[str, Any]:
        return sd3_mmdit.original(weights) if sd3_mmdit.is_diffusers(weights) else weights

    spec = sd3_mmdit.diffusers_config(case.doc["transformer_config"])
    found = sd3_mmdit.published(plain(whole) if not sd3_mmdit.is_diffusers(whole) else plain(few))
    depths = {} if not sd3_mmdit.is_diffusers(whole) else {key: found[key] for key in ("depth", "dual")}
    assert found == spec | {"mlp_ratio": 4.0} | depths
    model = build(sd3_mmdit.published(plain(few)))
    return sd3_mmdit.revert(sd3_mmdit.convert(few, model), sizes(few), model)


def _vae(case: Case, few: dict[str, Any], *, whole: dict[str, Any]) -> dict[str, Any]:
    spec = sd3_vae.published(pretrained_vae.compvis(whole))
    if config := case.doc.get("vae_config"):
        assert spec | sd3_vae.diffusers_config(config) == spec | {"groups": 32}
    return sd3_vae.revert(sd3_vae.convert(few, build(spec)), sizes(few))


def _text(case: Case, few: dict[str, Any], *, whole: dict[str, Any], config: str) -> dict[str, Any]:
    assert clip.towers(whole, case.doc[config])["text"]["layers"] == case.doc[config]["num_hidden_layers"]
    tower = build(clip.towers(few, case.doc[config])["text"])
    return clip.revert(clip.convert(few, tower), sizes(few), tower)


def _t5(case: Case, few: dict[str, Any], *, whole: dict[str, Any]) -> dict[str, Any]:
    return t5.revert(t5.convert(few, build(t5.published(few))), sizes(few))


KEYS = {
    "transformer": _transformer, "vae": _vae, "text_encoder": partial(_text, config="text_config"),
    "text_encoder_2": partial(_text, config="text_2_config"), "text_encoder_3": _t5,
}


def vae(case: Case) -> Found:
    """The autoencoder of 16 channels, whose latents are shifted and scaled."""
    kwargs = case.config["kwargs"]
    model = build(sd3_vae.diffusers_config(kwargs))
    params = {"model": sd3_vae.convert(case.weights, model)}
    task = Autoencoder(model, case.inputs["image"].shape[1:], **sd3_vae.latents(kwargs))

    @jax.jit
    def run(params: Params, image: Array, noise: Array, z: Array) -> Found:
        posterior = task.posterior(params, image)
        found = {"mean": posterior.mean, "logvar": posterior.logvar, "latents": task.encode(params, image, noise)}
        return found | {"decoded": task.decode(params, z)}

    found = run(params, *(nhwc(case.inputs[name]) for name in ("image", "noise", "z")))
    return {name: nchw(value) for name, value in found.items()}


def text(case: Case) -> Found:
    """One text through three encoders, through two, and with a layer less of CLIP."""
    weights = {name: {key.removeprefix(f"{name}/"): value for key, value in case.weights.items() if key.startswith(f"{name}/")}
               for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    names = "text_encoder", "text_encoder_2"
    towers = [build(clip.towers(weights[name], case.config[name])["text"]) for name in names]
    encoder = build(t5.config(case.config["text_encoder_3"]))
    params = {ours: clip.convert(weights[name], tower)
              for ours, name, tower in zip(("clip_l", "clip_g"), names, towers, strict=True)}
    params["t5"] = t5.convert(weights["text_encoder_3"], encoder)
    run = case.config["run"]
    module = SD3Text(*towers, t5=encoder, width=encoder.width, context=run["clip_len"], t5_context=run["t5_len"])
    ids = [case.inputs[name].astype(np.int32) for name in ("input_ids", "input_ids_2", "input_ids_3")]

    def seen(module: SD3Text, *parts: np.ndarray) -> Cond:
        used = {name: value for name, value in params.items() if getattr(module, name) is not None}
        return module.apply({"params": used}, {"tokens": np.concatenate(parts, axis=1)})

    whole, skipped, without = jax.jit(lambda: (seen(module, *ids), seen(module.clone(clip_skip=1), *ids),
                                               seen(module.clone(t5=None), *ids[:2])))()
    return {"prompt_embeds": whole["seq"], "pooled_prompt_embeds": whole["vec"], "prompt_embeds_clip_skip_1": skipped["seq"],
            "prompt_embeds_without_t5": without["seq"]}


def schedule(case: Case) -> Found:
    """Noise levels, times shown to the network, and noising under every option of the scheduler."""
    found = {}
    for i, call in enumerate(case.config["calls"]):
        options = {"_class_name": sd3_scheduler.KIND} | call["scheduler"]
        dynamic = options.pop("use_dynamic_shifting", False)
        if dynamic:
            kind = options.pop("time_shift_type", "exponential")
            options["shift"] = float(np.exp(call["mu"])) if kind == "exponential" else call["mu"]
        scheduler = sd3_scheduler.read(options)
        process = build(scheduler.process)
        times = spelt(scheduler.sample["times"], process, call["steps"], dynamic)
        x0, noise = jnp.asarray(case.inputs["x0"]), jnp.asarray(case.inputs["noise"])
        found |= {f"sigmas_{i}": process.sigma(times), f"timesteps_{i}": process.label(times[:-1]),
                  f"noised_{i}": noised(process, x0, jnp.asarray(times[call["at"]]), noise)}
    return found


def spelt(times: str, process: Flow, steps: int, dynamic: bool = False) -> np.ndarray:
    """The times that a page names."""
    _, options = spelling.parse(times)
    return flow_match(process, steps, **options, dynamic=dynamic)


def trajectory(case: Case) -> Found:
    """The whole pipeline but for texts and pictures: guidance, with blocks passed over where the case says so, and Euler."""
    model, params, _ = network(case)
    run, inputs = case.config["run"], case.inputs
    scheduler = sd3_scheduler.read({"_class_name": sd3_scheduler.KIND} | case.config["scheduler"]["kwargs"])
    process = build(scheduler.process)
    times = spelt(scheduler.sample["times"], process, run["steps"])
    cond, null = ({"seq": jnp.asarray(inputs[f"{name}prompt_embeds"]), "vec": jnp.asarray(inputs[f"{name}pooled_prompt_embeds"])}
                  for name in ("", "negative_"))

    def denoiser(model: MMDiT) -> Denoiser:
        return scales.denoiser(lambda x, t, cond: model.apply({"params": params}, x, t, cond), process, scales.Velocity())

    denoise = denoiser(model)
    if run["guidance_scale"] > 1:
        denoise = guidance.CFG(run["guidance_scale"], null)(denoise)
    if run.get("skip_guidance_layers"):
        options = {name: run[f"skip_layer_guidance_{name}"] for name in ("scale", "start", "stop")}
        skip = Skip(tuple(run["skip_guidance_layers"]), **options)
        without = denoiser(model.clone(skip=skip.layers))
        denoise = skip_layers(skip, skip.scale, without, times, denoiser(model))(denoise)
    found = {"sigmas": process.sigma(times)}
    x = nhwc(inputs["init_latents"] if "strength" in run else inputs["latents"])
    if "strength" in run:
        wanted = min(run["steps"] * run["strength"], run["steps"])
        times = times[int(max(run["steps"] - wanted, 0)) :]
        x = noised(process, jnp.asarray(x), jnp.asarray(times[0]), jnp.asarray(nhwc(inputs["noise"])))
        found["noised"] = nchw(x)
    walk = jax.jit(lambda x: samplers.sample(denoise, samplers.euler(process), x, times, cond, jax.random.key(0), keep=True))
    return found | {"trajectory": nchw(walk(jnp.asarray(x))), "timesteps": process.label(times[:-1])}


DENSITIES = {
    "logit_normal": lambda call, draw: jax.nn.sigmoid(call["logit_mean"] + call["logit_std"] * draw["normal"]),
    "mode": lambda call, draw: 1 - draw["uniform"] - call["mode_scale"] * (
        jnp.cos(jnp.pi * draw["uniform"] / 2) ** 2 - 1 + draw["uniform"]),
}
"""u of diffusers' training helpers, of which the package has the first, drawn by itself."""
WEIGHTINGS = {
    "sigma_sqrt": lambda sigma: sigma**-2.0,
    "cosmap": lambda sigma: 2 / (jnp.pi * (1 - 2 * sigma + 2 * sigma**2)),
}
"""Weights of those helpers, of which the package has none but 1."""


def training(case: Case) -> Found:
    """Noising, what the network is compared with, and what it is shown, at the times that diffusers draws from its table."""
    process, scale, inputs = Flow(case.config["scheduler"]["shift"]), scales.Velocity(), case.inputs
    x0, noise, out = (jnp.asarray(nhwc(inputs[name])) for name in ("x0", "noise", "prediction"))
    found = {}
    for i, call in enumerate(case.config["calls"]):
        u = DENSITIES.get(call["density"], lambda call, draw: draw["uniform"])(call, inputs)
        index = jnp.floor(1000 * jnp.asarray(u)).astype(int)               # from the noisy end of the table
        t = (1000 - index) / 1000
        sigma = process.sigma(t)
        xt = noised(process, x0, t, noise)
        weight = WEIGHTINGS.get(call["weighting"], jnp.ones_like)(sigma)
        if call["precondition"]:
            error = scales.to_x0(scale(process, t), xt, out) - x0
        else:
            error = out - scales.target(process, scale, x0, xt, t)
        loss = jnp.mean(weight[:, None, None, None] * error**2, axis=(1, 2, 3))
        found |= {f"u_{i}": u, f"index_{i}": index, f"sigma_{i}": sigma, f"timestep_{i}": process.label(t),
                  f"noised_{i}": nchw(xt), f"weight_{i}": weight, f"loss_{i}": loss}
    return found
