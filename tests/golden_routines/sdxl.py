"""Stable Diffusion XL in diffusers' form. Official images are NCHW, ours NHWC."""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.replay import nchw, nhwc

from diffusion_jax.build import build
from diffusion_jax.diffusion import guidance, samplers, scales
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.sdxl_text import XLText
from diffusion_jax.models.unet_blocks import TimeEmbedding
from diffusion_jax.pipelines.recipe import Recipe
from diffusion_jax.pretrained import clip, ldm_unet, rules, schedulers, sd, sdxl, vae
from diffusion_jax.types import Array, Cond, Params

Found = dict[str, Any]
TOWER = TextTower(None, 8, 4, 8, 1, 1)
"""Of a conditioner whose texts are given."""


def embedding(case: Case, width: int, waves: int, sizes: int, added: dict[str, Any]) -> tuple[XLText, Params]:
    """The conditioner of a case, without its texts, and the parameters of its two layers."""
    module = XLText(TOWER, width=4 * width, waves=waves, sizes=(0.0,) * sizes)
    return module, sdxl.embedding(added, width)


def vec_of(module: XLText, params: Params, pooled: Array, sizes: Array) -> Array:
    """(2) of a pooled text that is given."""
    return module.apply({"params": params}, jnp.asarray(pooled), sizes, method=XLText.vec)


def network(case: Case) -> tuple[Any, Params, Any]:
    """The UNet of a case, its parameters, and (pooled, sizes) -> vec."""
    spec, waves = sdxl.diffusers_config(case.config["kwargs"])
    plain, added = sdxl.split(case.weights)
    model = build(spec)
    room = case.config["kwargs"]["projection_class_embeddings_input_dim"]
    module, layers = embedding(case, spec["width"], waves, 0, added)
    assert added[f"{sdxl.ADDED}1.weight"].shape[1] == room
    return model, ldm_unet.convert(plain, model)["model"], partial(vec_of, module, layers)


def unet(case: Case) -> Found:
    """The whole network."""
    model, params, vec = network(case)
    inputs = case.inputs
    cond = {"seq": inputs["encoder_hidden_states"], "vec": vec(inputs["text_embeds"], jnp.asarray(inputs["time_ids"]))}
    return {"out": nchw(jax.jit(model.apply)({"params": params}, nhwc(inputs["sample"]), inputs["timestep"], cond))}


def micro_conditions(case: Case) -> Found:
    """The sizes as waves, embedded, and on top of the embedded time."""
    kwargs, inputs = case.config["kwargs"], case.inputs
    width = kwargs["block_out_channels"][0]
    plain, added = sdxl.split(case.weights)
    module, layers = embedding(case, width, kwargs["addition_time_embed_dim"], inputs["time_ids"].shape[1], added)
    sizes = jnp.asarray(inputs["time_ids"], jnp.float32)
    vec = vec_of(module, layers, inputs["text_embeds"], sizes)
    time = {f"fc{i}": {"kernel": plain[f"time_embedding.linear_{i}.weight"].T, "bias": plain[f"time_embedding.linear_{i}.bias"]}
            for i in (1, 2)}
    return {"waves": module.embedded(sizes), "add_embedding": vec,
            "emb": vec + TimeEmbedding(width).apply({"params": time}, jnp.asarray(inputs["timestep"]))}


def text(case: Case) -> Found:
    """A text through two encoders, or the second alone, and with a layer less of both."""
    run, inputs = case.config["run"], case.inputs
    names = ("text_encoder_2",) if run.get("only_second") else ("text_encoder", "text_encoder_2")
    towers, params = {}, {}
    for ours, name in zip(("clip_g",) if len(names) == 1 else ("clip_l", "clip_g"), names, strict=True):
        weights = {key.removeprefix(f"{name}/"): value for key, value in case.weights.items() if key.startswith(f"{name}/")}
        tower = build(clip.towers(weights, case.config[name])["text"])
        towers[ours], params[ours] = tower, clip.convert(weights, tower)
    module = XLText(**towers, context=inputs["input_ids_2"].shape[1])
    tokens = np.concatenate([inputs[name] for name in ("input_ids", "input_ids_2") if name in inputs], axis=1)

    def seen(module: XLText) -> tuple[Array, Array]:
        return jax.jit(lambda tokens: module.apply({"params": params}, tokens, method=XLText.texts))(tokens.astype(np.int32))

    seq, pooled = seen(module)
    return {"prompt_embeds": seq, "pooled_prompt_embeds": pooled, "prompt_embeds_clip_skip_1": seen(module.clone(clip_skip=1))[0]}


def trajectory(case: Case) -> Found:
    """The whole pipeline but for texts and pictures: guidance and Euler, whose state is x / alpha."""
    model, params, vec = network(case)
    run, inputs = case.config["run"], case.inputs
    options = case.config["scheduler"]
    ours = schedulers.read({"_class_name": f"{options['class']}Scheduler", **options["kwargs"]})
    process, scale = build(ours.process), scales.Eps()
    times = Recipe.of(ours.sample | {"steps": run["steps"]}).grid(process)
    ids = [jnp.asarray(told(run, negative), jnp.float32)[None] for negative in (True, False)]
    null, cond = (seen(inputs, name, row, vec) for name, row in zip(("negative_", ""), ids, strict=True))
    mix = guidance.Mix(phi=run["guidance_rescale"], space=(process, scale))
    denoise = guidance.CFG(run["guidance_scale"], null, mix)(scales.denoiser(
        lambda x, t, cond: model.apply({"params": params}, x, t, cond), process, scale))
    y = 1 / np.asarray(process.alpha(times))
    sigmas = np.asarray(process.sigma(times)) * y
    if "strength" in run:
        times = times[run["steps"] - min(int(run["steps"] * run["strength"]), run["steps"]) :]
        x = inputs["init_latents"] / y[-len(times)] + inputs["noise"] * np.asarray(process.sigma(times[0]))
    else:
        x = inputs["latents"]                                                # noise * sqrt(sigma^2 + 1), whose x it is
    walk = jax.jit(lambda x: samplers.sample(denoise, samplers.euler(process), x, times, cond, jax.random.key(0), keep=True))
    path = walk(jnp.asarray(nhwc(x)))
    return {"trajectory": nchw(path * y[len(y) - len(path) :, None, None, None, None]), "timesteps": process.label(times[:-1]),
            "sigmas": sigmas, "time_ids": jnp.concatenate(ids)}


def told(run: dict[str, Any], negative: bool) -> tuple[float, ...]:
    """The sizes of a run, or those that it is led away from, which are the same where it names none."""
    sizes = run["sizes"]
    names = ["original_size", "crops_coords_top_left", *(() if "aesthetic_score" in run else ("target_size",))]
    of = [sizes.get(f"negative_{name}" if negative else name, sizes[name]) for name in names]
    score = (run["negative_aesthetic_score" if negative else "aesthetic_score"],) if "aesthetic_score" in run else ()
    return (*(float(v) for pair in of for v in pair), *score)


def seen(inputs: dict[str, np.ndarray], name: str, sizes: Array, vec: Any) -> Cond:
    """A condition of a text that is given."""
    seq, pooled = (jnp.asarray(inputs[f"{name}{part}"]) for part in ("prompt_embeds", "pooled_prompt_embeds"))
    return {"seq": seq, "vec": vec(pooled, jnp.broadcast_to(sizes, (len(pooled), sizes.shape[1])))}


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only."""
    found = {}
    for name, official in case.doc["keys"].items():
        prefix = {"unet": sdxl.NETWORK, "vae": sdxl.FIRST, "text_encoder": sdxl.SMALL, "text_encoder_2": sdxl.LARGE}[name]
        bare = {key.removeprefix(prefix): tuple(shape) for key, shape in official.items()}
        back = KEYS[name](case, {key: shape for key, shape in bare.items() if key != "logit_scale"})
        back |= {"logit_scale": ()} if "logit_scale" in bare else {}                       # which nothing reads
        found |= {f"{name}/{key}": np.array(back[key.removeprefix(prefix)], np.int64) for key in official}
        assert len(back) == len(official)
    return found


def _unet(case: Case, official: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    plain, added = sdxl.split(rules.structs(official))
    spec = {"heads": 1, "head_channels": 64}
    if "conv_in.weight" in plain:
        spec, waves = sdxl.diffusers_config(case.doc["unet_config"])
        assert waves == sdxl.WAVES and spec["head_channels"] == 64
    else:
        spec = sdxl.published(plain)
        assert spec["transformer"] == (1, 2, 10) and spec["attend"] == (2, 4) and spec["depth"] == 2
    model = build(spec)

    def there_and_back() -> Params:
        weights = {key: jnp.zeros(shape.shape) for key, shape in (plain | added).items()}
        plain_weights, added_weights = sdxl.split(weights)
        params = ldm_unet.convert(plain_weights, model)
        layers = sdxl.embedding(added_weights, model.width)
        names = ("add_embedding.linear_1", "add_embedding.linear_2") if "conv_in.weight" in plain else (
            "label_emb.0.0", "label_emb.0.2")
        shapes = {key: value.shape for key, value in plain.items()}
        return ldm_unet.revert(params, shapes, model) | sdxl.embedding_back(layers, names)

    return {key: value.shape for key, value in jax.eval_shape(there_and_back).items()}


def _vae(case: Case, official: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    config = case.doc.get("vae_config")
    spec = vae.diffusers_config(config) if config else vae.published(rules.structs(official))
    model = build(spec)

    def there_and_back() -> Params:
        return vae.revert(vae.convert({key: jnp.zeros(shape) for key, shape in official.items()}, model), official)

    return {key: value.shape for key, value in jax.eval_shape(there_and_back).items()}


def _text(case: Case, official: dict[str, tuple[int, ...]], config: str) -> dict[str, tuple[int, ...]]:
    weights = sd.prefixed(rules.structs(official))
    told = case.doc.get(config) or {"hidden_act": "quick_gelu", "num_attention_heads": 12, "eos_token_id": 2}
    if "positional_embedding" in official:
        told = {"vision_cfg": {}, "text_cfg": {"heads": 20}}
    tower = build(clip.towers(weights, told)["text"])

    def there_and_back() -> Params:
        return clip.revert(clip.convert({key: jnp.zeros(shape) for key, shape in official.items()}, tower), official, tower)

    return {key: value.shape for key, value in jax.eval_shape(there_and_back).items()}


KEYS = {
    "unet": _unet, "vae": _vae, "text_encoder": partial(_text, config="text_config"),
    "text_encoder_2": partial(_text, config="text_2_config"),
}
