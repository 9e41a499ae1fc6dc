"""CLIP's task: its loss by hand, on one device and on eight, the clamped scale, and guidance towards a text."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import process
from diffusion_jax.models.clip import CLIP, TextTower, ViT
from diffusion_jax.tasks.clip import Contrastive, contrastive
from diffusion_jax.train import shard

KEY = jax.random.key(0)


def model(steps=0):
    return CLIP(
        ViT(6, size=4, patch=2, width=8, layers=1, heads=2, steps=steps),
        TextTower(6, vocab=9, context=3, width=8, layers=1, heads=2), mean=(0.5,), std=(0.5,),
    )


TASK = Contrastive(model(), (4, 4, 1))
NOISED = Contrastive(model(10), (4, 4, 1), process=process.DDPM("squaredcos", 10))
RNG = np.random.RandomState(0)
BATCH = {"image": np.float32(RNG.rand(16, 4, 4, 1) * 2 - 1), "tokens": np.int32(RNG.randint(0, 9, (16, 3)))}


@pytest.fixture(scope="module")
def params():
    return jax.jit(TASK.init)(KEY, BATCH)


def test_the_loss_is_both_cross_entropies():
    logits = np.float32(RNG.randn(5, 5))
    want = np.mean([
        -np.log(np.exp(row[i]) / np.exp(row).sum()) for rows in (logits, logits.T) for i, row in enumerate(rows)
    ])
    loss, metrics = contrastive(jnp.asarray(logits))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert metrics["R@1"] == np.mean(logits.argmax(1) == np.arange(5)) and metrics["R@5"] == 1


@pytest.mark.slow
def test_the_loss_is_that_of_the_global_batch_on_any_number_of_devices(params):
    loss = jax.jit(jax.value_and_grad(lambda params, batch: TASK.loss(params, None, batch, KEY, True)[0]))
    found = []
    for mesh in (shard.make_mesh(devices=jax.devices()[:1]), shard.make_mesh(data=4, fsdp=2)):
        own, batch = jax.device_put(params, shard.replicated(mesh)), jax.device_put(BATCH, shard.batch_sharding(mesh))
        found.append(jax.device_get(loss(own, batch)))
    # Sums in another order: what cancels out is off by the rounding of the largest that went in.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * max(1, np.abs(b).max())), *found)
    assert found[0][0] > np.log(16) - 1


def test_the_scale_is_clamped(params):
    grown = {"model": {**params["model"], "logit_scale": jnp.float32(9.0)}}
    np.testing.assert_allclose(TASK.project(grown)["model"]["logit_scale"], np.log(100), rtol=1e-6)
    kept = TASK.project(params)["model"]["logit_scale"]
    np.testing.assert_allclose(np.exp(kept), 1 / 0.07, rtol=1e-5)


@pytest.mark.parametrize("task", [TASK, pytest.param(NOISED, marks=pytest.mark.slow)], ids=["clean", "noised"])
def test_it_pulls_towards_its_text(task):
    own = jax.jit(task.init)(KEY, BATCH)
    p = process.DDPM("squaredcos", 10)

    @jax.jit
    def run(own, x):
        texts = task.encode_text(own, BATCH["tokens"])
        value = lambda x: task.log_prob(own, x, jnp.int32(4), texts, p)  # noqa: E731
        pull = jax.grad(lambda x: value(x).sum())(x)
        return value(x), value(x + 1e-3 * pull / jnp.sqrt(jnp.sum(pull**2)))

    before, after = run(own, jnp.asarray(BATCH["image"]))
    assert before.shape == (16,) and after.sum() > before.sum()
    scale = np.exp(own["model"]["logit_scale"])
    assert (np.abs(before) <= scale * 1.0001).all()


@pytest.mark.slow
def test_a_noised_clip_trains_at_drawn_levels():
    own = jax.jit(NOISED.init)(KEY, BATCH)
    first, second = (jax.jit(NOISED.loss, static_argnums=4)(own, None, BATCH, key, True)[0] for key in jax.random.split(KEY))
    assert np.isfinite(first) and first != second
    clean = jax.jit(NOISED.encode_image)(own, BATCH["image"])
    np.testing.assert_allclose(jnp.linalg.norm(clean, axis=1), 1, rtol=1e-5)


def test_other_images_are_refused():
    with pytest.raises(ConfigError, match=r"task.shape is \(4, 4, 1\)"):
        TASK.init(KEY, {**BATCH, "image": np.zeros((1, 8, 8, 1))})
