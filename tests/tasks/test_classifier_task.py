"""The noisy classifier: its loss, and that its gradient is that of a closed form, in the coordinates of any process."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import guidance, process, samplers, scales
from diffusion_jax.tasks.classifier import NoisyClassifier

PROCESSES = {"ddpm": process.DDPM(), "flow": process.Flow(), "edm": process.EDM(), "cosine": process.Cosine()}
MEANS = jnp.array([-1.0, 1.0])
SPREAD = 0.3


def log_odds(x, alpha, sigma):
    """log p(x_t | class) of images whose pixels are N(MEANS[class], SPREAD^2), [B, 2]."""
    axes = tuple(range(1, x.ndim))
    var = alpha**2 * SPREAD**2 + sigma**2
    return jnp.stack([-jnp.sum((x - alpha * mean) ** 2, axis=axes) / (2 * var) for mean in MEANS], axis=1)


class Exact(nn.Module):
    """The classifier of those images under the DDPM process, whose label is its time."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, noise):
        p, t = process.DDPM(), noise.astype(jnp.float32)[0]
        return log_odds(x, p.alpha(t), p.sigma(t)) + 0 * self.param("unused", nn.initializers.zeros, ())


TASK = NoisyClassifier(Exact(), process.DDPM(), (2, 2, 1))


@pytest.mark.parametrize("name", PROCESSES)
def test_log_prob_holds_in_the_coordinates_of_any_process(name):
    p, x = PROCESSES[name], jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    params, label = {"model": {"unused": jnp.zeros(())}}, jnp.array([0, 1, 1])
    t = p.at(jnp.float32(0.4))
    want = jax.nn.log_softmax(log_odds(x, p.alpha(t), p.sigma(t)))[jnp.arange(3), label]
    np.testing.assert_allclose(TASK.log_prob(params, x, t, label, p), want, rtol=2e-3, atol=1e-4)


def test_pure_noise_guides_nowhere_and_breaks_nothing():
    p, params = process.Flow(), {"model": {"unused": jnp.zeros(())}}
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
    guide = guidance.Gradient(lambda x, t, cond: TASK.log_prob(params, x, t, jnp.array([0, 1]), p), 1.0)
    denoise = guide(scales.denoiser(lambda x, noise, cond: 0 * x, p, scales.Velocity()))
    images = samplers.sample(denoise, samplers.ddim(p), x, jnp.linspace(1, 0, 9), {}, jax.random.key(1))
    assert np.isfinite(images).all() and images[0].mean() < images[1].mean()


def test_the_loss_of_a_classifier_that_knows_nothing_is_log_classes():
    class Nothing(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, x, noise):
            return jnp.zeros((len(x), 10)) + self.param("bias", nn.initializers.zeros, (10,))[None]

    task = NoisyClassifier(Nothing(), process.DDPM(), (2, 2, 1))
    batch = {"image": jnp.zeros((8, 2, 2, 1)), "label": jnp.arange(8)}
    params = jax.jit(task.init)(jax.random.key(0), batch)
    run = jax.jit(task.loss, static_argnums=4)
    loss, metrics = run(params, None, batch, jax.random.key(1), True)
    np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)
    assert set(metrics) == {"accuracy", "accuracy@5"} and task.num_classes == 10 and task.needs == ("label",)
    params["model"]["bias"] = params["model"]["bias"].at[3].set(5.0)
    _, metrics = run(params, None, batch, jax.random.key(1), True)
    assert metrics["accuracy"] == 1 / 8
    with pytest.raises(ConfigError, match="change one of them"):
        task.init(jax.random.key(0), {"image": jnp.zeros((1, 4, 4, 1))})
