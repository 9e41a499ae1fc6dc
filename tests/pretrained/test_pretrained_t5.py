"""T5's encoder from and to transformers' names; its numbers are in the goldens, t5."""
import numpy as np
import pytest
from exports import filled, same

from diffusion_jax.build import ConfigError, build
from diffusion_jax.models.dit import stack_layers
from diffusion_jax.models.t5 import T5Encoder
from diffusion_jax.pretrained import t5

TOWER = T5Encoder(vocab=10, width=12, layers=3, heads=2, head_channels=4, hidden=8)


@pytest.fixture(scope="module")
def params():
    return filled(t5.shapes(TOWER))


def test_an_encoder_comes_back_bit_for_bit(params):
    weights = t5.official_weights(params)
    assert len(weights) == 3 + 3 * 9 and weights["encoder.block.2.layer.0.SelfAttention.k.weight"].shape == (8, 12)
    same(t5.convert(weights, TOWER), params)
    same(t5.convert(weights, TOWER.clone(scan=True)), stack_layers(params))
    assert build(t5.published(weights)) == TOWER and build(t5.config(t5.official_config(TOWER))) == TOWER


def test_the_embedding_stands_under_either_name_or_both_and_a_decoder_is_left(params):
    weights = t5.official_weights(params)
    tied = {**weights, t5.TIED: weights[t5.SHARED]}
    same(t5.convert(tied | {"decoder.block.0.x": np.zeros(2), "lm_head.weight": np.zeros(2)}, TOWER), params)
    other = {key: value for key, value in tied.items() if key != t5.SHARED}
    same(t5.convert(other, TOWER), params)
    same(t5.revert(params, {key: value.shape for key, value in tied.items()}), tied)
    with pytest.raises(ConfigError, match="no T5 has two embeddings"):
        t5.convert(tied | {t5.TIED: np.zeros((10, 12), np.float32)}, TOWER)


@pytest.mark.parametrize("change, says", [
    ({"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"), ({"feed_forward_proj": None}, "T5's first one"),
    ({"dense_act_fn": "silu"}, "dense_act_fn"),
])
def test_other_networks_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        t5.config(t5.official_config(TOWER) | change)
    with pytest.raises(ConfigError, match="no shared|no encoder"):
        t5.published({})
