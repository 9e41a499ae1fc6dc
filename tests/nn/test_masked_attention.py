"""Masked attention against a loop over queries that sees the kept tokens only."""
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from diffusion_jax.nn.masked_attention import masked_attention

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, 3, n, 4)).astype(np.float32) for n in (5, 6, 6))
MASK = np.array([[True, False, True, True, False, True], [False, True, True, False, True, True]])
BIAS = RNG.normal(size=(3, 5, 6)).astype(np.float32)


def looped(mask, bias):
    out = np.zeros(Q.shape)
    for b, h, t in np.ndindex(Q.shape[:3]):
        logits = np.float64(K[b, h, mask[b]]) @ Q[b, h, t] / 2 + bias[h, t, mask[b]]
        out[b, h, t] = softmax(logits) @ V[b, h, mask[b]]
    return out


@pytest.mark.parametrize("bias", [None, BIAS, BIAS[:1]], ids=["no bias", "a bias", "one for all heads"])
def test_tokens_that_are_left_out_might_as_well_not_be_there(bias):
    want = looped(MASK, np.zeros((3, 5, 6)) if bias is None else np.broadcast_to(bias, (3, 5, 6)))
    np.testing.assert_allclose(masked_attention(Q, K, V, MASK, bias), want, atol=1e-6)


def test_a_mask_that_keeps_all_and_none_at_all_are_the_same():
    every = np.ones((2, 6), bool)
    want = looped(every, BIAS)
    for mask in (every, None):
        np.testing.assert_allclose(masked_attention(Q, K, V, mask, BIAS), want, atol=1e-6)


def test_the_only_token_that_is_kept_is_the_answer_in_the_type_of_the_values():
    one = np.zeros((2, 6), bool)
    one[:, 3] = True
    out = masked_attention(Q, K, jnp.asarray(V, jnp.bfloat16), one)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, np.broadcast_to(jnp.asarray(V, jnp.bfloat16)[:, :, 3:4], Q.shape))
