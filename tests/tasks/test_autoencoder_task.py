from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.models.gan import Discriminator
from diffusion_jax.models.vae import VQ
from diffusion_jax.tasks.autoencoder import Autoencoder, Perceptual
from diffusion_jax.tasks.autoencoder_loss import Losses

MODEL = VQ(channels=1, latent=2, width=4, mults=(1, 2), depth=1, groups=2, codes=6, mid_attention=False)
LOSSES = Losses(Discriminator(width=4, depth=1), disc_start=4, ramp=2, lead=2, limit=3.0, disc_weight=1.0)
X = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1), minval=-1)
TASK = Autoencoder(MODEL, (8, 8, 1), LOSSES, weight=1.0)


def drawn():
    """Parameters that are all random."""
    shapes, rng = jax.eval_shape(TASK.init, jax.random.key(0), {"image": X}), np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(lambda path, p: np.float32(rng.normal(path[-1].key == "scale", 0.3, p.shape)), shapes)


@pytest.mark.slow
def test_each_player_has_its_own_gradient_from_its_start_on():
    params = drawn()

    @jax.jit
    def run(params, step):
        memory = TASK.memory() | {"step": step}

        def loss(params):
            return TASK.loss(params, {"memory": memory}, {"image": X}, jax.random.key(1), True)

        return jax.grad(loss, has_aux=True)(params)

    found = {step: run(params, jnp.int32(step)) for step in (0, 2, 3, 4, 5)}
    size = {step: {part: sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads[part])) for part in grads}
            for step, (grads, _) in found.items()}
    assert size[0]["disc"] == 0 and size[2]["disc"] == pytest.approx(size[5]["disc"])                 # learns `lead` steps ahead
    assert size[0]["model"] == pytest.approx(size[3]["model"]) and size[4]["model"] != size[3]["model"]
    logs = found[5][1]
    assert float(logs["d_weight"]) <= 3.0 and float(logs["disc_factor"]) == 1.0 and float(found[4][1]["disc_factor"]) == 0.5
    assert 1 <= float(logs["perplexity"]) <= 6 and 0 < float(logs["usage"]) <= 1
    assert int(logs["memory"]["step"]) == 6 and float(logs["memory"]["counts"].sum()) == pytest.approx(0.01)


def test_a_latent_is_scaled_and_back():
    task = Autoencoder(MODEL, (8, 8, 1), scale=(2.0, 4.0), shift=(1.0, -1.0))
    z = jnp.stack([jnp.full((1, 2, 2), 1.5), jnp.full((1, 2, 2), -0.5)], axis=-1)
    np.testing.assert_allclose(task.scaled(z)[0, 0, 0], [1, 2])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="came trained"):
        Autoencoder(MODEL, (8, 8, 1)).loss({}, None, {"image": X}, jax.random.key(0), True)


@pytest.mark.parametrize(("weight", "says"), [(1.0, "16 pixels or more, not 8x8x1"), (0.0, "perceptual_weight is 0, so")])
def test_lpips_that_sees_or_does_nothing_is_refused(weight, says):
    task = replace(TASK, losses=replace(LOSSES, perceptual_weight=weight), first_stage=Perceptual())
    with pytest.raises(ConfigError, match=says):
        task.init(jax.random.key(0), {"image": X})
