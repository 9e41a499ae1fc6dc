"""The diffusion task: its conditions, its first stage, and what it refuses. What it shares: test_denoising.py."""
import dataclasses

import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from stubs import random_params

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import LowRes
from diffusion_jax.models.vae import KL
from diffusion_jax.tasks.autoencoder import Autoencoder
from tasks.zero_task import Zero, batch, task


def test_pictures_are_as_large_as_the_latents_say_whatever_the_autoencoder_was_trained_on():
    assert LATENT.picture_shape == (8, 8, 1) and task().picture_shape == task().shape
    for shape, pictures in (((8, 4, 2), (16, 8, 1)), ((2, 2, 2), (4, 4, 1))):
        assert task(model=Zero(2), shape=shape, first_stage=VAE).picture_shape == pictures


def test_an_upsampler_is_trained_on_images_alone():
    t = task(cond=LowRes(2, augment=0.3, width=4))
    assert t.needs == () and t.num_classes == 0
    raw = {"image": batch(4)["image"]}
    params = jax.jit(t.init)(jax.random.key(0), raw)
    loss, _ = jax.jit(t.loss, static_argnums=4)(params, None, raw, jax.random.key(1), True)
    assert np.isfinite(loss)
    with pytest.raises(ConfigError, match="unknown condition to drop 'low_res'"):
        task(cond=LowRes(2), drop=FrozenDict(low_res=0.1))


VAE = Autoencoder(KL(channels=1, latent=2, width=8, mults=(1, 2), depth=1, groups=4), (8, 8, 1), scale=2.0)
LATENT = task(model=Zero(2), shape=(4, 4, 2), first_stage=VAE)
PICTURES = {"image": np.zeros((2, 8, 8, 1), np.float32), "label": np.zeros(2, np.int32)}


def test_pictures_are_drawn_as_latents_on_the_way():
    key = jax.random.key(1)

    @jax.jit
    def both(params):
        eps = jax.random.normal(key, (2, 4, 4, 2))
        prepared = LATENT.prepare(PICTURES, {"first_stage": params}, key)
        return prepared["image"], VAE.encode(params, PICTURES["image"], eps)

    np.testing.assert_array_equal(*both(random_params(VAE, PICTURES)))
    assert LATENT.blank(PICTURES)["image"].shape == (2, 4, 4, 2)
    latents = PICTURES | {"image": np.zeros((2, 4, 4, 2))}
    assert LATENT.prepare(latents, None, key) is LATENT.blank(latents) is latents
    with pytest.raises(ConfigError, match="name its folder in config.first_stage"):
        LATENT.prepare(PICTURES, None, key)


def test_latents_of_another_shape_than_the_tasks_are_refused():
    wide = dataclasses.replace(LATENT, shape=(4, 4, 3))
    with pytest.raises(ConfigError, match=r"makes \(4, 4, 2\) of an image, task.shape is \(4, 4, 3\)"):
        wide.init(jax.random.key(0), PICTURES)
    with pytest.raises(ConfigError, match="the data's images are"):
        LATENT.init(jax.random.key(0), PICTURES | {"image": np.zeros((2, 6, 6, 1))})
