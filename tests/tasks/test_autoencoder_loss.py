"""The autoencoder's loss in closed form, with a discriminator and a distance of one number."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.tasks.autoencoder_loss import Losses

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(2, 3, 4, 1)).astype(np.float32) for _ in range(2))


class Gain(NamedTuple):
    """A discriminator whose logits are the pixels times its only parameter."""

    def apply(self, variables, y, stats=None):
        return variables["params"] * y, {}


class Apart(NamedTuple):
    """A distance that is the parameter whatever the images."""

    def apply(self, variables, x, y):
        return jnp.full(len(x), variables["params"])


def test_pixels_perception_and_the_spread_of_both():
    each = np.abs(X - Y) + 0.5 * 3
    found, metrics = Losses(Gain(), Apart(), perceptual_weight=0.5).nll(X, Y, 3.0, logvar=0.7)
    np.testing.assert_allclose(found, np.mean(each) / np.exp(0.7) + 0.7, rtol=1e-5)
    np.testing.assert_allclose([metrics["rec_loss"], metrics["perceptual"]], [np.mean(each), 3], rtol=1e-5)
    total, _ = Losses(Gain(), total="sum", pixel="l2").nll(X, Y, None)
    np.testing.assert_allclose(total, np.sum((X - Y) ** 2) / 2, rtol=1e-5)


@pytest.mark.parametrize(("limit", "step", "factor"), [(1e4, 10, 1), (0.25, 10, 1), (1e4, 9, 0), (1e4, 11, 1)])
def test_both_losses_have_the_same_say_in_the_last_layer(limit, step, factor):
    """y = K seen, so d/dK of mean (y - x)^2 and of -mean g y are means over pixels."""
    seen, kernel, gain = Y, np.float32(0.8), 2.5
    losses = Losses(Gain(), pixel="l2", disc_start=10, disc_weight=0.5, limit=limit)
    loss, metrics = losses.generator(lambda seen, kernel: seen * kernel, seen, kernel, X, gain, None, step)
    by_nll, by_gan = abs(np.mean(2 * (kernel * seen - X) * seen)), abs(gain * np.mean(seen))
    weight = 0.5 * min(by_nll / (by_gan + 1e-4), limit)
    nll, g = np.mean((kernel * seen - X) ** 2), -gain * np.mean(kernel * seen)
    logged = [metrics[name] for name in ("grad_nll", "grad_gan", "d_weight")]
    np.testing.assert_allclose(logged, [by_nll, by_gan, weight], rtol=1e-4)
    np.testing.assert_allclose(loss, nll + weight * factor * g, rtol=1e-4)


def test_gradients_reach_the_player_whose_loss_it_is():
    losses = Losses(Gain(), disc_start=0)

    def by_autoencoder(kernel, disc):
        return losses.generator(lambda seen, kernel: seen * kernel, Y, kernel, X, disc, None, 5)[0]

    def by_discriminator(y, disc):
        return losses.discriminator(X, y, disc, 5)[0]

    to_kernel, to_disc = jax.grad(by_autoencoder, (0, 1))(0.8, 2.5)
    assert to_kernel != 0 and to_disc == 0
    to_image, to_disc = jax.grad(by_discriminator, (0, 1))(Y, 0.1)
    assert not to_image.any()
    assert float(to_disc) == pytest.approx((np.mean(Y) - np.mean(X)) / 2, rel=1e-4)              # hinge, all inside its margin


def test_what_cannot_be_is_refused():
    for option, value in (("pixel", "l3"), ("total", "summ"), ("adversarial", "hing")):
        with pytest.raises(ConfigError, match="nearest|did you mean|known"):
            Losses(**{option: value})
