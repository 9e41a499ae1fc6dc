"""The discrete VAEs: the pixel map, the density, shapes. Their numbers are pinned by goldens."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dvae import DVAE, logit_laplace, map_pixels, unmap_pixels
from diffusion_jax.models.dvae_codebook import CodebookVAE

KEY = jax.random.key(0)


def test_the_pixel_map_and_its_inverse():
    x = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(unmap_pixels(map_pixels(x)), x, atol=1e-6)
    assert unmap_pixels(jnp.array([0.0, 1.0])).tolist() == [0, 1]


def test_the_logit_laplace_density_integrates_to_one():
    x = jnp.linspace(0, 1, 200_003)[1:-1]
    for mu, log_b in ((0.0, 0.0), (1.5, -1.0), (-2.0, -2.0)):
        density = jnp.exp(-logit_laplace(x, jnp.full_like(x, mu), jnp.full_like(x, log_b)))
        np.testing.assert_allclose(jnp.trapezoid(density, x), 1, atol=5e-3)


@pytest.mark.parametrize("model", [DVAE(codes=8, width=8, mults=(1, 2, 2), depth=1, init_width=4, channels=1),
                                   CodebookVAE(codes=8, code_width=6, width=8, layers=2, blocks=1, channels=1)])
def test_images_become_a_grid_of_codes_and_images_again(model):
    x = jnp.zeros((2, 8, 16, 1))
    params = jax.eval_shape(model.init, KEY, x)
    logits = jax.eval_shape(lambda p: model.apply(p, x, method="encode"), params)
    assert logits.shape == (2, 2, 4, 8) and model.factor == 4
    out = jax.eval_shape(lambda p: model.pixels(model.apply(p, jnp.zeros((2, 2, 4, 8)), method="decode")), params)
    assert out.shape == x.shape
    with pytest.raises(ConfigError, match="do not divide"):
        jax.eval_shape(model.init, KEY, x[:, :6])
