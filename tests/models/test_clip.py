"""CLIP's towers: what they refuse, what they do not see, and what the options mean. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import CLIP, TextTower, ViT, logits, unit
from diffusion_jax.models.clip_resnet import ResNet
from diffusion_jax.models.transformer import Block

KEY = jax.random.key(0)
TOWER = TextTower(6, vocab=20, context=5, width=16, layers=2, heads=2)
TOKENS = np.array([[18, 3, 4, 19, 0], [18, 5, 19, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TOWER.init)(KEY, TOKENS)


def test_a_token_sees_earlier_ones_only_so_padding_changes_nothing(params):
    apply = jax.jit(TOWER.apply)
    state = apply(params, TOKENS)
    other = apply(params, TOKENS + np.array([[0, 0, 0, 0, 7], [0, 0, 0, 9, 2]], np.int32))
    np.testing.assert_allclose(state.features, other.features, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.pooled[0], state.tokens[0, 3], rtol=1e-6)


def test_where_a_text_is_read_and_which_layer_is_shown(params):
    changes = dict(end=4, skip=1)
    other = jax.jit(TOWER.clone(**changes).apply)(params, TOKENS[:1])
    state = jax.jit(TOWER.apply)(params, TOKENS[:1])
    np.testing.assert_allclose(other.pooled[0], state.tokens[0, 2], rtol=1e-6)
    np.testing.assert_array_equal(other.states[-1], state.states[-1])
    assert not np.allclose(other.tokens, state.tokens)
    last = jax.jit(TOWER.clone(end="last", features=None).apply)({"params": {
        name: value for name, value in params["params"].items() if name != "proj"}}, TOKENS[:1])
    np.testing.assert_allclose(last.features[0], state.tokens[0, -1], rtol=1e-6)


def test_an_unknown_token_is_loud(params):
    state = jax.jit(TOWER.apply)(params, TOKENS.clip(max=18) + 8)
    assert np.isnan(state.features).any()


@pytest.mark.parametrize("module, args, message", [
    (TOWER, (np.zeros((1, 6), np.int32),), "6 tokens is longer than the tower's context of 5"),
    (ViT(4, size=8, patch=4, width=8, layers=1, heads=1), (np.zeros((1, 8, 4, 3)),), "sees 8x8 pixels, not 8x4"),
    (ResNet(4, size=32, width=8, norm="bach"), (np.zeros((1, 32, 32, 3)),), "unknown norm of a ResNet 'bach'"),
    (Block(3), (np.zeros((1, 2, 8)),), "8 does not divide into 3 heads"),
    (Block(1, act="gleu"), (np.zeros((1, 2, 8)),), "did you mean 'gelu'"),
])
def test_what_is_refused(module, args, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module.init, KEY, *args)


def test_logits_are_cosines():
    rng = np.random.RandomState(0)
    a, b = np.float32(rng.randn(3, 4)), np.float32(rng.randn(2, 4))
    want = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]
    np.testing.assert_allclose(logits(7 * a, b, np.log(5.0)), 5 * want, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(unit(a), axis=-1), 1, rtol=1e-6)


@pytest.mark.slow
def test_images_are_normalised_per_channel():
    model = CLIP(ViT(4, size=4, patch=4, width=8, layers=1, heads=1), TOWER.clone(features=4), mean=(0.5,), std=(0.5,))
    x = np.float32(np.random.RandomState(0).rand(1, 4, 4, 1) * 2 - 1)
    variables = jax.jit(model.init)(KEY, x, TOKENS)

    @jax.jit
    def both(variables):
        direct = model.apply(variables, x, method=lambda module, x: module.image(x)).features
        return direct, model.apply(variables, x, method="encode_image")

    np.testing.assert_allclose(*both(variables), rtol=1e-4, atol=1e-5)
