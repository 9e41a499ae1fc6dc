"""The patch discriminator: its losses and norms in closed form, its shapes, and what it refuses. The numbers are goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models import gan
from diffusion_jax.models.gan import ActNorm, BatchNorm, Discriminator, started

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def test_the_weight_of_the_discriminator_rises():
    np.testing.assert_allclose([started(0.8, step, 10, 4) for step in (9, 10, 11, 13, 20)], [0, 0.2, 0.4, 0.8, 0.8], rtol=1e-6)


def test_losses_of_logits_that_are_known():
    """Of two images of two patches; 4 and -4 are beyond the hinge."""
    real, fake = (np.array(rows, np.float32)[:, None, :, None] for rows in ([[0.5, 4], [0, -1]], [[-4, 0], [1, -0.5]]))
    first, second = (0.25 + 0.5) / 2, (1.5 + 1.25) / 2                         # of each image, halves of real and fake
    assert float(gan.hinge(real, fake)) == pytest.approx((first + second) / 2)
    assert float(gan.hinge(real, fake, np.float32([3, 1]))) == pytest.approx((3 * first + second) / 4)
    want = (np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean()) / 2
    assert float(gan.vanilla(real, fake)) == pytest.approx(want, rel=1e-5)
    assert float(gan.generator(fake)) == pytest.approx(3.5 / 4)


def test_a_batch_norm_uses_its_batch_or_what_it_is_given():
    x = (3 * RNG.normal(size=(2, 3, 4, 5)) + 7).astype(np.float32)
    scale, bias = RNG.normal(size=(2, 5)).astype(np.float32)
    params = {"params": {"scale": scale, "bias": bias}}
    out, seen = BatchNorm().apply(params, x)
    rows = np.float64(x).reshape(-1, 5)
    np.testing.assert_allclose(out, (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * scale + bias, atol=1e-4)
    np.testing.assert_allclose(seen["mean"], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen["var"], rows.var(0, ddof=1), rtol=1e-4)
    stats = {"mean": np.ones(5, np.float32), "var": np.full(5, 4, np.float32)}
    np.testing.assert_allclose(BatchNorm().apply(params, x, stats)[0], (x - 1) / np.sqrt(4 + 1e-5) * scale + bias, atol=1e-4)
    np.testing.assert_allclose(gan.moved({"norm": stats}, {"norm": seen})["norm"]["mean"], 0.9 + 0.1 * rows.mean(0), rtol=1e-5)


def test_a_fitted_act_norm_gives_mean_zero_and_variance_one():
    x = (3 * RNG.normal(size=(2, 3, 4, 5)) + 7).astype(np.float32)
    rows = np.asarray(ActNorm().apply({"params": gan.fitted(x)}, x)).reshape(-1, 5)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(rows.var(0, ddof=1), 1, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "act"])
def test_a_logit_for_each_patch_and_what_the_norms_saw(norm):
    """PatchGAN: the size is halved `depth` times, and two convolutions of 4 pixels take one row each."""
    model = Discriminator(width=4, depth=2, norm=norm)
    (logits, seen), variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((3, 32, 24, 1)))
    assert logits.shape == (3, 6, 4, 1)
    widths = {} if norm == "act" else {"norm_1": (8,), "norm_2": (16,)}
    assert {name: value["var"].shape for name, value in seen.items()} == widths
    assert ("bias" in variables["params"]["conv_1"]) == (norm == "act")
    with pytest.raises(ConfigError, match="unknown norm 'bach': batch or act"):
        jax.eval_shape(Discriminator(norm="bach").init, KEY, jnp.zeros((1, 32, 32, 3)))
