"""unCLIP's diffusion prior: what it sees and what it refuses. Its numbers are pinned by goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.prior import Prior, preset

KEY = jax.random.key(0)
PRIOR = Prior(features=6, context=5, width=8, layers=1, heads=2)
DRAW = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
SEQ = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


def test_the_prior_sees_text_embedding_noise_level_and_image_but_no_masked_token():
    cond = {"vec": DRAW[0], "seq": SEQ, "seq_mask": MASK}
    params = jax.jit(PRIOR.init)(KEY, DRAW[1], jnp.zeros(2), cond)
    run = jax.jit(PRIOR.apply)
    out = run(params, DRAW[1], jnp.zeros(2), cond)
    assert out.shape == (2, 6) and np.ptp(out) > 0
    blind = run(params, DRAW[1], jnp.zeros(2), cond | {"seq": SEQ + 9 * ~MASK[..., None]})
    np.testing.assert_allclose(blind, out, atol=1e-6)
    clean = jnp.zeros(2)
    for other in ((DRAW[1] + 1, clean, cond), (DRAW[1], clean + 500, cond), (DRAW[1], clean, cond | {"vec": DRAW[2]}),
                  (DRAW[1], clean, cond | {"seq": SEQ + 1})):
        assert np.abs(run(params, *other) - out).max() > 1e-4


def test_what_the_prior_cannot_take_is_refused():
    cond = {"vec": DRAW[0], "seq": SEQ[:, :4]}
    for given, says in ((cond, "sees texts of 5 tokens, not 4"), ({"cat": SEQ}, "unknown condition of Prior 'cat'")):
        with pytest.raises(ConfigError, match=says):
            jax.eval_shape(PRIOR.init, KEY, DRAW[1], jnp.zeros(2), given)
    with pytest.raises(ConfigError, match="unknown preset"):
        preset("carlo")
    big = Prior(**preset("karlo"))
    cond = {"vec": jnp.zeros((1, 768)), "seq": jnp.zeros((1, 77, 768))}
    params = jax.eval_shape(big.init, KEY, jnp.zeros((1, 768)), jnp.zeros(1), cond)
    assert 1.01e9 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.03e9


def test_the_last_place_of_the_row_is_what_is_read():
    """Without layers that is the query and its position, whatever the text, the time and x_t."""
    prior = Prior(features=6, context=5, width=8, layers=0, heads=2)
    cond = {"vec": DRAW[0], "seq": SEQ}
    shapes = jax.eval_shape(prior.init, KEY, DRAW[1], jnp.zeros(2), cond)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)
    row = params["query"] + params["position"][8]
    row = (row - row.mean()) / np.sqrt(row.var() + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    want = row @ params["out"]["kernel"] + params["out"]["bias"]
    out = jax.jit(prior.apply)({"params": params}, DRAW[1], jnp.zeros(2), cond)
    np.testing.assert_allclose(out, np.stack([want] * 2), atol=1e-5)
