"""The weight of guidance as a condition: its waves by their formula, what the UNet makes of them, and how it is trained."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import filled

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process, scales
from diffusion_jax.models.augment import Augmented
from diffusion_jax.models.cond import Joint, Label, Nothing, optional_keys
from diffusion_jax.models.guidance_weight import GuidanceWeight, embedded_weight, reads_weight
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_blocks import TimeEmbedding, waves
from diffusion_jax.tasks.diffusion import Diffusion

WEIGHTS = np.array([1.0, 1.25, 8.5])


def by_formula(weights, channels):
    """(2) in float64."""
    half = channels // 2
    angle = 1000 * (weights - 1)[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(angle), np.cos(angle), np.zeros((len(weights), channels % 2))], axis=1)


@pytest.mark.parametrize("channels", [16, 7])
def test_waves_are_those_of_the_formula(channels):
    np.testing.assert_allclose(embedded_weight(jnp.asarray(WEIGHTS), channels), by_formula(WEIGHTS, channels), atol=2e-3)
    seen = GuidanceWeight(channels).apply({}, {"guidance": jnp.asarray(WEIGHTS)})
    assert set(seen) == {"guidance"} and seen["guidance"].shape == (3, channels)


def test_the_time_embedding_adds_a_layer_of_it_to_the_waves_of_the_noise():
    module, noise, g = TimeEmbedding(6), jnp.array([3.0, 500.0]), jnp.asarray(by_formula(WEIGHTS[:2], 4), jnp.float32)
    params = filled(jax.eval_shape(module.init, jax.random.key(0), noise, g))["params"]
    assert set(params["guidance"]) == {"kernel"} and params["guidance"]["kernel"].shape == (4, 6)      # without a bias
    h = np.asarray(waves(noise, 6)) + np.asarray(g) @ params["guidance"]["kernel"]
    h = h @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    by_hand = h / (1 + np.exp(-h)) @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, noise, g), by_hand, atol=1e-5)


def test_a_network_that_adds_vectors_sees_one():
    cond = Joint((Label(3, 8), GuidanceWeight(6, width=8)))
    raw = {"label": jnp.array([0, 2]), "guidance": jnp.array([2.0, 7.0])}
    variables = cond.init(jax.random.key(0), raw)
    params = jax.tree.map(np.asarray, variables["params"])
    h = by_formula(np.array([2.0, 7.0]), 6) @ np.asarray(params["parts_1"]["fc1"]["kernel"]) + params["parts_1"]["fc1"]["bias"]
    weight = h / (1 + np.exp(-h)) @ params["parts_1"]["fc2"]["kernel"] + params["parts_1"]["fc2"]["bias"]
    np.testing.assert_allclose(cond.apply(variables, raw)["vec"], params["parts_0"]["table"][[0, 2]] + weight, atol=1e-3)


def test_who_reads_a_weight():
    weight = GuidanceWeight()
    assert reads_weight(weight) and reads_weight(Joint((Label(3, 8), weight)))
    assert reads_weight(Augmented(Joint((Nothing(), weight)), width=8))
    assert not reads_weight(Nothing()) and not reads_weight(Joint((Label(3, 8),))) and optional_keys(Label(3, 8)) == ()


def test_training_draws_the_weights():
    cond = Joint((Label(3, 64), GuidanceWeight(8, low=2.0, high=4.0)))
    batch = {"image": jnp.zeros((500, 4, 4, 1)), "label": jnp.zeros(500, jnp.int32)}
    drawn = cond.prepare(batch, jax.random.key(0))["guidance"]
    assert drawn.shape == (500,) and 2 <= drawn.min() < 2.05 and 3.95 < drawn.max() <= 4
    told = {**batch, "guidance": jnp.ones(500)}
    assert cond.prepare(told, jax.random.key(0))["guidance"] is told["guidance"]


@pytest.mark.slow
def test_training_teaches_the_layer():
    cond = Joint((Label(3, 64), GuidanceWeight(8)))
    model = UNet(16, (1,), 1, (), heads=1, groups=8, channels=1, learn_sigma=False)
    task = Diffusion(model, cond, process.DDPM(), scales.Eps(), (4, 4, 1), drop={"label": 0.1})
    assert task.needs == ("label",)                                               # no data set has to hold weights
    few = {"image": jnp.zeros((4, 4, 4, 1)), "label": jnp.zeros(4, jnp.int32)}
    params = filled(jax.eval_shape(task.init, jax.random.key(0), few))
    grads = jax.jit(jax.grad(lambda params: task.loss(params, None, few, jax.random.key(1), True)[0]))(params)
    assert float(jnp.abs(grads["model"]["time"]["guidance"]["kernel"]).max()) > 0


@pytest.mark.parametrize("call, says", [
    (lambda: GuidanceWeight(2), "waves"),
    (lambda: GuidanceWeight(low=5.0, high=2.0), "drawn from low to high, got 5.0 and 2.0"),
    (lambda: GuidanceWeight().check({"guidance": np.array([np.nan])}), r"finite numbers \[B\]"),
    (lambda: GuidanceWeight().check({"guidance": np.ones((2, 1))}), r"not float64 \(2, 1\)"),
])
def test_refusals(call, says):
    with pytest.raises(ConfigError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
