"""Linear attention against its formula, one head at a time in float64."""
import numpy as np
from scipy.special import softmax

from diffusion_jax.nn.linear_attention import linear_attention, scaled_linear_attention

RNG = np.random.default_rng(0)
Q, K, V = (RNG.normal(size=(2, 3, n, d)).astype(np.float32) for n, d in ((4, 5), (6, 5), (6, 7)))


def looped(q, k, v):
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, h in np.ndindex(q.shape[:2]):
        context = softmax(np.float64(k[b, h]), axis=0).T @ v[b, h]                 # [d, e]
        out[b, h] = softmax(np.float64(q[b, h]), axis=1) @ context
    return out


def test_is_its_definition_and_scaled_by_the_width_of_a_head():
    np.testing.assert_allclose(linear_attention(Q, K, V), looped(Q, K, V), atol=1e-6)
    np.testing.assert_allclose(scaled_linear_attention(Q, K, V), looped(Q, K, V) / np.sqrt(5), atol=1e-6)


def test_masked_tokens_might_as_well_not_be_there():
    mask = np.array([[True, True, False, True, False, True]] * 2)
    want = looped(Q, K[:, :, mask[0]], V[:, :, mask[0]])
    np.testing.assert_allclose(linear_attention(Q, K, V, mask), want, atol=1e-6)


def test_values_that_are_one_stay_one_and_the_order_of_the_tokens_is_lost():
    np.testing.assert_allclose(linear_attention(Q, K, np.ones_like(V)), 1, atol=1e-6)
    turned = linear_attention(Q, K[:, :, ::-1], V[:, :, ::-1])
    np.testing.assert_allclose(turned, linear_attention(Q, K, V), atol=1e-6)
