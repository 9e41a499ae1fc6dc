"""The official keys of latent diffusion's text encoder, one by one. The numbers are goldens."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.pretrained import ldm_text

MODEL = TextEncoder(vocab=9, context=6, width=4, layers=2)
RNG = np.random.default_rng(0)


def official():
    """A BERTEmbedder's transformer: attention and MLP count as layers of their own."""
    shapes = {"token_emb.weight": (9, 4), "pos_emb.emb.weight": (6, 4), "norm.weight": (4,), "norm.bias": (4,)}
    for i in range(4):
        here = f"attn_layers.layers.{i}"
        shapes |= {f"{here}.0.weight": (4,), f"{here}.0.bias": (4,)}
        if i % 2 == 0:
            shapes |= {f"{here}.1.to_{name}.weight": (512, 4) for name in "qkv"}
            shapes |= {f"{here}.1.to_out.weight": (4, 512), f"{here}.1.to_out.bias": (4,)}
        else:
            shapes |= {f"{here}.1.net.0.0.weight": (16, 4), f"{here}.1.net.0.0.bias": (16,)}
            shapes |= {f"{here}.1.net.2.weight": (4, 16), f"{here}.1.net.2.bias": (4,)}
    return {key: RNG.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def test_every_key_finds_its_place_and_goes_back():
    weights = official()
    params = ldm_text.convert_bert(weights | {"to_logits.weight": np.zeros((9, 4))}, MODEL)
    np.testing.assert_array_equal(params["attn_1"]["k"]["kernel"], weights["attn_layers.layers.2.1.to_k.weight"].T)
    np.testing.assert_array_equal(params["fc2_0"]["kernel"], weights["attn_layers.layers.1.1.net.2.weight"].T)
    np.testing.assert_array_equal(params["norm2_1"]["scale"], weights["attn_layers.layers.3.0.weight"])
    np.testing.assert_array_equal(params["position"], weights["pos_emb.emb.weight"])
    shapes = {key: value.shape for key, value in weights.items()} | {"to_logits.bias": (9,)}
    back = ldm_text.revert_bert(params, shapes, MODEL)
    assert back.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, back, weights)


def test_the_network_follows_from_the_shapes():
    assert build(ldm_text.bert_config(official())) == MODEL


def test_a_key_that_is_missing_is_named():
    weights = official()
    del weights["attn_layers.layers.2.1.to_k.weight"]
    with pytest.raises(ConfigError, match="missing: attn_1/k/kernel"):
        ldm_text.convert_bert(weights, MODEL)
