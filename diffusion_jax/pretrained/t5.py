"""The encoder of a published T5 v1.1 as our T5Encoder: text_encoder_3 of Stable Diffusion 3.

Files are transformers': encoder.block.0.layer.0.SelfAttention.q.weight. The embedding stands there under one of two names or
under both, and the decoder of a whole T5 is left. Query, key and value have one weight here, three there: `merge` and `split` go
from one to the other.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dit import unstack_layers
from diffusion_jax.models.t5 import T5Encoder
from diffusion_jax.pretrained import folder, names, rules, stacking
from diffusion_jax.pretrained.package import Spec
from diffusion_jax.pretrained.rules import SAME, TRANSPOSE, Rule
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.types import Array, Params

_BLOCK, _OURS = r"encoder\.block\.(\d+)\.layer", r"blocks_\1"
RULES = [
    Rule(r"shared\.weight", "token", SAME),
    Rule(r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", "bias", SAME),
    Rule(rf"{_BLOCK}\.0\.layer_norm\.weight", f"{_OURS}/norm1/scale", SAME),
    Rule(rf"{_BLOCK}\.0\.SelfAttention\.qkv\.weight", f"{_OURS}/qkv/kernel", TRANSPOSE),
    Rule(rf"{_BLOCK}\.0\.SelfAttention\.o\.weight", f"{_OURS}/proj/kernel", TRANSPOSE),
    Rule(rf"{_BLOCK}\.1\.layer_norm\.weight", f"{_OURS}/norm2/scale", SAME),
    Rule(rf"{_BLOCK}\.1\.DenseReluDense\.wi_0\.weight", f"{_OURS}/gate/kernel", TRANSPOSE),
    Rule(rf"{_BLOCK}\.1\.DenseReluDense\.wi_1\.weight", f"{_OURS}/fc1/kernel", TRANSPOSE),
    Rule(rf"{_BLOCK}\.1\.DenseReluDense\.wo\.weight", f"{_OURS}/fc2/kernel", TRANSPOSE),
    Rule(r"encoder\.final_layer_norm\.weight", "norm/scale", SAME),
]
"""Keys with one weight for query, key and value to our parameters with unrolled blocks."""
TIED, SHARED = "encoder.embed_tokens.weight", "shared.weight"
OF_OTHERS = ("decoder.", "lm_head.")
PLAIN = {"feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"}
"""Options of transformers' T5 with their only value here."""
READ = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets", "layer_norm_epsilon",
    "relative_attention_max_distance", "dropout_rate", "tie_word_embeddings", "scale_decoder_outputs", "initializer_factor",
    "num_decoder_layers", "decoder_start_token_id", "is_encoder_decoder", "is_decoder", "use_cache", "architectures",
    "model_type", "eos_token_id", "pad_token_id", "bos_token_id", "output_past", "dtype", "torch_dtype", "transformers_version",
    "task_specific_params", "n_positions", "classifier_dropout", "return_dict", "output_attentions", "output_hidden_states",
)
"""Options that are read, or that change nothing of the encoder."""


def config(options: Mapping[str, Any]) -> Spec:
    """What to `build` the encoder of a T5's config.json from.

    Raises:
      ConfigError: an option that has no counterpart here: T5 v1.0 has no gate.
    """
    folder.checked(options, PLAIN, READ, "T5's config.json")
    if options.get("feed_forward_proj") != PLAIN["feed_forward_proj"]:
        raise ConfigError("no encoder here is T5's first one, without gates: only v1.1, feed_forward_proj 'gated-gelu'")
    o = options
    return dict(
        name="diffusion_jax.models.t5:T5Encoder", vocab=o["vocab_size"], width=o["d_model"], layers=o["num_layers"],
        heads=o["num_heads"], head_channels=o["d_kv"], hidden=o["d_ff"], eps=o.get("layer_norm_epsilon", 1e-6),
        buckets=o.get("relative_attention_num_buckets", 32), distance=o.get("relative_attention_max_distance", 128),
    )


def published(state_dict: Mapping[str, Any]) -> Spec:
    """What to `build` the encoder of a state dict (of arrays or shapes) from, whose heads are of 64 channels as in every
    published one.

    Raises:
      ConfigError: it is none.
    """
    first = "encoder.block.0.layer."
    try:
        vocab, width = state_dict[SHARED if SHARED in state_dict else TIED].shape
        inner = state_dict[f"{first}0.SelfAttention.q.weight"].shape[0]
        hidden = state_dict[f"{first}1.DenseReluDense.wi_0.weight"].shape[0]
        number, heads = state_dict[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    except KeyError as error:
        raise ConfigError(f"this is no state dict of T5 v1.1's encoder: there is no {error.args[0]}") from None
    layers = len({match[1] for key in state_dict if (match := re.match(r"encoder\.block\.(\d+)\.", key))})
    return dict(name="diffusion_jax.models.t5:T5Encoder", vocab=vocab, width=width, layers=layers, heads=heads,
                head_channels=inner // heads, hidden=hidden, buckets=number)


def official_config(tower: T5Encoder) -> Spec:
    """The options of transformers' T5EncoderModel for an encoder."""
    return dict(
        architectures=["T5EncoderModel"], model_type="t5", vocab_size=tower.vocab, d_model=tower.width, d_kv=tower.head_channels,
        d_ff=tower.hidden, num_layers=tower.layers, num_heads=tower.heads, relative_attention_num_buckets=tower.buckets,
        relative_attention_max_distance=tower.distance, layer_norm_epsilon=tower.eps, feed_forward_proj="gated-gelu",
        dropout_rate=0.0, tie_word_embeddings=False, is_encoder_decoder=True, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )


_SPLIT = re.compile(r"(.+\.SelfAttention\.)([qkv])(\.weight)")


def merge(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of the encoder alone, with one weight for query, key and value and one embedding.

    Raises:
      ConfigError: its two embeddings differ.
    """
    merged: dict[str, Any] = {}
    for key, value in state_dict.items():
        match = _SPLIT.fullmatch(key)
        if key.startswith(OF_OTHERS):
            continue
        if match is None:
            merged[SHARED if key == TIED else key] = value
        elif match[2] == "q":                                          # k and v come with it
            merged[f"{match[1]}qkv{match[3]}"] = joined([state_dict[f"{match[1]}{part}{match[3]}"] for part in "qkv"])
    both = [state_dict[key] for key in (SHARED, TIED) if key in state_dict]
    if len(both) == 2 and both[0] is not both[1] and isinstance(both[0], np.ndarray) and not np.array_equal(*both):
        raise ConfigError(f"{SHARED} and {TIED} differ: no T5 has two embeddings of its tokens")
    return merged


def joined(parts: list[Any]) -> Any:
    """Arrays one below the other: by NumPy on the host where all of them are its own."""
    return (np.concatenate if all(isinstance(part, np.ndarray) for part in parts) else jnp.concatenate)(parts)


def shapes(tower: T5Encoder) -> Params:
    """Shapes and types of the parameters with unrolled blocks; computes nothing."""
    scanned = tower.clone(scan=True)                                   # a single block is then traced
    params = shapes_of(scanned.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return stacking.unstacked_shapes(params)


def convert(state_dict: rules.Weights, tower: T5Encoder) -> Params:
    """An official state dict as the parameters of the encoder, stacked where it scans its blocks.

    Raises:
      ConfigError: the weights do not fit; the line says where.
    """
    make = stacking.convert if tower.scan else rules.convert
    return make(merge(state_dict), RULES, shapes(tower))


def revert(params: Params, shapes: Mapping[str, rules.Shape]) -> dict[str, Array]:
    """Parameters (or gradients), with scanned or unrolled blocks, as an official state dict of the given shapes."""
    used = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    merged = {key: value.shape for key, value in merge(used).items()}
    weights = rules.revert(unstack_layers(params), RULES, merged)
    official: dict[str, Array] = {}
    for key in shapes:
        match = _SPLIT.fullmatch(key)
        if match is None:
            official[key] = weights[SHARED if key == TIED else key]
        else:
            third = shapes[key][0]
            start = "qkv".index(match[2]) * third
            official[key] = weights[f"{match[1]}qkv{match[3]}"][start : start + third]
    return official


def official_weights(params: Params) -> dict[str, Array]:
    """An encoder's parameters under transformers' names, its embedding once."""
    merged = names.shapes(unstack_layers(params), RULES)
    split = {}
    for key, shape in merged.items():
        parts = [key.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in key else [key]
        split |= {part: (shape[0] // len(parts), *shape[1:]) for part in parts}
    return revert(params, split)
