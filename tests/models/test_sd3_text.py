"""Three texts as one condition; the published numbers are in the goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.clip import TextTower
from diffusion_jax.models.sd3_text import SD3Text
from diffusion_jax.models.t5 import T5Encoder

L = TextTower(6, vocab=20, context=4, width=8, layers=2, heads=2)
G = TextTower(10, vocab=20, context=4, width=12, layers=2, heads=2, act="gelu")
T5 = T5Encoder(vocab=30, width=24, layers=1, heads=2, head_channels=4, hidden=16)
COND = SD3Text(L, G, T5, width=24, context=4, t5_context=3)
TOKENS = np.array([[18, 5, 19, 19, 18, 6, 19, 0, 7, 1, 0]], np.int32)


def params_of(module, tokens):
    shapes = jax.eval_shape(module.init, jax.random.key(0), {"tokens": tokens})["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)), shapes)


@pytest.mark.slow
def test_states_lie_where_the_equations_say():
    params = params_of(COND, TOKENS)

    @jax.jit
    def run(params):
        towers = L.apply({"params": params["clip_l"]}, TOKENS[:, :4]), G.apply({"params": params["clip_g"]}, TOKENS[:, 4:8])
        return COND.apply({"params": params}, {"tokens": TOKENS}), *towers, T5.apply({"params": params["t5"]}, TOKENS[:, 8:])

    cond, small, large, t5 = run(params)
    assert cond["seq"].shape == (1, 7, 24) and cond["vec"].shape == (1, 16)
    np.testing.assert_array_equal(cond["seq"][:, :4, :8], small.states[1])
    np.testing.assert_array_equal(cond["seq"][:, :4, 8:20], large.states[1])
    assert not cond["seq"][:, :4, 20:].any()
    np.testing.assert_array_equal(cond["seq"][:, 4:], t5)
    np.testing.assert_array_equal(cond["vec"], np.concatenate([small.features, large.features], axis=-1))


def test_the_empty_text_is_that_of_each_tokenizer():
    null = COND.null({"tokens": jnp.asarray(TOKENS), "label": 3})
    np.testing.assert_array_equal(null["tokens"], [[18, 19, 19, 19, 18, 19, 0, 0, 1, 0, 0]])
    assert null["label"] == 3
    without = COND.clone(t5=None)
    np.testing.assert_array_equal(without.empty(), [18, 19, 19, 19, 18, 19, 0, 0])
    assert without.length == 8


@pytest.mark.slow
def test_without_t5_its_rows_are_zero_and_frozen_encoders_get_no_gradient():
    without = COND.clone(t5=None)
    params = params_of(without, TOKENS[:, :8])
    seen = jax.jit(without.apply)({"params": params}, {"tokens": TOKENS[:, :8]})
    assert seen["seq"].shape == (1, 7, 24) and not seen["seq"][:, 4:].any() and seen["seq"][:, :4, :20].all()

    def total(params, module):
        return sum(jnp.sum(value) for value in module.apply({"params": params}, {"tokens": TOKENS[:, :8]}).values())

    for frozen in (True, False):
        grads = jax.jit(jax.grad(total), static_argnums=1)(params, without.clone(frozen=frozen))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(grads)) is not frozen


@pytest.mark.parametrize("options, says", [
    (dict(width=16, t5=None), "no room for the 20 channels"), (dict(width=32), "T5's, 24, not 32"),
    (dict(clip_skip=2), "0 ... 1"),
])
def test_encoders_that_do_not_fit_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        COND.clone(**options)


@pytest.mark.parametrize("tokens", [TOKENS[:, :8], TOKENS.astype(np.float32), TOKENS[0]])
def test_other_tokens_are_refused(tokens):
    with pytest.raises(ConfigError, match=r"tokens \[B, 11\] int"):
        COND.check({"tokens": tokens})
    COND.check({"tokens": TOKENS})
