"""unCLIPs for diffusers, the folders of its UnCLIPPipeline: the way back of pretrained/karlo.py, beside karlo_export.py.

With prior, decoder and upsampler it is a pipeline; without one of them each folder is loaded by its class.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.build import short
from diffusion_jax.pretrained import clip_export, karlo, unclip_export
from diffusion_jax.pretrained.karlo_export import First, Part, clips_text, has_image, lost, state_dicts, whole
from diffusion_jax.pretrained.package import DIFFUSERS, Package, Page, Spec, refuse, square
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.types import Params

TITLE, SCHEDULER = "diffusers' UnCLIPPipeline", "diffusers' UnCLIPScheduler"
PREDICTIONS = {"Eps": "epsilon", "X0": "sample"}
VARIANCES = {ours: theirs for theirs, ours in karlo.VARIANCES.items()}
PLAIN = {"sampler": "ddim", "times": "uniform", "temperature": 1.0}
"""How a page samples that does not say."""
WAY = {"sampler": "ancestral", "times": "linspace", "temperature": 1.0}
"""How UnCLIPScheduler samples."""
INDEX = {
    "prior": ["diffusers", "PriorTransformer"], "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "decoder": ["diffusers", "UNet2DConditionModel"], "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"], "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"], "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    # Where the class lies: what diffusers itself saves of it, it does not find again.
    "text_proj": ["diffusers.pipelines.deprecated.unclip.text_proj", "UnCLIPTextProjModel"],
}
"""The parts of the pipeline in its model_index.json."""
CODE = """from diffusers import UnCLIPPipeline
pipe = UnCLIPPipeline.from_pretrained("FOLDER")"""
SAMPLE = """pipe(["PROMPT"], prior_guidance_scale={guidance}, prior_num_inference_steps={steps},
     decoder_guidance_scale=GUIDANCE, decoder_num_inference_steps=STEPS).images[0].save("sample.png")"""
CODES = {
    "prior": """from diffusers import PriorTransformer
prior = PriorTransformer.from_pretrained("FOLDER/prior")""",
    "decoder": """from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
decoder = UNet2DConditionModel.from_pretrained("FOLDER/decoder")
text_proj = UnCLIPTextProjModel.from_pretrained("FOLDER/text_proj")""",
    "upsampler": """from diffusers import UNet2DModel
first = UNet2DModel.from_pretrained("FOLDER/super_res_first")
last = UNet2DModel.from_pretrained("FOLDER/super_res_last")""",
}
TEXT = """from transformers import CLIPTextModelWithProjection
text_encoder = CLIPTextModelWithProjection.from_pretrained("FOLDER/text_encoder")"""
UNIT = """import torch
{encoder}.text_projection.register_forward_hook(         # the networks read embeddings of one length
    lambda module, inputs, y: y.shape[-1] ** 0.5 * torch.nn.functional.normalize(y, dim=-1))"""


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as folders of diffusers.

    Raises:
      ConfigError: its networks or its scheduler have no such option; the line names it.
    """
    run = whole(TITLE, page, params)
    files: dict[str, Any] = {}
    notes = [*run.notes]
    for name, one in run.parts.items():
        files |= {f"{folder}/config.json": config for folder, config in _configs(name, one).items()}
        folder = "super_res" if name == "upsampler" else name
        files[f"{folder}_scheduler/scheduler_config.json"], differs = scheduler(name, one.page)
        notes += differs
        files |= {f"{folder}/{HF_WEIGHTS}": weights for folder, weights in state_dicts(name, one, True, run.first).items()}
    tokenizer: dict[str, Any] = {}
    if run.first is not None:
        reader = run.parts.get("decoder") or run.parts["prior"]
        tokenizer, without = clip_export.tokenizer(reader.page, "tokenizer/")
        files |= _clip(run.first) | tokenizer
        notes += [*without, *lost(run.first)]
    missing = _missing(run.parts, bool(tokenizer))
    if missing:
        notes += [f"There is no {TITLE} of this run, {missing}: each folder is loaded by its class."]
        title = f"diffusers' {' and '.join(INDEX[karlo.FOLDERS[name]][1] for name in run.parts)}"
        return Package(files, title, _code(run.parts, run.first), "diffusers", tuple(notes))
    files["model_index.json"] = {"_class_name": "UnCLIPPipeline", "_diffusers_version": DIFFUSERS, **INDEX}
    hook = [UNIT.format(encoder="pipe.text_encoder")] if run.first is not None and run.first.unit else []
    code = "\n".join([CODE, *hook, SAMPLE.format(**_numbers(run.parts["prior"].page))])
    return Package(files, TITLE, code, "diffusers", tuple(notes))


def _missing(parts: Mapping[str, Part], tokenizer: bool) -> str:
    """Why there is no pipeline of these parts; '' where there is one."""
    others = [name for name in karlo.FOLDERS if name not in parts]
    reasons = {
        f"whose folder holds no {' and no '.join(others)}": bool(others),
        "whose decoder learned no variances": "decoder" in parts and not parts["decoder"].model.learn_sigma,
        "which does not read CLIP's tokens": not tokenizer,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _code(parts: Mapping[str, Part], first: First | None) -> str:
    """The lines that load folder by folder."""
    lines = [CODES[name] for name in parts]
    if first is not None:
        lines += [TEXT] + [UNIT.format(encoder="text_encoder")] * first.unit
    return "\n".join(lines)


def _numbers(page: Page) -> Spec:
    """Guidance and steps of a page's section `sample`, for the lines of a card."""
    sample = page.get("sample", {})
    steps = sample.get("steps")
    return {"guidance": float(sample.get("guidance", 1.0)), "steps": steps if isinstance(steps, int) else karlo.STEPS["prior"]}


def _configs(name: str, one: Part) -> dict[str, Spec]:
    """Folder -> config.json of one part."""
    if name == "prior":
        return {"prior": unclip_export.prior_config(one.model, one.params["model"])}
    side = square(TITLE, one.page)
    if name == "decoder":
        return {"decoder": unclip_export.decoder_config(one.model, one.cond, side),
                "text_proj": unclip_export.text_config(one.cond, one.params["cond"])}
    return {f"super_res_{net}": unclip_export.super_config(one.model, getattr(one.model, net), side) for net in ("first", "last")}


def _clip(first: First) -> dict[str, Any]:
    """The folder text_encoder and, where it is one of transformers', image_encoder."""
    text = first.model.text
    clips_text(TITLE, text)
    params = first.params["clip"]["model"]
    unit = {karlo.UNIT: True} if first.unit else {}
    files = {
        "text_encoder/config.json": clip_export.text_config(text) | {"architectures": ["CLIPTextModelWithProjection"], **unit},
        "text_encoder/model.safetensors": clip_export.hf_weights(params["text"], text),
    }
    if has_image(first):
        weights = clip_export.hf_weights(params, first.model)
        config = clip_export.vision_config(first.model.image) | {"architectures": ["CLIPVisionModelWithProjection"]}
        files["image_encoder/config.json"] = config
        files["image_encoder/model.safetensors"] = {key: value for key, value in weights.items() if key.startswith("vis")}
    return files


def scheduler(name: str, page: Page) -> tuple[Spec, list[str]]:
    """(scheduler_config.json of a part's page, a sentence where UnCLIPScheduler samples otherwise).

    Raises:
      ConfigError: it has no such process, prediction or variance.
    """
    task = page["task"]
    sample = page.get("sample", {})
    scale = task["scale"]["name"].rpartition(":")[2]
    kind = task["process"]["name"].rpartition(":")[2]
    process = {key: value for key, value in task["process"].items() if key not in ("name", "steps", "rounded")}
    variance = task.get("variance", "fixed_small")
    instead = "--to original writes the network"
    refuse(SCHEDULER, {
        f"has the betas of a squared cosine, not {kind} {short(process)} (task.process; {instead})":
            (kind, process) != ("DDPM", {"schedule": "squaredcos"}),
        f"samples networks that predict eps or x0, not {scale} (task.scale; {instead})": scale not in PREDICTIONS,
        f"learns variances between two bounds (task.variance; {instead})": variance == "learned",
    })
    clip = float(sample.get("clip", 0.0))
    config = {
        "_class_name": "UnCLIPScheduler", "num_train_timesteps": task["process"].get("steps", 1000),
        "beta_schedule": karlo.UNCLIP["beta_schedule"], "prediction_type": PREDICTIONS[scale],
        "variance_type": VARIANCES.get(variance, "fixed_small_log"), "clip_sample": bool(clip), "clip_sample_range": clip or 1.0,
    }
    way = {key: sample.get(key, value) for key, value in PLAIN.items()}
    if way == WAY and variance in VARIANCES:
        return config, []
    words = ", ".join(map(str, (*way.values(), variance)))
    return config, [f"No scheduler of diffusers samples as the {name}'s page does ({words}): UnCLIPScheduler stands in for it."]
