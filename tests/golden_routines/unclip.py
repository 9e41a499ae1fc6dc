"""unCLIP as kakaobrain/karlo and diffusers have it: prior, decoder, super-resolution, the chain. Official images are NCHW."""
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.adm_diffusion import spaced
from golden_routines.dit_diffusion import KEY, Spaced
from golden_routines.glide import under
from golden_routines.replay import nchw, nhwc, record, replay

from diffusion_jax.build import build
from diffusion_jax.data.resize import antialiased
from diffusion_jax.diffusion import guidance, process, samplers, scales
from diffusion_jax.models.prior import Prior
from diffusion_jax.models.unclip import ImageText
from diffusion_jax.models.unet import UNet
from diffusion_jax.pipelines.unclip import slerp as slerped
from diffusion_jax.pretrained import clip
from diffusion_jax.pretrained import unclip as pretrained
from diffusion_jax.types import Array, Cond, Denoiser, Guidance, Network, Noise, Params, Prediction, Process

Found = dict[str, Any]
Of = dict[str, Array]


def rows(cond: Cond, half: int) -> Cond:
    """The first rows of a condition, or with a negative number the last."""
    return {key: value[:half] if half > 0 else value[half:] for key, value in cond.items()}


def both(denoise: Denoiser, half: int) -> Denoiser:
    """As Karlo's loops run: the prediction of the first half of x, and once more for the second half."""
    def doubled(x: Array, t: Array, cond: Cond, key: Array) -> Prediction:
        p = denoise(x[:half], t, cond, key)
        return jax.tree.map(lambda a: jnp.concatenate([a, a]), p)

    return doubled


def walked(denoise: Denoiser, p: Process, variance: str, grid: np.ndarray, x: np.ndarray, draws: np.ndarray, cond: Cond) -> Array:
    """Every state of ancestral sampling with stored noise; the last step of a scheduler draws none, and asks for none."""
    noise: Noise = replay([*draws, 0 * x][: len(grid) - 1])
    sampler = samplers.ancestral(p, variance, noise)
    path = jax.jit(lambda x, cond: samplers.sample(denoise, sampler, x, grid, cond, KEY, keep=True))(x, cond)
    jax.effects_barrier()
    return path


def down(d: Spaced) -> np.ndarray:
    """The kept times from the noisiest to the clean end."""
    return np.append(d.t[::-1], np.int32(-1))


# Karlo ----------------------------------------------------------------------------------------------------------------------


def prior_of(official: dict[str, Any], weights: dict[str, np.ndarray]) -> tuple[Network, Params]:
    """A prior, bare."""
    model = Prior(**pretrained.prior_config(official))
    return lambda params: (lambda x, noise, cond: model.apply({"params": params}, x, noise, cond)), pretrained.convert_prior(
        weights, model)


def karlo_prior(case: Case) -> Found:
    """The network, and its loop with guidance, brought back to CLIP's own mean and deviation."""
    c, i = case.config, case.inputs
    network, params = prior_of(c["config"]["model"]["hparams"], case.weights)
    cond = {"vec": i["text_emb"], "seq": i["text_enc"], "seq_mask": i["mask"]}
    d, half = spaced(c["config"]["diffusion"] | {"timestep_respacing": c["run"]["respacing"]}), c["run"]["batch"]
    guide = guidance.chain(guidance.Clip(10.0), guidance.CFG(i["cf_scales"], rows(cond, -half)))
    denoise = both(guide(scales.denoiser(network(params), d.process, d.scale, False)), half)
    path = walked(denoise, d.process, d.variance, down(d), i["noise"][0], i["noise"][1:], rows(cond, half))
    embedding = np.asarray(path)[-1][:half] * i["clip_std"] + i["clip_mean"]
    return dict(forward=jax.jit(network(params))(i["x"], i["t"], cond), trajectory=path, image_embed=embedding)


def decoder_of(
    unet: dict[str, Any], text: dict[str, Any] | None, weights: dict[str, np.ndarray]
) -> tuple[UNet, ImageText | None, Params]:
    """A decoder with its conditioner, or a super-resolution network."""
    model = UNet(**pretrained.unet_config(unet))
    cond = ImageText(**pretrained.cond_config(text)) if text else None
    return model, cond, pretrained.convert(weights, model, cond)


def bare(model: UNet, params: Params) -> Network:
    """x, noise, cond -> output."""
    return lambda x, noise, cond: model.apply({"params": params["model"]}, x, noise, cond)


def karlo_decoder(case: Case) -> Found:
    """The network on [cond, null] rows, and its loop."""
    c, i, half = case.config, case.inputs, case.config["run"]["batch"]
    hparams = c["config"]["model"]["hparams"]
    model, text, params = decoder_of(hparams, hparams, case.weights)
    raw = {"clip_image": np.concatenate([i["img_feat"]] * 2), "with_image": np.repeat([1.0, 0.0], half),
           "clip_text": i["txt_feat"], "text_states": i["txt_feat_seq"], "text_mask": i["mask"]}
    cond = jax.jit(text.apply)({"params": params["cond"]}, raw)
    found = dict(forward=nchw(jax.jit(bare(model, params))(nhwc(i["x"]), i["t"], cond)))
    if c["run"].get("sample"):
        d = spaced(c["config"]["diffusion"] | {"timestep_respacing": c["run"]["respacing"]})
        guide = guidance.chain(guidance.Clip(), guidance.CFG(i["cf_scales"], rows(cond, -half)))
        denoise = both(guide(scales.denoiser(bare(model, params), d.process, d.scale, True)), half)
        draws = nhwc(i["noise"])
        path = walked(denoise, d.process, d.variance, down(d), draws[0], draws[1:], rows(cond, half))
        found["trajectory"] = nchw(path[:, :half])
    return found


def karlo_super_resolution(case: Case) -> Found:
    """All steps but the last with one network, the last with another."""
    c, i = case.config, case.inputs
    hparams = c["config"]["model"]["hparams"]
    nets = [decoder_of(hparams, None, under(f"{part}.", case.weights)) for part in ("model_first_steps", "model_last_step")]
    first, last = (bare(model, params) for model, _, params in nets)
    d, cond = spaced(c["config"]["diffusion"]), {"cat": nhwc(i["low_res"])}
    draws = nhwc(i["noise"])
    path = two_stages(first, last, d.process, d.variance, down(d), draws[0], draws[1:], cond)
    return dict(
        trajectory=nchw(path), forward_first=nchw(jax.jit(first)(draws[0], i["t"], cond)),
        bicubic_up=nchw(antialiased(nhwc(i["small"]), *nhwc(i["low_res"]).shape[1:3])),
    )


def two_stages(first: Network, last: Network, p: Process, variance: str, grid: np.ndarray, x: np.ndarray, draws: np.ndarray,
               cond: Cond) -> Array:
    """Every state of Karlo's super-resolution."""
    parts, noise = [], list(draws)
    for network, steps in ((first, grid[:-1]), (last, grid[-2:])):
        denoise = guidance.Clip()(scales.denoiser(network, p, scales.Eps(), False))
        own = [noise.pop(0) for _ in range(min(len(steps) - 1, len(noise)))]
        parts.append(walked(denoise, p, variance, steps, x, np.stack(own) if own else np.zeros((0, *x.shape), x.dtype), cond))
        x = np.asarray(parts[-1][-1])
    return np.concatenate(parts)


# diffusers ------------------------------------------------------------------------------------------------------------------


def statistics(weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of CLIP's embeddings."""
    return weights["clip_mean"], weights["clip_std"]


def diffusers_prior(case: Case) -> Found:
    """The network, and its output brought back."""
    i = case.inputs
    network, params = prior_of(case.config["kwargs"], case.weights)
    cond = {"vec": i["proj_embedding"], "seq": i["encoder_hidden_states"], "seq_mask": i["attention_mask"]}
    x0 = jax.jit(network(params))(i["hidden_states"], i["timestep"], cond)
    mean, std = statistics(case.weights)
    return dict(predicted_image_embedding=x0, post_processed=np.asarray(x0) * std + mean)


def diffusers_decoder(case: Case) -> Found:
    """Conditioner and network on [null, cond] rows."""
    c, i, half = case.config, case.inputs, case.config["run"]["batch"]
    weights = under("text_proj/", case.weights) | under("decoder/", case.weights)
    model, text, params = decoder_of(c["decoder"], c["text_proj"], weights)
    raw = {"clip_image": np.concatenate([i["image_embeddings"]] * 2), "with_image": np.repeat([0.0, 1.0], half),
           "clip_text": i["prompt_embeds"], "text_states": i["text_encoder_hidden_states"], "text_mask": i["text_mask"]}
    cond = jax.jit(text.apply)({"params": params["cond"]}, raw)
    out = jax.jit(bare(model, params))(nhwc(i["sample"]), i["timestep"], cond)
    return dict(context=cond["seq"], additive_time_embedding=cond["vec"], out=nchw(out))


VARIANCES = {"fixed_small_log": "fixed_small", "learned_range": "learned_range"}


def of_scheduler(o: dict[str, Any], steps: int) -> tuple[process.DDPM, scales.Scale, str, Guidance, np.ndarray]:
    """UnCLIPScheduler: process, parametrisation, variance, what x0 goes through, and its grid."""
    p = process.DDPM("squaredcos", o.get("num_train_timesteps", 1000), rounded=True)
    scale = scales.X0() if o.get("prediction_type", "epsilon") == "sample" else scales.Eps()
    clip = guidance.Clip(o.get("clip_sample_range", 1.0)) if o.get("clip_sample", True) else guidance.chain()
    grid = np.round(np.arange(steps) * ((p.steps - 1) / (steps - 1))).astype(np.int32)[::-1]
    return p, scale, VARIANCES[o.get("variance_type", "fixed_small_log")], clip, np.append(grid, np.int32(-1))


def scheduler(case: Case) -> Found:
    """The loop on given outputs."""
    c, i = case.config, case.inputs
    p, scale, variance, clip, grid = of_scheduler(c["kwargs"], c["run"]["steps"])
    image = i["x_T"].ndim == 4
    last = nhwc if image else np.asarray
    outputs, calls = replay(last(i["model_outputs"])), []
    shape = last(i["model_outputs"]).shape[1:]
    denoise = clip(scales.denoiser(lambda x, t, cond: outputs(KEY, shape, jnp.float32), p, scale, variance == "learned_range"))

    def watched(x: Array, t: Array, cond: Cond, key: Array) -> Prediction:
        found = denoise(x, t, cond, key)
        record(calls, found.x0)
        return found

    path = walked(watched, p, variance, grid, last(i["x_T"]), last(i["noise"])[: len(grid) - 2], {})
    back = nchw if image else np.asarray
    return dict(trajectory=back(path), pred_original_sample=back(np.stack([call[0] for call in calls])),
                timesteps=grid[:-1].astype(np.int64), betas=np.float32(p.betas))


def diffusers_pipeline(case: Case) -> Found:
    """From tokens to the enlarged image."""
    c, i, run = case.config, case.inputs, case.config["run"]
    batch = run["batch"]
    tower = build(clip.towers(under("text_encoder/", case.weights), {"text_config": c["text_encoder"]})["text"])
    text = clip.convert(under("text_encoder/", case.weights), tower)
    ids = np.concatenate([i["input_ids"], np.repeat(i["uncond_ids"], batch, axis=0)])
    state = jax.jit(tower.apply)({"params": text}, ids)
    ends = np.argmax(ids == c["text_encoder"]["eos_token_id"], axis=1)
    mask = np.arange(ids.shape[1])[None] <= ends[:, None]
    cond = {"vec": state.features, "seq": state.tokens, "seq_mask": mask}
    plans = [of_scheduler(o, steps) for o, steps in zip(c["schedulers"], run["steps"], strict=True)]

    p, scale, variance, clip_, grid = plans[0]
    weights = under("prior/", case.weights)
    network, params = prior_of(c["prior"], weights)
    denoise = guidance.chain(clip_, guidance.CFG(run["prior_scale"], rows(cond, -batch)))(
        scales.denoiser(network(params), p, scale, False))
    path = walked(denoise, p, variance, grid, i["prior_x_T"], i["prior_noise"], rows(cond, batch))
    mean, std = statistics(weights)
    embedding = np.asarray(path)[-1] * std + mean

    p, scale, variance, clip_, grid = plans[1]
    model, texts, params = decoder_of(c["decoder"], c["text_proj"],
                                      under("text_proj/", case.weights) | under("decoder/", case.weights))
    raw = {"clip_image": np.concatenate([embedding] * 2), "with_image": np.repeat([1.0, 0.0], batch), "clip_text": state.features,
           "text_states": state.tokens, "text_mask": mask}
    seen = jax.jit(texts.apply)({"params": params["cond"]}, raw)
    denoise = guidance.chain(clip_, guidance.CFG(run["decoder_scale"], rows(seen, -batch)))(
        scales.denoiser(bare(model, params), p, scale, True))
    path = walked(denoise, p, variance, grid, nhwc(i["decoder_x_T"]), nhwc(i["decoder_noise"]), rows(seen, batch))

    p, scale, variance, clip_, grid = plans[2]
    nets = [decoder_of(c["super_res"], None, under(f"super_res_{part}/", case.weights)) for part in ("first", "last")]
    size = nhwc(i["sr_x_T"]).shape[1:3]
    low_res = antialiased(jnp.clip(path[-1], -1, 1), *size)
    large = two_stages(*(bare(model, params) for model, _, params in nets), p, variance, grid, nhwc(i["sr_x_T"]),
                       nhwc(i["sr_noise"]), {"cat": low_res})
    return dict(text_embeds=state.features[:batch], text_states=state.tokens[:batch], image_embedding=embedding,
                decoder_trajectory=nchw(path), image=np.clip(large[-1] / 2 + 0.5, 0, 1))


def slerp(case: Case) -> Found:
    """Interpolation on the sphere."""
    return {f"slerp_{v}": slerped(case.inputs["a"], case.inputs["b"], v, channelwise=True) for v in case.config["vals"]}


# Key lists ------------------------------------------------------------------------------------------------------------------

_KARLO = {"image_size": 64, "num_channels": 320, "num_res_blocks": 3, "channel_mult": "", "attention_resolutions": "32,16,8",
          "num_head_channels": 64, "clip_dim": 768, "clip_emb_mult": 4, "xf_width": 1536, "resblock_updown": True}
_KARLO_SR = {"channels": 320, "depth": 3, "channels_multiple": [1, 2, 3, 4]}
_DECODER = {"block_out_channels": [320, 640, 960, 1280], "layers_per_block": 3, "attention_head_dim": 64, "out_channels": 6,
            "resnet_time_scale_shift": "scale_shift",
            "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3]}
_SUPER = {"block_out_channels": [320, 640, 960, 1280], "layers_per_block": 3, "out_channels": 3, "add_attention": False,
          "down_block_types": ["ResnetDownsampleBlock2D"] * 4}


_CLIP = {"text_config": {"num_attention_heads": 12, "eos_token_id": 49407}, "vision_config": {"num_attention_heads": 16}}


def keys(case: Case) -> Found:
    """Every published file converts, on shapes only; the shapes come back as they were read."""
    files: dict[str, Of] = {}
    for key, shape in case.want.items():
        part, _, name = key.partition("/")
        files.setdefault(part, {})[name] = jax.ShapeDtypeStruct(tuple(shape), np.float32)
    for part, weights in files.items():
        if part == "text_proj":
            continue
        if part == "prior":
            model = Prior(**pretrained.prior_published(weights))
            jax.eval_shape(lambda w, model=model: pretrained.convert_prior(w, model), weights)
        elif part in ("text_encoder", "image_encoder"):
            kind = {"text_encoder": "text", "image_encoder": "image"}[part]
            tower = build(clip.towers(weights, _CLIP)[kind])
            jax.eval_shape(lambda w, tower=tower: clip.convert(w, tower), weights)
        elif part == "sr":
            for name in ("model_first_steps.", "model_last_step."):
                convert_shapes(_KARLO_SR, None, under(name, weights))
        elif part == "decoder" and "text_proj" in files:
            text = dict(clip_embeddings_dim=768, time_embed_dim=1280, cross_attention_dim=1536, clip_extra_context_tokens=4)
            convert_shapes(_DECODER, text, weights | files["text_proj"])
        else:
            convert_shapes(*((_KARLO, _KARLO) if part == "decoder" else (_SUPER, None)), weights)
    return {key: np.array(files[key.partition("/")[0]][key.partition("/")[2]].shape) for key in case.want}


def convert_shapes(unet: dict[str, Any], text: dict[str, Any] | None, weights: Of) -> None:
    """Converts, computing nothing."""
    model = UNet(**pretrained.unet_config(unet))
    cond = ImageText(**pretrained.cond_config(text)) if text else None
    jax.eval_shape(lambda w: pretrained.convert(w, model, cond), weights)


