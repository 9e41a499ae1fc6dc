"""openai/glide-text2im: networks, loops, the noised CLIP, tokenizer, resizers. Official images are NCHW."""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.adm_diffusion import noted, spaced
from golden_routines.clip import merges, rows_of
from golden_routines.dit_diffusion import KEY, Spaced, guided, sampled, tables
from golden_routines.replay import nchw, nhwc

from diffusion_jax.build import build
from diffusion_jax.data.glide_bpe import GlideBPE
from diffusion_jax.data.image import to_uint8, to_unit
from diffusion_jax.data.resize import antialiased, bicubic
from diffusion_jax.diffusion import guidance, process, samplers, scales
from diffusion_jax.diffusion.times import space
from diffusion_jax.models.clip import CLIP, unit
from diffusion_jax.nn import resample
from diffusion_jax.pretrained import glide as pretrained
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.types import Array, Cond, Denoiser, Guidance, Params

Found = dict[str, Any]


def under(prefix: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those weights whose keys begin with a prefix, without it."""
    return {key.removeprefix(prefix): w for key, w in weights.items() if key.startswith(prefix)}


class Net:
    """A Text2ImUNet and its relatives.

    Attributes: model, cond, params.
    """

    def __init__(self, spec: dict[str, Any], weights: dict[str, np.ndarray]):
        self.model, self.cond = map(build, pretrained.config({**spec["kwargs"], "class": spec["class"]}))
        self.params = pretrained.convert(weights, self.model, self.cond)

    def embed(self, params: Params, inputs: dict[str, Array]) -> Cond:
        """What the UNet sees of a case's inputs; images that are not given are black and unknown."""
        x = nhwc(inputs.get("x", inputs.get("x_T", inputs.get("x0"))))
        raw = {"tokens": inputs.get("tokens"), "tokens_mask": inputs.get("mask")}
        raw["known"] = nhwc(inputs["inpaint_image"]) if "inpaint_image" in inputs else 0 * x
        raw["mask"] = nhwc(inputs["inpaint_mask"]) if "inpaint_mask" in inputs else 0 * x[..., :1]
        raw |= {"low_res": nhwc(inputs["low_res"])} if "low_res" in inputs else {}
        raw = {key: jnp.asarray(value) for key, value in raw.items() if value is not None}
        return self.cond.apply({"params": params["cond"]}, raw)

    def network(self, params: Params):
        """x, noise, cond -> output."""
        return lambda x, noise, cond: self.model.apply({"params": params["model"]}, x, noise, cond)


def unet(case: Case) -> Found:
    """The output, and what the text transformer finds."""
    net = Net(case.config, case.weights)

    @jax.jit
    def run(params: Params, inputs: dict[str, Array]) -> Found:
        cond = net.embed(params, inputs)
        found = dict(out=nchw(net.network(params)(nhwc(inputs["x"]), inputs["timesteps"], cond)))
        if "seq" in cond:
            found |= dict(xf_proj=cond["vec"], xf_out=cond["seq"].transpose(0, 2, 1))
        return found

    return run(net.params, case.inputs)


def clip_of(c: dict[str, Any], image: dict[str, Any], text: dict[str, Any], scale: float) -> tuple[CLIP, Params]:
    """The noised CLIP and its official weights."""
    model = build(pretrained.noised_config(c["image"], c["text"]))
    return model, pretrained.noised_convert(image, text, model, scale)


def task_of(model: CLIP, params: Params, p: process.DDPM) -> tuple[Contrastive, Params]:
    """The task that guides."""
    return Contrastive(model, (model.image.size,) * 2 + (3,), process=p if model.image.steps else None), {"model": params}


def features(model: CLIP, params: Params, inputs: dict[str, Array]) -> Array:
    """Those of texts whose length is given."""
    args = inputs["clip_tokens"], None, inputs["clip_text_len"]
    return model.apply({"params": params["model"]}, *args, method=lambda module, *args: module.text(*args)).features


def noised_clip(case: Case) -> Found:
    """Features, embeddings and the gradient that guides."""
    c, inputs = case.config, case.inputs
    model, params = clip_of(c, under("image/", case.weights), under("text/", case.weights), c["logit_scale"])
    task, params = task_of(model, params, process.DDPM("squaredcos"))

    @jax.jit
    def run(params: Params, inputs: dict[str, Array]) -> Found:
        own, x = {"params": params["model"]}, nhwc(inputs["images"])
        texts = features(model, params, inputs)
        label = (inputs["t"],) if model.image.steps else ()
        images = model.apply(own, x, *label, method="encode_image")
        pulled = guidance.Gradient(
            lambda x, t, cond: task.log_prob(params, x, t, unit(texts), task.process or process.DDPM("squaredcos")),
            c["run"]["grad_scale"])(lambda x, t, cond, key: guidance.Prediction(x))
        grad = pulled(x, inputs["t"], {}, KEY).grad
        return dict(
            text_features=texts, image_features=images, text_emb=unit(texts), image_emb=unit(images), cond_grad=nchw(grad))

    return run(params, inputs)


def schedule(case: Case) -> Found:
    """Every table, in float64, and the kept steps of each respacing."""
    c, found = case.config, {}
    with jax.enable_x64(True):
        for name, steps in c["schedules"]:
            own = tables(spaced({"noise_schedule": name, "steps": steps}))
            found |= {f"{name}_{steps}/{table}": value for table, value in own.items()}
        for steps, spec in c["respacing"]:
            found[f"space/{steps}/{spec if isinstance(spec, str) else '-'.join(map(str, spec))}"] = space(spec, steps)
        for name, steps, spec in c["spaced"]:
            own = tables(spaced({"noise_schedule": name, "steps": steps, "timestep_respacing": spec}))
            found |= {f"spaced/{name}_{steps}_{spec}/{table}": value for table, value in own.items()}
    return {name: found[name] for name in case.want if name in found}


def spacing(run: dict[str, Any]) -> Spaced:
    """The process of a case's run."""
    return spaced({"learn_sigma": True, "noise_schedule": run["noise_schedule"], "steps": run["diffusion_steps"],
                   "timestep_respacing": run["respacing"]})


def on_x0(case: Case) -> Guidance:
    """What is known pasted into x0, then clipped."""
    parts = [guidance.Clip()] if case.config["run"]["clip_denoised"] else []
    if "inpaint_mask" in case.inputs:
        known, mask = (jnp.asarray(nhwc(case.inputs[name])) for name in ("inpaint_image", "inpaint_mask"))
        parts.append(guidance.Known(known, mask))
    return guidance.chain(*parts)


def pull(case: Case, d: Spaced) -> Guidance:
    """CLIP guidance, where the case has it."""
    run = case.config["run"]
    if not run.get("clip_guidance"):
        return guidance.chain()
    weights = [under(f"clip_{tower}/", case.weights) for tower in ("image", "text")]
    model, params = clip_of(case.config["clip"], *weights, run["clip_logit_scale"])
    task, params = task_of(model, params, d.process)
    texts = unit(jax.jit(partial(features, model))(params, case.inputs))
    return guidance.Gradient(lambda x, t, cond: task.log_prob(params, x, t, texts, d.process), run["clip_guidance"])


def first_moments(d: Spaced, denoise: Denoiser, x: Array, cond: Cond) -> Found:
    """Mean and variance of the first step, before guidance by a gradient."""
    t, s = d.t[-1], d.s[-1]
    p, q = denoise(x, t, cond, KEY), process.posterior(d.process, t, s)
    logvar = samplers.log_variance(d.process, d.variance, t, s, t, p.logvar)
    logvar = jnp.broadcast_to(logvar, x.shape)
    mean = q.x0 * p.x0 + q.xt * x
    return dict(first_step_mean=mean, first_step_variance=jnp.exp(logvar), first_step_log_variance=logvar)


def trajectory(case: Case) -> Found:
    """A sampling loop with the real network, classifier-free guidance, CLIP guidance and what is known."""
    run, d, calls = case.config["run"], spacing(case.config["run"]), []
    net = Net(case.config["unet"], under("unet/", case.weights))
    network = net.network(net.params)
    if "cfg_scale" in run:
        network = guided(network, run["cfg_scale"])
    plain = on_x0(case)(scales.denoiser(network, d.process, d.scale, True))
    denoise = pull(case, d)(plain)
    cond = jax.jit(net.embed)(net.params, case.inputs)
    c = {"sampler": "ddim" if run["sampler"] == "ddim" else "p", "eta": run.get("eta", 0.0)}
    path = sampled(d, c, noted(d, c, denoise, calls), case.inputs["x_T"], case.inputs["noise"], cond)
    x0, grad = (np.stack(column) for column in zip(*calls, strict=True))
    found = jax.jit(lambda x: first_moments(d, plain, x, cond))(nhwc(case.inputs["x_T"]))
    found |= {"samples": path, "pred_xstart": x0, "cond_fn_grad_first": grad[0]}
    return {name: nchw(value) for name, value in found.items()} | {"timestep_map": d.t}


def ddim_inversion(case: Case) -> Found:
    """DDIM upwards, beyond the last step to pure noise, and down again."""
    d, net = spacing(case.config["run"]), Net(case.config["unet"], under("unet/", case.weights))
    denoise = on_x0(case)(scales.denoiser(net.network(net.params), d.process, d.scale, True))
    cond, sampler = jax.jit(net.embed)(net.params, case.inputs), samplers.ddim(d.process)

    @jax.jit
    def both(x: Array) -> tuple[Array, Array]:
        up = np.append(d.t, np.int32(d.process.steps))
        path = samplers.sample(denoise, sampler, x, up, cond, KEY, keep=True)
        down = np.append(d.t[::-1], np.int32(-1))
        return path, samplers.sample(denoise, sampler, path[-1], down, cond, KEY, keep=True)

    inversion, resampled = both(nhwc(case.inputs["x0"]))
    return {"inversion": nchw(inversion), "resampled": nchw(resampled)}


def resize(case: Case) -> Found:
    """PyTorch's ways to resize, and the grid of uint8."""
    ways = {
        "nearest": resample.nearest, "bilinear": resample.bilinear, "bilinear_antialias": partial(antialiased, method="linear"),
        "bicubic": bicubic, "bicubic_antialias": antialiased, "area": resample.area,
    }

    @jax.jit
    def run(x: Array) -> Found:
        sizes = case.config["sizes"]
        return {f"{h}x{w}/{way}": nchw(function(x, h, w)) for h, w in sizes for way, function in ways.items()}

    x = nhwc(case.inputs["x"])
    return run(x) | {"quantised_uint8_grid": nchw(to_unit(to_uint8(x)))}


def tokenizer(case: Case) -> Found:
    """Numbers, padded numbers and which of them are real."""
    bpe = GlideBPE(merges("glide_vocab.bpe.gz"), case.config["text_ctx"])
    numbers, padded = [bpe.encode(text) for text in case.config["strings"]], bpe.batch(case.config["strings"])
    return dict(
        ids=rows_of(numbers), len=[len(row) for row in numbers], padded=padded, mask=bpe.mask(padded), n_vocab=bpe.vocab,
        end_token=bpe.end,
    )


def keys(case: Case) -> Found:
    """Published state dicts onto our parameters and back, on shapes only."""
    structs = {
        file: {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in official.items()}
        for file, official in case.doc["keys"].items()
    }
    found: Found = {}
    for file, official in case.doc["keys"].items():
        if not file.startswith("clip_"):
            model, cond = map(build, pretrained.published(structs[file]))
            params = jax.eval_shape(partial(pretrained.convert, model=model, cond=cond), structs[file])
            back = jax.eval_shape(partial(pretrained.revert, shapes=official, model=model, cond=cond), params)
            found |= {f"{file}/{key}": leaf.shape for key, leaf in back.items()}
    if pretrained.IMAGE in structs:
        image, text = structs[pretrained.IMAGE], structs[pretrained.TEXT]
        params = jax.eval_shape(
            partial(pretrained.noised_convert, model=build(pretrained.noised_published(image, text))), image, text)
        for file, tower in ((pretrained.IMAGE, "image"), (pretrained.TEXT, "text")):
            back = jax.eval_shape(
                partial(pretrained.noised_revert, shapes=case.doc["keys"][file], tower=tower), params)
            found |= {f"{file}/{key}": leaf.shape for key, leaf in back.items()}
    return found
