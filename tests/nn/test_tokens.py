"""The choice of the next token; numbers of published code are pinned by goldens."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nn.tokens import choose, filtered, top_k, top_p

LOGITS = jnp.log(jnp.array([[0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]]))


def kept(logits):
    return np.isfinite(np.asarray(logits)).tolist()


def test_cut_offs_keep_the_most_likely_tokens():
    assert kept(top_k(LOGITS, 2)) == [[True, False, True, False], [False, False, True, True]]
    assert kept(top_p(LOGITS, 0.65)) == [[True, False, True, False], [False, False, True, True]]
    assert kept(top_p(LOGITS, 0.75)) == [[True, False, True, True], [False, True, True, True]]     # the one that crosses stays
    assert kept(top_p(LOGITS, 0.01)) == kept(top_k(LOGITS, 1))
    for same in (top_k(LOGITS, 0), top_k(LOGITS, 4), top_p(LOGITS, 0), top_p(LOGITS, 1)):
        np.testing.assert_array_equal(same, LOGITS)


def test_draws_have_the_probabilities_of_the_softmax():
    gumbel = jax.random.gumbel(jax.random.key(0), (20_000, 2, 4))
    logits = filtered(LOGITS, temperature=0.5, k=3)
    share = jax.nn.one_hot(choose(logits[None], gumbel), 4).mean(0)
    np.testing.assert_allclose(share, jax.nn.softmax(logits), atol=0.015)
