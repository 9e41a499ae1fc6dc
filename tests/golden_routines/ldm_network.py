"""The UNets of latent diffusion in both layouts, its text encoder, and the names of all published files."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.replay import nchw, nhwc

from diffusion_jax.build import build
from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_blocks import waves
from diffusion_jax.pretrained import clip, ldm_text, ldm_unet, sd, vae
from diffusion_jax.types import Params

Found = dict[str, Any]


def load_unet(weights: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[UNet, nn.Module, Params]:
    """The network of CompVis's or diffusers' options, its conditioner, and the case's weights."""
    read = ldm_unet.diffusers_config if "block_out_channels" in options else ldm_unet.config
    model, cond = map(build, read(options))
    return model, cond, ldm_unet.convert(weights, model, cond, options.get("use_new_attention_order", False))


def unet(case: Case) -> Found:
    """The output, and the sines and cosines."""
    model, cond, params = load_unet(case.weights, case.config["kwargs"])
    inputs = case.inputs
    seen = cond.apply({"params": params["cond"]}, {"label": jnp.asarray(inputs["y"])}) if "y" in inputs else {}
    seen |= {"seq": jnp.asarray(inputs["context"])} if "context" in inputs else {}
    out = jax.jit(model.apply)({"params": params["model"]}, nhwc(inputs["x"]), inputs["timesteps"], seen)
    return {"out": nchw(out), "t_emb": waves(jnp.asarray(inputs["timesteps"]), model.width)}


def diffusers_unet(case: Case) -> Found:
    """The same network by its other names."""
    model, _, params = load_unet(case.weights, case.config["kwargs"])
    inputs = case.inputs
    args = nhwc(inputs["sample"]), inputs["timestep"], {"seq": inputs["encoder_hidden_states"]}
    return {"out": nchw(jax.jit(model.apply)({"params": params["model"]}, *args))}


def bert_embedder(case: Case) -> Found:
    """The tokens' embeddings."""
    c = case.config
    model = TextEncoder(c["num_tokens"], c["max_seq_len"], c["dim"], c["depth"])
    params = ldm_text.convert_bert(case.weights, model)
    return {"embeddings": jax.jit(model.apply)({"params": params}, case.inputs["tokens"])}


def structs(keys: dict[str, list[int]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in keys.items()}


def there_and_back(keys: dict[str, list[int]], convert: Callable, revert: Callable, modules: tuple) -> dict[str, tuple[int, ...]]:
    """The shapes of official weights that became parameters and official weights again; nothing is computed."""
    shapes = {key: tuple(shape) for key, shape in keys.items()}
    params = jax.eval_shape(lambda weights: convert(weights, *modules), structs(keys))
    back = jax.eval_shape(lambda params: revert(params, shapes, *modules), params)
    return {key: leaf.shape for key, leaf in back.items()}


def of_network(keys: dict[str, list[int]], options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    read = ldm_unet.diffusers_config if "block_out_channels" in options else ldm_unet.config
    return there_and_back(keys, ldm_unet.convert, ldm_unet.revert, tuple(map(build, read(options))))


def of_autoencoder(keys: dict[str, list[int]], spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    assert build(vae.published(vae.compvis(structs(keys)))) == build(spec).clone(dropout=0.0, parent=None)
    convert, revert = vae.convert, lambda params, shapes, model: vae.revert(params, shapes)
    return there_and_back(keys, convert, revert, (build(spec),))


def of_text(keys: dict[str, list[int]], told: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    if "token_emb.weight" in keys:
        model = build(ldm_text.bert_config(structs(keys)))
        found = there_and_back(keys, ldm_text.convert_bert, ldm_text.revert_bert, (model,))
        return found | {key: tuple(keys[key]) for key in keys if key.startswith(ldm_text.IGNORED)}
    return there_and_back(keys, clip.convert, clip.revert, (build(clip.towers(structs(keys), told)["text"]),))


QUICK_GELU = {"hidden_act": "quick_gelu", "eos_token_id": 2, "num_attention_heads": 12}


def of_whole(keys: dict[str, list[int]], c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """A file of CompVis's, part by part."""
    found = {}
    for prefix, convert in (
        (sd.UNET, lambda part: of_network(part, c["unet_config"]["params"])),
        (sd.FIRST, lambda part: of_autoencoder(part, first_stage_of(c["first_stage_config"]["params"]))),
        (sd.HF, lambda part: of_text(part, QUICK_GELU)),
    ):
        part = sd.part(keys, prefix)
        found |= {prefix + key: shape for key, shape in convert(part).items()} if part else {}
    if sd.UNET + "out.2.weight" in keys:
        published = ldm_unet.config(ldm_unet.published(structs(sd.part(keys, sd.UNET))))
        assert build(published[0]) == build(ldm_unet.config(c["unet_config"]["params"])[0])
    if sd.CLASSES in keys:
        cond, params = sd.conditioner(structs(keys), {})
        assert cond["num_classes"] == c["cond_stage_config"]["params"]["n_classes"] - 1
        found[sd.CLASSES] = params["table"].shape
    steps = sd.table({}, c)["steps"]
    return found | {key: (steps,) for key in keys if key.startswith(sd.TABLES)}


def first_stage_of(options: dict[str, Any]) -> dict[str, Any]:
    return vae.config(options["ddconfig"], options["embed_dim"], options.get("n_embed"))


def keys(case: Case) -> Found:
    """Published state dicts onto our parameters and back, on shapes only, and where both layouts have the same weight."""
    found, doc = {}, case.doc
    for name, official in doc["keys"].items():
        if "unet_config" in doc:                                                                   # diffusers' folders
            back = {
                "unet": lambda keys: of_network(keys, doc["unet_config"]),
                "vae": lambda keys: of_autoencoder(keys, vae.diffusers_config(doc["vae_config"])),
                "text_encoder": lambda keys: of_text(keys, doc["text_config"]),
            }[name](official)
        elif "ddconfig" in case.config.get(name, {}):
            back = of_autoencoder(official, first_stage_of(case.config[name]))
        else:
            back = of_whole(official, case.config.get(name, case.config))
        found |= {f"{name}/{key}": shape for key, shape in back.items()}
    for name, pairs in doc.get("mapping_diffusers_to_compvis", {}).items():
        check_mapping(name, pairs, doc)
    return found


def check_mapping(name: str, pairs: dict[str, str], doc: dict[str, Any]) -> None:
    """The names of one weight in both layouts become the same."""
    if name == "vae":
        ours = vae.compvis({key: key for key in pairs})
        assert all(pairs[official].removeprefix(sd.FIRST) == key for key, official in ours.items())
    if name == "unet":
        model = build(ldm_unet.diffusers_config(doc["unet_config"])[0])
        first, second = (ldm_unet.renamed(keys, model) for keys in (pairs, {v.removeprefix(sd.UNET): v for v in pairs.values()}))
        assert first == second
