"""The text encoder that the first latent diffusion model of texts was trained with, of BERT's tokens, as our TextEncoder."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.pretrained import rules
from diffusion_jax.pretrained.rules import TRANSPOSE, Rule, layer, norm
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

IGNORED = "to_logits."
"""A head that latent diffusion does not use."""


def table(layers: int) -> list[Rule]:
    """The rules. Official layers alternate: 0 is the first attention, 1 the first MLP."""
    rows = [
        Rule(r"token_emb\.weight", "token"),
        Rule(r"pos_emb\.emb\.weight", "position"),
        *norm("norm", "norm"),
    ]
    for i in range(layers):
        attention = rf"attn_layers\.layers\.{2 * i}"
        mlp = rf"attn_layers\.layers\.{2 * i + 1}"
        rows += [
            *norm(rf"{attention}\.0", f"norm1_{i}"),
            *norm(rf"{mlp}\.0", f"norm2_{i}"),
            Rule(rf"{attention}\.1\.to_(q|k|v)\.weight", rf"attn_{i}/\1/kernel", TRANSPOSE),
            *layer(rf"{attention}\.1\.to_out", f"attn_{i}/out"),
            *layer(rf"{mlp}\.1\.net\.0\.0", f"fc1_{i}"),
            *layer(rf"{mlp}\.1\.net\.2", f"fc2_{i}"),
        ]
    return rows


def bert_config(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What to `build` the text encoder of a state dict (of arrays or shapes) from; its heads are always 8 of 64 channels."""
    vocab, width = state_dict["token_emb.weight"].shape
    layers = sum(key.endswith(".to_q.weight") for key in state_dict)
    context = state_dict["pos_emb.emb.weight"].shape[0]
    return dict(name="diffusion_jax.models.bert:TextEncoder", vocab=vocab, context=context, width=width, layers=layers)


def convert_bert(state_dict: Mapping[str, Array], model: TextEncoder) -> Params:
    """An official BERTEmbedder's transformer as parameters of `model`.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    target = shapes_of(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return rules.convert({k: w for k, w in state_dict.items() if not k.startswith(IGNORED)}, table(model.layers), target)


def revert_bert(params: Params, shapes: Mapping[str, rules.Shape], model: TextEncoder) -> dict[str, Array]:
    """Parameters as an official state dict of the given shapes, without the head that is not used."""
    return rules.revert(params, table(model.layers), {k: s for k, s in shapes.items() if not k.startswith(IGNORED)})
