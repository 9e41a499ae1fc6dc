"""Low-rank factors: W x + s B A x is W' x, in every kind of layer, and at first nothing changes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

from diffusion_jax.build import ConfigError
from diffusion_jax.nn import lora
from diffusion_jax.nn.conv import Conv
from diffusion_jax.nn.linear import Linear

KEY = jax.random.key(0)
PARAMS = {
    "model": {
        "blocks": {"qkv": {"kernel": np.ones((3, 8, 12), np.float32), "bias": np.zeros((3, 12), np.float32)}},
        "proj": {"kernel": np.ones((8, 5), np.float32)},
        "conv1": {"kernel": np.ones((3, 3, 4, 6), np.float32)},
    },
    "cond": {},
}


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)


@pytest.mark.parametrize("layer, x", [
    (Linear(5), (2, 7, 8)), pytest.param(Conv(6), (2, 5, 5, 4), marks=pytest.mark.slow), (Conv(6, stride=2), (1, 6, 6, 4)),
    pytest.param(Conv(6, size=1, padding=(0, 0)), (1, 4, 4, 3), marks=pytest.mark.slow),
], ids=["linear", "convolution", "strided", "pixels"])
def test_merged_is_applied(layer, x):
    """y = W x + s B (A x), the two factors being layers of their own: A of the same window and stride, B of single pixels."""
    x = jax.random.normal(KEY, x)
    params = layer.init(KEY, x)["params"]
    factors = drawn(lora.init(KEY, params, "kernel", 2))
    whole = lora.merged(params, factors, 0.3)
    down, up = factors["kernel"]["down"], factors["kernel"]["up"]
    narrow = layer.clone(features=2, use_bias=False).apply({"params": {"kernel": down}}, x)
    np.testing.assert_allclose(
        layer.apply({"params": whole}, x), layer.apply({"params": params}, x) + 0.3 * narrow @ up, rtol=0, atol=1e-5)


def test_layers_that_are_stacked_have_factors_of_their_own():
    factors = drawn(lora.init(KEY, PARAMS, "qkv", 2))
    whole = lora.merged(PARAMS, factors, 2.0)
    down, up = (factors["model"]["blocks"]["qkv"]["kernel"][name] for name in ("down", "up"))
    for layer in range(3):
        want = 1 + 2 * np.asarray(down[layer], np.float64) @ np.asarray(up[layer], np.float64)
        np.testing.assert_allclose(whole["model"]["blocks"]["qkv"]["kernel"][layer], want, rtol=1e-5, atol=1e-5)
    assert whole["model"]["proj"] is PARAMS["model"]["proj"] and whole["cond"] == {}


def test_it_starts_as_the_layer_itself():
    """B = 0, and A as peft draws it: Kaiming's uniform with a = sqrt 5 is uniform in +-1 / sqrt(inputs)."""
    params = {"a": {"kernel": np.zeros((64, 8), np.float32)}, "b": {"kernel": np.zeros((3, 3, 16, 8), np.float32)},
              "c": {"kernel": np.zeros((5, 64, 8), np.float32)}}
    factors = lora.init(KEY, params, ".", 16)
    for name, inputs in (("a", 64), ("b", 144), ("c", 64)):
        down, up = factors[name]["kernel"]["down"], factors[name]["kernel"]["up"]
        assert not np.any(up) and down.shape == (*params[name]["kernel"].shape[:-1], 16)
        assert kstest(np.ravel(down) * inputs**0.5, "uniform", args=(-1, 2)).pvalue > 1e-3
    assert not np.array_equal(factors["c"]["kernel"]["down"][0], factors["c"]["kernel"]["down"][1])
    same = lora.merged(drawn(params), factors, 7.0)
    jax.tree.map(np.testing.assert_array_equal, same, drawn(params))
    alone = lora.init(KEY, params, "^a/", 16)
    np.testing.assert_array_equal(alone["a"]["kernel"]["down"], factors["a"]["kernel"]["down"])


def test_the_projections_of_attention_by_default():
    assert set(lora.chosen(PARAMS, lora.ATTENTION)) == {"model/blocks/qkv/kernel", "model/proj/kernel"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"no kernel's path matches lora.layers 'mlp'; this network has 3: model/blocks/qkv"):
        lora.chosen(PARAMS, "mlp")
    factors = lora.init(KEY, PARAMS, "proj", 2)
    with pytest.raises(ConfigError, match="a LoRA of model/proj/kernel .* does not fit this model's"):
        lora.merged({"model": {"proj": {"kernel": np.zeros((9, 5), np.float32)}}}, factors, 1.0)
    with pytest.raises(ConfigError, match="a LoRA of model/proj does not fit this model, which has none"):
        lora.merged({"model": {}}, factors, 1.0)
