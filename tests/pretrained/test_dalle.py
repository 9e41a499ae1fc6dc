"""The keys and options of the published autoregressive transformers. The numbers are goldens."""
import jax
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dalle import DALLE
from diffusion_jax.pretrained import dalle

RNG = np.random.default_rng(0)


def minimal():
    """minDALL-E's state dict with one layer of 8 channels, 5 and 7 codes, 3 tokens of text and 2 x 2 of image."""
    tables = {"tok_emb_txt": 5, "tok_emb_img": 7, "pos_emb_txt": 3, "pos_emb_img": 4, "head_txt": 5, "head_img": 7}
    shapes = {f"{name}.weight": (rows, 8) for name, rows in tables.items()} | {"ln_f.weight": (8,), "ln_f.bias": (8,)}
    block = {"ln1": (8,), "ln2": (8,), "attn.query": (8, 8), "attn.key": (8, 8), "attn.value": (8, 8), "attn.proj": (8, 8),
             "mlp.0": (32, 8), "mlp.2": (8, 32)}
    shapes |= {f"blocks.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {f"blocks.0.{name}.bias": shape[:1] for name, shape in block.items()}
    return {key: RNG.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def test_the_network_follows_from_the_shapes_and_the_options():
    options = dalle.options(minimal(), {"n_heads": 2, "gelu_use_approx": True})
    assert options | dict(heads=2, act="quick_gelu") == options
    assert {name: options[name] for name in ("text_codes", "image_codes", "text_length", "grid", "width", "depth")} == dict(
        text_codes=5, image_codes=7, text_length=3, grid=2, width=8, depth=1)
    with pytest.raises(ConfigError, match="no state dict of ru-DALL-E or minDALL-E"):
        dalle.options({"a": np.zeros(1)})


@pytest.mark.parametrize(("version", "wrap", "start"), [("v3", False, None), ("v2", True, 2)])
def test_versions_of_rudalle_differ_in_their_start_and_their_rows(version, wrap, start):
    shapes = {"text_embeddings.weight": (9, 8), "text_pos_embeddings.weight": (4, 8), "image_embeddings.weight": (7, 8),
              "image_row_embeddings.weight": (2, 8), "transformer.layers.1.input_layernorm.weight": (8,),
              "transformer.layers.0.before_first_addition_layernorm.weight": (8,)}
    state = {key: np.zeros(shape) for key, shape in shapes.items()}
    options = dalle.options(state, {"hf_version": version, "num_attention_heads": 2})
    assert (options["wrap"], options["start"], options["mask_text"], options["sandwich"]) == (wrap, start, 3, True)
    with pytest.raises(ConfigError, match="hf_version 'v4' is not known: v2 or v3"):
        dalle.options(state, {"hf_version": "v4"})


def test_query_key_and_value_become_one_layer_and_three_again():
    state = minimal()
    model = DALLE(**dalle.options(state, {"n_heads": 2}))
    params = dalle.convert(state, model)
    rows = np.concatenate([state[f"blocks.0.attn.{name}.weight"] for name in ("query", "key", "value")])
    np.testing.assert_array_equal(params["blocks_0"]["qkv"]["kernel"], rows.T)
    np.testing.assert_array_equal(params["head_image"]["kernel"], state["head_img.weight"].T)
    back = dalle.revert(params, model, {key: value.shape for key, value in state.items()})
    assert back.keys() == state.keys()
    jax.tree.map(np.testing.assert_array_equal, back, state)
    del state["blocks.0.attn.value.bias"]
    with pytest.raises(ConfigError, match="blocks.0.attn.query.bias has no key or no value beside it"):
        dalle.convert(state, model)


def test_a_tokenizer_alone_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **minimal())
    with pytest.raises(ConfigError, match="a tokenizer without a first stage draws nothing"):
        dalle.load(tmp_path / "x.npz", {"n_heads": 2, "tokenizer": {"name": "diffusion_jax.data.words:Words"}})
