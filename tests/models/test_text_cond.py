import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.bert import TextEncoder
from diffusion_jax.models.cond import Joint
from diffusion_jax.models.text_cond import LabelToken, Stack, TowerText
from diffusion_jax.train.optim import optimizer

TEXT = TowerText(TextEncoder(vocab=9, context=5, width=8, layers=1, heads=2, head_channels=4), empty=(7, 8, 0), context=5)
RAW = {"tokens": jnp.array([[7, 1, 2, 8, 0], [7, 3, 8, 0, 0]]), "label": jnp.array([0, 2]), "inpaint": jnp.ones((2, 4, 4, 5))}


def test_the_null_text_is_empty():
    np.testing.assert_array_equal(TEXT.null(RAW)["tokens"], [[7, 8, 0, 0, 0]] * 2)


def test_a_frozen_tower_gets_no_gradient():
    shapes = jax.eval_shape(TEXT.init, jax.random.key(0), RAW)["params"]
    params = jax.tree.map(lambda p: jnp.ones(p.shape), shapes)

    def total(params, cond):
        return jnp.sum(cond.apply({"params": params}, RAW)["seq"] * jnp.arange(8.0)[None, None])

    frozen, free = (jax.jit(jax.grad(total), static_argnums=1)(params, cond) for cond in (TEXT, TEXT.clone(frozen=False)))
    assert not any(jnp.any(g) for g in jax.tree.leaves(frozen)) and any(jnp.any(g) for g in jax.tree.leaves(free))


def test_a_frozen_tower_does_not_decay():
    params = {"cond": {"tower": {"kernel": jnp.ones(3)}}, "model": {"kernel": jnp.ones(3)}}
    adam = optimizer("adamw", 0.1, weight_decay=0.1)
    updates, _ = adam.update(jax.tree.map(jnp.zeros_like, params), adam.init(params), params)
    assert not jnp.any(updates["cond"]["tower"]["kernel"]) and jnp.allclose(updates["model"]["kernel"], -0.01)


def test_they_join():
    cond = Joint((LabelToken(3, 8), Stack("inpaint", 5)))
    assert cond.keys == ("label", "inpaint") and cond.droppable == ("label",)
    shapes = jax.eval_shape(lambda: cond.init_with_output(jax.random.key(0), RAW)[0])
    assert shapes["seq"].shape == (2, 1, 8) and shapes["cat"].shape == (2, 4, 4, 5)
    np.testing.assert_array_equal(cond.null(RAW)["label"], [3, 3])


@pytest.mark.parametrize("cond, raw", [
    (TEXT, {"tokens": np.zeros((2, 6), np.int32)}), (LabelToken(3, 8), {"label": np.array([3])}),
    (Stack("inpaint", 5), {"inpaint": np.zeros((2, 4, 4, 4))}),
], ids=["long", "label", "channels"])
def test_what_does_not_fit_is_refused(cond, raw):
    with pytest.raises(ConfigError):
        cond.check(raw)
