"""The two priors of unCLIP as tasks: what they need, what they train on, and what they make."""
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion.process import DDPM
from diffusion_jax.diffusion.scales import X0
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.models.prior_ar import ARPrior
from diffusion_jax.models.unclip import Text
from diffusion_jax.tasks.clip import Contrastive
from diffusion_jax.tasks.diffusion import Diffusion
from diffusion_jax.tasks.embedder import Embedder
from diffusion_jax.tasks.prior import AutoregressivePrior, DiffusionPrior

FEATURES = 6
TOWERS = (ViT(FEATURES, size=4, patch=2, width=8, layers=1, heads=2),
          TextTower(FEATURES, vocab=9, context=5, width=8, layers=1, heads=2))
CONTRASTIVE = Contrastive(CLIP(*TOWERS, mean=(0.5,), std=(0.5,)), (4, 4, 1))
EMBEDDER = Embedder(CONTRASTIVE, empty=(7, 8, 0), components=4)
RNG = np.random.default_rng(0)
BATCH = {"image": RNG.normal(size=(3, 4, 4, 1)).astype(np.float32),
         "tokens": np.array([[7, 1, 8, 0, 0], [7, 8, 0, 0, 0], [7, 1, 2, 3, 8]])}


class Guess(nn.Module):
    """x0 = gain vec: what the text says."""

    @nn.compact
    def __call__(self, x, noise, cond):
        return self.param("gain", nn.initializers.ones, ()) * cond["vec"]


DIFFUSION = DiffusionPrior(Guess(), Text(FEATURES), DDPM(), X0(), (FEATURES,), first_stage=EMBEDDER,
                           drop=FrozenDict(with_text=0.5))
NET = ARPrior(4, context=5, width=8, depth=1, heads=2)
AUTOREGRESSIVE = AutoregressivePrior(NET, EMBEDDER, drop=0.5)


@pytest.fixture(scope="module")
def first():
    """The parameters of the CLIP, with a mean and a deviation."""
    params = jax.jit(EMBEDDER.init)(jax.random.key(0), BATCH)
    return params | {"mean": jnp.full(FEATURES, 0.3), "std": jnp.full(FEATURES, 2.0)}


@pytest.mark.slow
def test_a_diffusion_prior_trains_on_standardised_embeddings(first):
    params = jax.jit(DIFFUSION.init)(jax.random.key(0), BATCH)
    assert set(params) == {"model", "cond"}
    assert DIFFUSION.needs == ("tokens",) and DIFFUSION.num_classes == 0
    raw = jax.jit(EMBEDDER.prepare)(first, BATCH)
    x = (raw["clip_image"] - 0.3) / 2
    prepared = jax.jit(DIFFUSION.prepare)(BATCH, {"first_stage": first}, jax.random.key(0))
    np.testing.assert_allclose(prepared["image"], x, atol=1e-5)
    np.testing.assert_allclose(jax.jit(DIFFUSION.embeddings)(first, x), raw["clip_image"], atol=1e-5)
    run = jax.jit(DIFFUSION.loss, static_argnums=4)
    loss, _ = run(params, {"first_stage": first}, BATCH, jax.random.key(1), False)
    np.testing.assert_allclose(loss, np.mean((raw["clip_text"] - x) ** 2), rtol=1e-4)


def test_it_refuses_what_does_not_fit(first):
    with pytest.raises(ConfigError, match="config.first_stage=<folder of a CLIP>"):
        DIFFUSION.prepare(BATCH, None, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"makes \(6,\) of an image, task.shape is \(5,\)"):
        jax.eval_shape(replace(DIFFUSION, shape=(5,)).init, jax.random.key(0), BATCH)
    with pytest.raises(ConfigError, match="the data's images are"):
        jax.eval_shape(DIFFUSION.init, jax.random.key(0), BATCH | {"image": np.zeros((3, 8, 8, 1))})
    with pytest.raises(ConfigError, match="set the prior's length to at least that"):
        replace(AUTOREGRESSIVE, model=ARPrior(2, context=5, width=8, depth=1, heads=2))


def test_a_prior_is_no_diffusion_model_and_is_equal_where_its_options_are():
    assert not isinstance(DIFFUSION, Diffusion)
    again = replace(DIFFUSION)
    assert again == DIFFUSION and hash(DIFFUSION) == hash(again)
    assert AUTOREGRESSIVE.shape == DIFFUSION.shape == (FEATURES,)


@pytest.mark.slow
def test_the_autoregressive_prior_trains_on_codes(first):
    params = jax.jit(AUTOREGRESSIVE.init)(jax.random.key(0), BATCH)
    run = jax.jit(AUTOREGRESSIVE.loss, static_argnums=4)
    loss, metrics = run(params, {"first_stage": first}, BATCH, jax.random.key(1), True)
    assert AUTOREGRESSIVE.needs == ("tokens",) and jnp.isfinite(loss)
    assert abs(float(metrics["image_bits"]) - 10) < 2
    codes = jnp.array([[0, 1, 2, 3]])
    want = EMBEDDER.decode(first, codes)
    np.testing.assert_array_equal(AUTOREGRESSIVE.embeddings(first, codes), want)
    with pytest.raises(ConfigError, match="config.first_stage=<folder of a CLIP>"):
        AUTOREGRESSIVE.loss(params, None, BATCH, jax.random.key(1), True)
