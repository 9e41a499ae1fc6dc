"""facebookresearch/DiT: the network and its parts. Official images are NCHW, ours NHWC."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.dit_diffusion import losses, q_sample, schedule, train_steps, trajectory  # noqa: F401
from golden_routines.replay import nchw, nhwc

from diffusion_jax.diffusion import guidance
from diffusion_jax.models.cond import Label
from diffusion_jax.models.dit import Attention, Block, DiT, Final, Mlp, TimeEmbedding, Tokens
from diffusion_jax.nn.embed import sincos_2d, timestep_embedding
from diffusion_jax.pretrained import dit as pretrained
from diffusion_jax.pretrained import rules
from diffusion_jax.types import Array, Params

Found = dict[str, Any]


def modules(config: dict[str, Any]) -> tuple[DiT, Label]:
    """The network and conditioner of an official constructor's options."""
    model, cond = pretrained.config(config)
    return DiT(**model), Label(**cond)


def load_dit(case: Case, config: dict[str, Any]) -> tuple[Callable[[Params, Array, Array, Array], Array], Params]:
    """(network, params) with the official weights; network(params, x [B,C,H,W], t [B], y [B]) -> [B, C or 2C, H, W].

    `modules(config)` gives the parts, `pretrained.revert` turns params or their gradients back into the official layout.
    """
    model, cond = modules(config)

    def network(params: Params, x: Array, t: Array, y: Array) -> Array:
        vec = cond.apply({"params": params["cond"]}, {"label": y})
        return nchw(model.apply({"params": params["model"]}, nhwc(x), t, vec))

    return network, pretrained.convert(case.weights, model, cond)


def forward(case: Case) -> Found:
    """The output of every stage."""
    model, cond = modules(case.config)
    params = pretrained.convert(case.weights, model, cond)

    @jax.jit
    def run(params: Params, x: Array, t: Array, y: Array) -> tuple[Array, Params, Array]:
        vec = cond.apply({"params": params["cond"]}, {"label": y})
        out, stages = model.apply({"params": params["model"]}, nhwc(x), t, vec, capture_intermediates=True)
        return nchw(out), stages["intermediates"], vec["vec"]

    y, stages, y_emb = run(params, case.inputs["x"], case.inputs["t"], case.inputs["y"])
    ours = {"x_embed": "patch", "t_emb": "time", "final_tokens": "final"}
    ours |= {f"block_{i}": f"blocks_{i}" for i in range(model.depth)}
    return {"y": y, "y_emb": y_emb} | {name: stages[stage]["__call__"][0] for name, stage in ours.items()}


def forward_cfg(case: Case) -> Found:
    """Guidance as the official code has it: the first three channels only, the second half of x ignored."""
    network, params = load_dit(case, case.config)
    half = np.split(case.inputs["x"], 2)[0]
    out = jax.jit(network)(params, np.concatenate([half, half]), case.inputs["t"], case.inputs["y"])
    cond, null = jnp.split(nhwc(out), 2)
    guided = guidance.mix_outputs(cond, null, case.inputs["cfg_scale"], guidance.Mix(channels=3))
    kept = jnp.concatenate([guided[..., :3], null[..., 3:]], axis=-1)      # the official code keeps each half's other channels
    return {"y": nchw(jnp.concatenate([guided, kept]))}


def blocks(case: Case) -> Found:
    """Every module alone: outputs are named '<module>/<input>'."""
    c, inputs = case.config, case.inputs
    width, block = c["hidden_size"], Block(c["num_heads"], c["mlp_ratio"])
    final, time = Final(c["final_layer"]["patch_size"] ** 2 * c["final_layer"]["out_channels"]), TimeEmbedding(width)
    key, x, vec, seen = jax.random.key(0), inputs["x"], inputs["c"], Tokens(inputs["c"], inputs["c"][:, None], None)
    target = {
        "blocks_0": jax.eval_shape(block.init, key, x, seen),
        "final": jax.eval_shape(final.init, key, x, vec),
        "time": jax.eval_shape(time.init, key, inputs["t"]),
    }
    official = {key.replace("block/", "blocks.0.").replace("/", "."): w for key, w in case.weights.items()}
    p = rules.convert(official, pretrained.RULES, {"model": {name: value["params"] for name, value in target.items()}})["model"]
    apply = {
        "block": lambda x: block.apply({"params": p["blocks_0"]}, x, seen),
        "final_layer": lambda x: final.apply({"params": p["final"]}, x, vec),
        "attn": lambda x: Attention(c["num_heads"]).apply({"params": p["blocks_0"]["attn"]}, x),
        "mlp": lambda x: Mlp(int(width * c["mlp_ratio"])).apply({"params": p["blocks_0"]["mlp"]}, x),
    }
    named = [name.split("/") for name in case.want if "/" in name]
    out = {f"{module}/{name}": jax.jit(apply[module])(inputs[name]) for module, name in named}
    return out | {"t_emb": time.apply({"params": p["time"]}, inputs["t"])}


def embedding_parts(case: Case) -> Found:
    """Time and position tables, and label dropout from stored draws."""
    c, inputs, options = case.config, case.inputs, case.config["LabelEmbedder"]
    out = {f"timestep_embedding_{dim}": timestep_embedding(inputs["t"], dim) for dim in c["timestep_dims"]}
    for p in c["pos_embed"]:
        out[f"pos_embed_{p['embed_dim']}_{p['grid_size']}"] = sincos_2d(p["grid_size"], p["grid_size"], p["embed_dim"])
    cond = Label(options["num_classes"], options["hidden_size"], null_row=options["dropout_prob"] > 0)
    table = jnp.asarray(case.weights["y_embedder.embedding_table.weight"])

    def embed(raw: dict[str, Array]) -> Array:
        return cond.apply({"params": {"table": table}}, raw)["vec"]

    raw = {"label": jnp.asarray(inputs["y"])}
    null = cond.null(raw)
    forced = {"label": jnp.where(inputs["force_drop_ids"] == 1, null["label"], raw["label"])}
    dropped = {"label": jnp.where(inputs["u"] < options["dropout_prob"], null["label"], raw["label"])}
    out |= {"label_forced": embed(forced), "label_eval": embed(raw), "label_train": embed(dropped)}
    return out | {"label_train_ids": dropped["label"]}


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only."""
    found = {}
    for file, official in case.doc["keys"].items():
        structs = {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in official.items()}
        model, cond = modules(case.config)
        params = jax.eval_shape(partial(pretrained.convert, model=model, cond=cond), structs)
        free = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert free + structs["pos_embed"].size == case.doc["num_parameters"]
        back = jax.eval_shape(partial(pretrained.revert, shapes=official), params)
        found |= {f"{file}/{key}": leaf.shape for key, leaf in back.items()}
    return found
