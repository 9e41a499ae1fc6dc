"""What every task on images asks of a batch, and of its network."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.cond import Nothing
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.dvae import DVAE
from diffusion_jax.models.dvae_codebook import CodebookVAE
from diffusion_jax.models.edm2 import EDM2
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vae import KL, VQ
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.dvae import DiscreteVAE
from diffusion_jax.tasks.images import check_output, check_shape
from tasks.zero_task import task as denoising


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_number_of_images_of_the_right_shape_passes(count):
    assert check_shape({"image": np.zeros((count, 4, 6, 3))}, (4, 6, 3)) is None


@pytest.mark.parametrize("shape", [(6, 4, 3), (4, 6, 1), (4, 6), (4, 6, 3, 1)])
def test_another_shape_is_named_beside_the_tasks(shape):
    with pytest.raises(ConfigError) as error:
        check_shape({"image": np.zeros((2, *shape))}, (4, 6, 3))
    assert str(error.value) == f"the data's images are {shape}, task.shape is (4, 6, 3): change one of them"


class Flat(nn.Module):
    """A prior's network for embeddings of another width."""

    @nn.compact
    def __call__(self, x, noise, cond):
        return nn.Dense(24)(x)


def diffusion(model, channels, **options):
    return denoising(model=model, cond=Nothing(), shape=(8, 8, channels), **options)


def unet(**options):
    return UNet(width=8, mults=(1,), depth=1, attend=(), mid_attention=False, groups=4, **options)


def stage(model, channels, of):
    return Autoencoder(model(channels=channels, width=8, mults=(1, 2), depth=1, groups=4), (8, 8, of))


LEARNED = dict(variance="learned_range", objective="hybrid")
MISFITS = {                                      # (task, what its network puts out, what is asked)
    "grey network, colour images": (diffusion(unet(channels=1, learn_sigma=False), 3), (8, 8, 1), (8, 8, 3)),
    "colour network, grey images": (diffusion(unet(channels=3, learn_sigma=False), 1), (8, 8, 3), (8, 8, 1)),
    "a variance that nobody asks": (diffusion(unet(channels=3), 3), (8, 8, 6), (8, 8, 3)),
    "a variance that is not there": (diffusion(unet(channels=1, learn_sigma=False), 1, **LEARNED), (8, 8, 1), (8, 8, 2)),
    "half of the channels as variance": (diffusion(unet(channels=4, learn_sigma=False), 4, **LEARNED), (8, 8, 4), (8, 8, 8)),
    "dit": (diffusion(DiT(patch=2, width=16, depth=1, heads=2, channels=1, learn_sigma=False), 3), (8, 8, 1), (8, 8, 3)),
    "edm2 of latents on pixels": (diffusion(EDM2(8, (1,), 1, (), 8, 4), 3), (8, 8, 4), (8, 8, 3)),
    "kl": (stage(KL, 1, 3), (8, 8, 1), (8, 8, 3)),
    "vq": (stage(VQ, 3, 1), (8, 8, 3), (8, 8, 1)),
    "discrete vae": (DiscreteVAE(DVAE(8, width=8, mults=(1, 2), depth=1, channels=1), (8, 8, 3)), (8, 8, 1), (8, 8, 3)),
    "discrete vae of a table": (DiscreteVAE(CodebookVAE(8, 8, 8, 1, 0, 1), (8, 8, 3), "l2"), (8, 8, 1), (8, 8, 3)),
}
FITS = {
    "grey": diffusion(unet(channels=1, learn_sigma=False), 1),
    "learned variance": diffusion(unet(channels=3), 3, **LEARNED),
    "kl": stage(KL, 3, 3),
    "discrete vae": DiscreteVAE(DVAE(8, width=8, mults=(1, 2), depth=1, channels=3), (8, 8, 3)),
}


def begun(task):
    return jax.eval_shape(task.init, jax.random.key(0), {"image": jnp.zeros((2, *task.shape))})


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in ("vq", "discrete vae", "edm2 of latents on pixels") else name
    for name in MISFITS])                                                     # larger, of kinds of which others are here
def test_a_network_of_other_channels_is_refused_at_the_start(name):
    task, made, asked = MISFITS[name]
    with pytest.raises(ConfigError) as error:
        begun(task)
    assert str(error.value).startswith(f"the network puts out {made} where {asked} is asked: task.shape is {task.shape}")


@pytest.mark.parametrize("name", FITS)
def test_a_network_of_its_images_begins(name):
    assert "model" in begun(FITS[name])


def test_embeddings_are_checked_too():
    out = jax.eval_shape(lambda: Flat().init_with_output(jax.random.key(0), jnp.zeros((2, 16)), None, {})[0])
    with pytest.raises(ConfigError, match=r"puts out \(24,\) where \(16,\) is asked"):
        check_output(out.shape[1:], (16,))
