"""CLIP's ResNet: its norm and its blocks in closed form. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import build
from diffusion_jax.models.clip import preset
from diffusion_jax.models.clip_resnet import Bottleneck, FixedBatchNorm, ResNet

KEY = jax.random.key(0)
RNG = np.random.RandomState(0)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_resnet_trains(norm):
    tower = ResNet(4, size=32, width=8, layers=(1, 1, 1, 1), norm=norm)
    x = np.zeros((2, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(tower.init_with_output, KEY, x)
    assert shapes[0].features.shape == (2, 4)
    assert ("mean" in shapes[1]["params"]["stem_0"]["norm"]) == (norm == "batch")
    assert build(preset("RN50", norm)["image"]).norm == norm


def test_a_fixed_norm_uses_its_statistics_and_lets_no_gradient_reach_them():
    x = np.float32(RNG.randn(2, 3, 4, 5))
    params = {name: np.float32(RNG.rand(5) + 0.5) for name in ("scale", "bias", "mean", "var")}
    norm = FixedBatchNorm()
    want = (x - params["mean"]) / np.sqrt(params["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(norm.apply({"params": params}, x), want, rtol=1e-5, atol=1e-5)
    grads = jax.grad(lambda p: jnp.sum(norm.apply({"params": p}, x)))(params)
    assert not grads["mean"].any() and not grads["var"].any()
    np.testing.assert_allclose(grads["bias"], 24)


def test_a_bottleneck_that_adds_nothing_is_its_input_or_the_means_of_it():
    x = np.float32(RNG.randn(1, 4, 6, 8))
    shapes = jax.eval_shape(Bottleneck(2, 2).init, KEY, x)["params"]
    assert set(shapes) == {"conv1", "conv2", "conv3", "skip"}
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for part in params.values():
        part["norm"] |= {"scale": np.ones_like(part["norm"]["scale"]), "var": np.ones_like(part["norm"]["var"]) - 1e-5}
    params["skip"]["conv"]["kernel"] = np.float32(np.eye(8))[None, None]
    means = x.reshape(1, 2, 2, 3, 2, 8).mean((2, 4))
    np.testing.assert_allclose(jax.jit(Bottleneck(2, 2).apply)({"params": params}, x), np.maximum(means, 0), atol=1e-6)
    del params["skip"]
    np.testing.assert_allclose(jax.jit(Bottleneck(2).apply)({"params": params}, x), np.maximum(x, 0), atol=1e-6)
