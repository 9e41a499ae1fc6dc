"""The encoder of T5 v1.1 in transformers' form."""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from golden_case import Case
from golden_routines.equal_blocks import thinned

from diffusion_jax.build import build
from diffusion_jax.models.t5 import buckets as bucket_of
from diffusion_jax.pretrained import t5 as pretrained

Found = dict[str, Any]


def buckets(case: Case) -> Found:
    """The bucket of every distance."""
    found = {}
    for i, call in enumerate(case.config["calls"]):
        distance = np.arange(-call["reach"], call["reach"] + 1)
        found[f"bucket_{i}"] = bucket_of(distance, call["num_buckets"], call["max_distance"])
    return found


def encoder(case: Case) -> Found:
    """The states after the last block's norm, and those that go into the last block."""
    tower = build(pretrained.config(case.config["kwargs"]))
    params = pretrained.convert(case.weights, tower)
    mask = case.inputs.get("attention_mask")
    run = jax.jit(partial(tower.apply, capture_intermediates=True))
    out, seen = run({"params": params}, jnp.asarray(case.inputs["input_ids"], jnp.int32), mask)
    return {"last_hidden_state": out, "penultimate": seen["intermediates"][f"blocks_{tower.layers - 2}"]["__call__"][0]}


def keys(case: Case) -> Found:
    """A published state dict onto our parameters and back, on shapes only."""
    found = {}
    for name, official in case.doc["keys"].items():
        spec = pretrained.config(case.config)
        whole = {key: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for key, shape in official.items()}
        assert spec == pretrained.published(whole) | {key: spec[key] for key in ("eps", "distance")}
        few, places = thinned(official, r"(encoder\.block\.)(\d+)(\..+)")
        tower = build(spec | {"layers": 2})
        params = jax.eval_shape(partial(pretrained.convert, tower=tower), {key: whole[key] for key in few})
        back = jax.eval_shape(partial(pretrained.revert, shapes=few), params)
        assert set(back) == set(few)
        found |= {f"{name}/{key}": back[places[key]].shape for key in official}
    return found
