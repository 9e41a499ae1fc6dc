"""Group normalisation against NumPy's means and variances in float64."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn.group_norm import GroupNorm, group_mean

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def by_numpy(x, groups, eps):
    parts = np.split(np.float64(x), groups, axis=-1)
    axes = tuple(range(1, x.ndim))
    return np.concatenate([(p - p.mean(axes, keepdims=True)) / np.sqrt(p.var(axes, keepdims=True) + eps) for p in parts], axis=-1)


@pytest.mark.parametrize(
    ("groups", "shape"), [(1, (2, 3, 4, 6)), (3, (2, 3, 4, 6)), (6, (2, 5, 6))], ids=["layer", "group", "instance"])
def test_is_its_definition_with_and_without_a_modulation(groups, shape):
    x, gamma, beta, scale, shift = 3 * draw(*shape) + 7, draw(6), draw(6), draw(2, 6), draw(2, 6)
    norm, params = GroupNorm(groups, 1e-3), {"params": {"scale": gamma, "bias": beta}}
    want = gamma * by_numpy(x, groups, 1e-3) + beta
    np.testing.assert_allclose(norm.apply(params, x), want, atol=1e-5)
    scale_, shift_ = (np.expand_dims(a, tuple(range(1, x.ndim - 1))) for a in (scale, shift))
    np.testing.assert_allclose(norm.apply(params, x, scale, shift), want * (1 + scale_) + shift_, atol=3e-5)


def test_a_constant_becomes_the_bias_and_bfloat16_is_normalised_in_float32():
    params = {"params": {"scale": draw(4), "bias": np.arange(4, dtype=np.float32)}}
    out = GroupNorm(2).apply(params, jnp.full((1, 3, 3, 4), 1000.0, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out[0, 1, 1].astype("float32"), np.arange(4))


def test_the_mean_of_a_group_stands_at_each_of_its_channels():
    x = draw(2, 3, 5, 4)
    want = np.repeat(x.reshape(2, 15, 2, 2).mean((1, 3)), 2, axis=1)
    np.testing.assert_allclose(group_mean(jnp.asarray(x), 2), want, atol=1e-6)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="6 channels do not divide into 4 groups"):
        jax.eval_shape(GroupNorm(4).init, jax.random.key(0), jnp.zeros((1, 2, 2, 6)))
