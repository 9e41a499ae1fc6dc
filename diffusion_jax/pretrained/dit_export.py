"""DiT in diffusers' layout: DiTTransformer2DModel and, with an autoencoder of its latents, DiTPipeline.

Three things differ from the official code. Every block there has a copy of the embeddings of time and label. Frequencies of
the time are i / 127 of the way down where DiT's are i / 128, which the class takes no option for: `CODE` sets it once the model
is loaded, and without that line the model sees other times than it was trained on. And the pipeline takes row 1000 of the labels
for "no label", so that row is where it belongs here too, and those between repeat it.
"""
from __future__ import annotations

import re
from typing import Any

import numpy as np

from diffusion_jax.build import build
from diffusion_jax.pretrained import dit, schedulers_export, vae_export
from diffusion_jax.pretrained.package import CONFIG, DIFFUSERS, WEIGHTS, Package, Page, Spec, only, refuse
from diffusion_jax.pretrained.vae_export import HF_WEIGHTS
from diffusion_jax.types import Params

IMAGENET = 1000
"""The row of "no label"."""
TITLE = "diffusers' DiTTransformer2DModel"
FREQUENCIES = """for block in {}.transformer_blocks:
    block.norm1.emb.time_proj.downscale_freq_shift = 0   # DiT's own frequencies, for which the class has no option"""
CODE = f"""from diffusers import DiTTransformer2DModel
model = DiTTransformer2DModel.from_pretrained("FOLDER", subfolder="transformer")
{FREQUENCIES.format("model")}"""
PIPELINE_CODE = f"""from diffusers import DiTPipeline
pipe = DiTPipeline.from_pretrained("FOLDER")
{FREQUENCIES.format("pipe.transformer")}
pipe([0, 1], guidance_scale=GUIDANCE, num_inference_steps=STEPS).images[0].save("sample.png")"""
NOTE = ("diffusers' DiT has other frequencies of time than the official one and this library: set downscale_freq_shift to 0 as "
        "below, or the samples are of another model.")
_NAMES = (
    (r"x_embedder\.proj", "pos_embed.proj"), (r"blocks\.(\d+)\.adaLN_modulation\.1", r"transformer_blocks.\1.norm1.linear"),
    (r"blocks\.(\d+)\.attn\.proj", r"transformer_blocks.\1.attn1.to_out.0"),
    (r"blocks\.(\d+)\.mlp\.fc1", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"blocks\.(\d+)\.mlp\.fc2", r"transformer_blocks.\1.ff.net.2"),
    (r"final_layer\.adaLN_modulation\.1", "proj_out_1"), (r"final_layer\.linear", "proj_out_2"),
)
_EMBEDDINGS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
"""What every block has a copy of."""


def diffusers(page: Page, params: Params, class_names: tuple[str, ...] = ()) -> Package:
    """A run as a folder of diffusers.

    Args:
      page, params: the run's; with the weights of its first stage where it has one.
      class_names: in the order of the labels, for the pipeline.

    Raises:
      ConfigError: diffusers' network has no such option; the line names it.
    """
    official = dit.write(page, {name: part for name, part in params.items() if name != "first_stage"})
    options = official.files[CONFIG]
    only(TITLE, build(page["model"]), mlp_ratio=4.0, skip=())
    refuse(TITLE, {
        "has a row for 'no label' (task.cond.null_row)": not options["class_dropout_prob"],
        f"takes {IMAGENET} labels at most": options["num_classes"] > IMAGENET,
    })
    scheduler, notes = schedulers_export.of_page(page)
    transformer = _transformer(options, official.files[WEIGHTS])
    files = {f"transformer/{name}": content for name, content in transformer.items()}
    files["scheduler/scheduler_config.json"] = scheduler
    first = page["task"].get("first_stage")
    if first is None:
        return Package(files, TITLE, CODE, "diffusers", (NOTE, *notes))
    autoencoder, folded = vae_export.hf_files(build(first["model"]), first, params["first_stage"]["model"], "vae/")
    files |= autoencoder
    files["model_index.json"] = {
        "_class_name": "DiTPipeline", "_diffusers_version": DIFFUSERS, "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "id2label": {str(i): name for i, name in enumerate(class_names)} or None,
    }
    return Package(files, "diffusers' DiTPipeline", PIPELINE_CODE, "diffusers", (NOTE, *notes, *folded))


def _transformer(o: Spec, weights: dict[str, Any]) -> dict[str, Any]:
    """The files of DiTTransformer2DModel, of the official options and weights."""
    config = dict(
        _class_name="DiTTransformer2DModel", num_attention_heads=o["num_heads"], num_layers=o["depth"],
        attention_head_dim=o["hidden_size"] // o["num_heads"], in_channels=o["in_channels"],
        out_channels=o["in_channels"] * (1 + o["learn_sigma"]), sample_size=o["input_size"], patch_size=o["patch_size"],
        num_embeds_ada_norm=IMAGENET, norm_type="ada_norm_zero", norm_elementwise_affine=False, norm_eps=1e-6,
        attention_bias=True, activation_fn="gelu-approximate",
    )
    named: dict[str, Any] = {}
    for key, value in weights.items():
        named |= _named(key, np.asarray(value), o["depth"])
    return {CONFIG: config, HF_WEIGHTS: named}


def _named(key: str, value: np.ndarray, depth: int) -> dict[str, np.ndarray]:
    """One official weight under diffusers' names: one, a copy for each block, or the three of attention."""
    layer, _, end = key.rpartition(".")
    if key == "pos_embed":                                                      # computed there
        return {}
    if layer in _EMBEDDINGS:
        value = _rows(value) if layer.startswith("y_embedder") else value
        return {f"transformer_blocks.{i}.norm1.emb.{_EMBEDDINGS[layer]}.{end}": value for i in range(depth)}
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv", layer):
        parts = zip("qkv", np.split(value, 3), strict=True)
        return {f"transformer_blocks.{match[1]}.attn1.to_{name}.{end}": part for name, part in parts}
    for pattern, name in _NAMES:
        layer = re.sub(rf"^{pattern}$", name, layer)
    return {f"{layer}.{end}": value}


def _rows(table: np.ndarray) -> np.ndarray:
    """The table of labels, whose last row is that of no label, with rows up to `IMAGENET` like it."""
    return np.concatenate([table, np.repeat(table[-1:], IMAGENET + 1 - len(table), axis=0)])
