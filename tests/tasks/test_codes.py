"""What makes codes of images, and what does not."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.build import ConfigError
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.codes import coder
from diffusion_jax.tasks.dvae import DiscreteVAE

DVAE_TASK = DiscreteVAE(DVAE(codes=8, width=8, mults=(1, 2), depth=1, init_width=4, channels=1), (8, 12, 1))
VQ_NET = VQ(channels=1, latent=2, width=4, mults=(1, 2), depth=1, groups=2, codes=6, mid_attention=False)
VQ_TASK = Autoencoder(VQ_NET, (8, 12, 1))
IMAGES = {"image": jax.ShapeDtypeStruct((3, 8, 12, 1), jnp.float32)}


@pytest.mark.parametrize(("task", "codes"), [(DVAE_TASK, 8), (VQ_TASK, 6)], ids=["dvae", "vq"])
def test_codes_are_rows_of_a_grid_and_become_images_of_the_same_shape(task, codes):
    made = coder(task)
    assert (made.shape, made.codes, made.grid) == ((8, 12, 1), codes, (4, 6))
    params = jax.eval_shape(task.init, jax.random.key(0), {"image": jnp.zeros((3, 8, 12, 1))})
    tokens = jax.eval_shape(made.encode, params, IMAGES["image"])
    assert (tokens.shape, tokens.dtype) == ((3, 24), jnp.int32)
    assert jax.eval_shape(made.decode, params, tokens).shape == (3, 8, 12, 1)


def test_the_code_of_a_vq_is_its_nearest_row(monkeypatch):
    """Row by row, whatever is encoded."""
    latent = np.random.default_rng(0).normal(size=(2, 4, 6, 2)).astype(np.float32)
    table = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    monkeypatch.setattr(Autoencoder, "posterior", lambda self, params, images: SimpleNamespace(mean=latent))
    tokens = coder(VQ_TASK).encode({"model": {"codebook": table}}, np.zeros((2, 8, 12, 1)))
    distance = np.linalg.norm(latent.reshape(2, 24, 1, 2) - table, axis=-1)
    np.testing.assert_array_equal(tokens, np.argmin(distance, axis=-1))


@pytest.mark.parametrize(("task", "says"), [
    (Autoencoder(KL(mults=(1, 2)), (8, 8, 3)), "a KL autoencoder has no codes: take a VQ or a discrete VAE"),
    (nn.Dense(1), "a Dense makes no codes of images: take"),
], ids=["KL", "no first stage"])
def test_what_has_no_codebook_is_refused(task, says):
    with pytest.raises(ConfigError, match=says):
        coder(task)
