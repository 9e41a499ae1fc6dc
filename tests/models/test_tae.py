import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.tae import TAE
from diffusion_jax.pretrained.shapes import shapes_of
from diffusion_jax.tasks.autoencoder import Autoencoder

TINY = dict(width=8, levels=1, depth=1, latent=2)
X = np.clip(np.random.default_rng(1).normal(size=(1, 48, 48, 3)), -1, 1).astype(np.float32)


def drawn(model, seed=0):
    """Parameters that are all random."""
    params, rng = shapes_of(model.init, jax.random.key(0), X[:, :16, :16])["params"], np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.float32(rng.normal(0, max(math.prod(p.shape[:-1]), 4) ** -0.5, p.shape)), params)


@pytest.fixture(scope="module")
def tiny():
    """(encode, decode) of a network without a pool, compiled."""
    model = TAE(**TINY)
    variables = {"params": drawn(model)}
    return (jax.jit(lambda x: model.apply(variables, x, method="encode").mean),
            jax.jit(lambda z: model.apply(variables, z, method="decode")))


@pytest.mark.parametrize("options, encoder, decoder", [
    (dict(), 1_222_532, 1_222_531),                                            # as published: the table in TAESD's readme
    (dict(latent=32, pool=True), 1_222_532 + 28 * (9 * 64 + 1) + 3 * (2 * 64 * 256 + 2 * 256),
     1_222_531 + 28 * 9 * 64 + 3 * (2 * 64 * 256 + 2 * 256)),
])
def test_parameters_and_shapes_are_those_published(options, encoder, decoder):
    model, image = TAE(**options), jax.ShapeDtypeStruct((1, 64, 48, 3), jnp.float32)
    variables = shapes_of(model.init, jax.random.key(0), image)
    counts = {half: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for half, part in variables["params"].items()}
    assert counts == {"encoder": encoder, "decoder": decoder}
    latent = shapes_of(lambda v, x: model.apply(v, x, method="encode"), variables, image)
    assert latent.mean.shape == latent.logvar.shape == (1, *model.latent_shape(64, 48)) == (1, 8, 6, model.latent)
    assert shapes_of(lambda v, z: model.apply(v, z, method="decode"), variables, latent.mean).shape == image.shape


def test_a_moved_image_has_moved_latents_and_back(tiny):
    encode, decode = tiny
    moved = np.roll(X, (6, -4), (1, 2))
    z, other = encode(X), encode(moved)
    # The borders, which see zeros, reach 13 pixels into the image.
    inner = slice(10, 14)
    np.testing.assert_allclose(other[:, inner, inner], np.roll(z, (3, -2), (1, 2))[:, inner, inner], atol=1e-5)
    z = np.array(z)
    y, other = decode(z), decode(np.roll(z, (3, -2), (1, 2)))
    inner = slice(22, 28)
    np.testing.assert_allclose(other[:, inner, inner], np.roll(y, (6, -4), (1, 2))[:, inner, inner], atol=1e-5)
    assert float(jnp.std(y)) > 0.1


def test_large_latents_are_cut_off(tiny):
    _, decode = tiny
    sign = np.sign(np.random.default_rng(2).normal(size=(1, 24, 24, 2))).astype(np.float32)
    np.testing.assert_array_equal(decode(100 * sign), decode(1000 * sign))
    # At 3 the curve is 3 tanh(1) = 2.28: a mere cut would give what it gives of 100.
    assert float(jnp.abs(decode(3 * sign) - decode(100 * sign)).max()) > 1e-3


def test_a_latent_is_a_point_and_stands_for_that_of_the_autoencoder_it_imitates(tiny):
    """z = u / scale + shift, so that a task with the same scale and shift sees the network's own u: with the identity between."""
    encode, decode = tiny
    other = TAE(**TINY, scale=0.25, shift=0.5)
    task, params = Autoencoder(other, (48, 48, 3), scale=0.25, shift=0.5), {"model": drawn(other)}
    u = np.asarray(encode(X))
    posterior = jax.jit(task.posterior)(params, X)
    np.testing.assert_allclose(posterior.mean, u / 0.25 + 0.5, atol=1e-5)
    np.testing.assert_array_equal(posterior.std, 0)
    np.testing.assert_allclose(task.scaled(posterior.sample(np.ones_like(u))), u, atol=1e-5)
    np.testing.assert_allclose(jax.jit(task.decode)(params, u), decode(u), atol=1e-5)


@pytest.mark.slow
def test_tiles_decode_what_the_whole_does_away_from_their_borders(tiny):
    _, decode = tiny
    task, params = Autoencoder(TAE(**TINY), (48, 48, 3)), {"model": drawn(TAE(**TINY))}
    z = np.random.default_rng(3).normal(size=(1, 60, 60, 2)).astype(np.float32)
    whole, parts = decode(z), task.decode(params, z, 40)
    assert parts.shape == whole.shape
    # Two tiles of 40 share rows 20 to 40 of 60; what a border spoils, 13 pixels, lies there.
    np.testing.assert_allclose(parts[:, :40, :40], whole[:, :40, :40], atol=1e-5)
    assert float(jnp.corrcoef(whole.ravel(), parts.ravel())[0, 1]) > 0.99


@pytest.mark.slow
def test_the_pool_is_of_the_whole_image():
    """A pixel in one corner changes the latent in the other, through the norm alone."""
    near, far = TAE(**TINY), TAE(**TINY, pool=True)
    changed = X.copy()
    changed[:, :4, :4] = 1
    for model, same in ((near, True), (far, False)):
        variables = {"params": drawn(model)}
        z, other = (model.apply(variables, x, method="encode").mean[:, -4:, -4:] for x in (X, changed))
        assert bool((z == other).all()) == same


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="an image of 20x16 is no multiple of this autoencoder's 8: resize it"):
        TAE().init(jax.random.key(0), jnp.zeros((1, 20, 16, 3)))
    with pytest.raises(ConfigError, match="scale of a TAE divides its latents"):
        TAE(scale=0.0).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ConfigError, match="a TAE comes trained and is not trained here"):
        TAE().apply({"params": {}}, jnp.zeros((1, 8, 8, 3)), jax.random.key(0), method="train")
    task = Autoencoder(TAE(), (8, 8, 3))
    with pytest.raises(ConfigError, match="a TAE autoencoder has no codes"):
        task.as_coder()
