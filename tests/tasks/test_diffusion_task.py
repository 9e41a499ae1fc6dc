"""The diffusion task: its loss at known values, its drops, and what it refuses."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from diffusion_jax.build import ConfigError
from diffusion_jax.diffusion import losses, scales
from diffusion_jax.diffusion.process import DDPM, EDM, Flow
from diffusion_jax.diffusion.times import LogNormal, SecondMoment, Uniform
from diffusion_jax.models.cond import Label, LowRes
from diffusion_jax.models.vae import KL
from diffusion_jax.tasks.autoencoder import Autoencoder
from diffusion_jax.tasks.diffusion import Diffusion


class Zero(nn.Module):
    """A network that puts out zeros, `channels` of them."""

    channels: int = 1

    @nn.compact
    def __call__(self, x, noise, cond):
        scale = self.param("scale", nn.initializers.zeros, (self.channels,))
        return jnp.zeros((*x.shape[:-1], self.channels)) + scale[None, None, None]


def task(**changes):
    given = dict(model=Zero(), cond=Label(3, 4), process=DDPM(), scale=scales.Eps(), shape=(4, 4, 1)) | changes
    return Diffusion(**given)


def batch(n=4096):
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.normal(size=(n, 4, 4, 1)), jnp.float32), "label": jnp.asarray(rng.integers(0, 3, n))}


@pytest.mark.parametrize(
    ("process", "scale", "times"),
    [(DDPM(), scales.Eps(), Uniform()), (DDPM(), scales.V(), Uniform()), (Flow(), scales.Velocity(), Uniform()),
     (EDM(), scales.EDM(1.0), LogNormal())],
    ids=["eps", "v", "velocity", "edm"],
)
def test_a_zero_network_has_the_variance_of_its_target_as_loss(process, scale, times):
    t = task(process=process, scale=scale, times=times)
    params = t.init(jax.random.key(0), batch(2))
    loss, terms = t.loss(params, {}, batch(), jax.random.key(1), True)
    want = 2.0 if isinstance(scale, scales.Velocity) else 1.0               # eps - x0 of unit-variance data
    np.testing.assert_allclose(loss, want, rtol=0.02)
    np.testing.assert_allclose(terms["mse"], want, rtol=0.02)


def test_labels_are_dropped_at_their_rate_in_training_only():
    t = task(drop=FrozenDict(label=0.3))
    raw = batch()
    dropped = t.dropped(raw, {"label": jax.random.uniform(jax.random.key(0), (4096,))})
    share = float(jnp.mean(dropped["label"] == 3))
    assert abs(share - 0.3) < 0.03
    kept = dropped["label"] != 3
    np.testing.assert_array_equal(dropped["label"][kept], raw["label"][kept])
    assert dropped["image"] is raw["image"]


@pytest.mark.slow
def test_the_hybrid_loss_teaches_the_mean_by_mse_alone():
    hybrid = task(model=Zero(2), variance="learned_range", objective="hybrid", bound_weight=1e-3)
    params = hybrid.init(jax.random.key(0), batch(2))
    raw, t = batch(64), jnp.arange(64) * 15
    eps = jax.random.normal(jax.random.key(2), raw["image"].shape)

    def grads(objective, weight):
        changed = dataclasses.replace(hybrid, objective=objective, bound_weight=weight)
        return jax.grad(lambda p: jnp.mean(changed.terms(p, raw, t, eps)["loss"]))(params)["model"]["scale"]

    with_bound, without = grads("hybrid", 1.0), grads("hybrid", 0.0)
    np.testing.assert_allclose(with_bound[0], without[0], rtol=1e-6)           # channel 0 is the mean
    assert without[1] == 0 and with_bound[1] != 0                              # channel 1 is the variance
    assert abs(grads("kl", 1.0)[0] - without[0]) > 1e-6


def test_tasks_are_hashable_and_equal_when_their_options_are():
    assert task() == task() and hash(task()) == hash(task())
    assert task() != task(weight=losses.MinSNR())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(variance="fixed_smal"), "fixed_small"),
        (dict(objective="msee"), "did you mean 'mse'"),
        (dict(objective="kl", process=Flow(), scale=scales.V()), "DDPM"),
        (dict(variance="learned_range"), "hybrid"),
        (dict(drop=FrozenDict(lable=0.1)), "did you mean 'label'"),
    ],
)
def test_combinations_without_meaning_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        task(**changes)


@pytest.mark.slow
def test_importance_sampling_trains_the_weighted_loss_and_reports_the_plain_one():
    t = task(times=SecondMoment(history=2))
    params, raw, key = t.init(jax.random.key(0), batch(2)), batch(64), jax.random.key(1)
    rng = np.random.default_rng(0)
    memory = {"losses": jnp.asarray(rng.random((1000, 2)), jnp.float32), "counts": jnp.full(1000, 2)}
    loss, metrics = t.loss(params, {"memory": memory}, raw, key, True)
    assert abs(loss - metrics["loss"]) > 1e-3
    drawn, _ = t.times.draw(t.process, memory, jax.random.split(key, 5)[0], 64)
    after = metrics["memory"]
    np.testing.assert_array_equal(after["counts"] - 2, np.bincount(drawn, minlength=1000))
    _, evaluated = t.loss(params, {"memory": memory}, raw, key, False)
    assert "memory" not in evaluated
    assert t.memory()["losses"].shape == (1000, 2) and task().memory() == {}


class Leaky(nn.Module):
    """The input through dropout."""

    @nn.compact
    def __call__(self, x, noise, cond):
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


def test_dropout_acts_in_training_only():
    t = task(model=Leaky(), scale=scales.X0())
    params, raw, key = t.init(jax.random.key(0), batch(2)), batch(16), jax.random.key(1)
    trained, evaluated = (t.loss(params, None, raw, key, train)[0] for train in (True, False))
    assert abs(trained - evaluated) > 1e-2
    x, cond = raw["image"], t.embed(params, raw)
    np.testing.assert_array_equal(t.denoiser(params)(x, jnp.int32(5), cond, key).x0, x)


def test_an_upsampler_is_trained_on_images_alone():
    t = task(cond=LowRes(2, augment=0.3, width=4))
    assert t.needs == () and t.num_classes == 0
    raw = {"image": batch(4)["image"]}
    params = t.init(jax.random.key(0), raw)
    loss, _ = t.loss(params, None, raw, jax.random.key(1), True)
    assert np.isfinite(loss)
    with pytest.raises(ConfigError, match="unknown condition to drop 'low_res'"):
        task(cond=LowRes(2), drop=FrozenDict(low_res=0.1))


VAE = Autoencoder(KL(channels=1, latent=2, width=8, mults=(1, 2), depth=1, groups=4), (8, 8, 1), scale=2.0)
LATENT = task(model=Zero(2), shape=(4, 4, 2), first_stage=VAE)
PICTURES = {"image": np.zeros((2, 8, 8, 1), np.float32), "label": np.zeros(2, np.int32)}


def test_pictures_are_drawn_as_latents_on_the_way():
    key = jax.random.key(1)

    @jax.jit
    def both():
        params = VAE.init(jax.random.key(0), PICTURES)
        eps = jax.random.normal(key, (2, 4, 4, 2))
        prepared = LATENT.prepare(PICTURES, {"first_stage": params}, key)
        return prepared["image"], VAE.encode(params, PICTURES["image"], eps)

    np.testing.assert_array_equal(*both())
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


def test_a_label_beyond_the_table_and_another_batch_are_refused():
    """NaN, and a shape that XLA would complain of, without these checks."""
    labelled = task()
    params = labelled.init(jax.random.key(0), batch(2))
    for label in ([0, 4], [-1, 0]):
        with pytest.raises(ConfigError, match=r"label (4|-1) is outside 0 ... 2"):
            labelled.embed(params, {"label": jnp.asarray(label)})
    assert labelled.embed(params, {"label": np.array([2, 3])})["vec"].shape == (2, 4)             # 3 is the null label
    with pytest.raises(ConfigError, match="label 3 is outside"):
        dataclasses.replace(labelled, cond=Label(3, 4, null_row=False)).embed(params, {"label": np.array([3])})
    cond = labelled.embed(params, {"label": jnp.zeros(3, int)})
    with pytest.raises(ConfigError, match="x is a batch of 2, 'vec' of the condition one of 3"):
        labelled.denoiser(params)(jnp.zeros((2, 4, 4, 1)), jnp.int32(5), cond, jax.random.key(0))
