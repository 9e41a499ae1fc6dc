"""What denoising tasks share: the loss at known values, drops, dropout, and what is refused."""
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
from diffusion_jax.models.cond import Label
from diffusion_jax.models.glide import Text
from tasks.zero_task import Zero, batch, task


@pytest.mark.parametrize(
    ("process", "scale", "times"),
    [pytest.param(DDPM(), scales.Eps(), Uniform(), marks=pytest.mark.slow),
     pytest.param(DDPM(), scales.V(), Uniform(), marks=pytest.mark.slow),
     (Flow(), scales.Velocity(), Uniform()), (EDM(), scales.EDM(1.0), LogNormal())],
    ids=["eps", "v", "velocity", "edm"],
)
def test_a_zero_network_has_the_variance_of_its_target_as_loss(process, scale, times):
    t = task(process=process, scale=scale, times=times)
    params = jax.jit(t.init)(jax.random.key(0), batch(2))
    loss, terms = jax.jit(t.loss, static_argnums=4)(params, {}, batch(), jax.random.key(1), True)
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


class Guess(nn.Module):
    """An uncertainty that is the same at every noise."""

    @nn.compact
    def __call__(self, noise):
        return jnp.zeros_like(noise) + self.param("u", nn.initializers.constant(0.5), ())


def test_the_weight_and_the_uncertainty_of_the_loss():
    """Zero for eps misses it by |eps|^2; MinSNR's weight is min(snr, 5) / snr."""
    t = task(weight=losses.MinSNR(5.0), uncertainty=Guess())
    raw, steps = batch(4), jnp.array([0, 100, 500, 999])
    params, eps = t.init(jax.random.key(0), raw), np.random.default_rng(1).normal(size=(4, 4, 4, 1)).astype(np.float32)
    terms = jax.jit(t.terms)(params, raw, steps, eps)
    mse = np.mean(eps**2, axis=(1, 2, 3))
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.asarray(steps)]
    weight = np.minimum(bar / (1 - bar), 5) / (bar / (1 - bar))
    np.testing.assert_allclose(terms["mse"], mse, rtol=1e-3)
    np.testing.assert_allclose(terms["uncertainty"], 0.5)
    np.testing.assert_allclose(terms["loss"], weight * mse * np.exp(-0.5) + 0.5, rtol=1e-3)


def test_guidance_leads_away_from_the_null_condition_or_a_negative_text():
    raw = {"label": np.array([0, 2])}
    assert task().away(raw)["label"].tolist() == [3, 3]
    tokens = np.array([[1, 2], [3, 4]])
    assert (task().away({**raw, "negative": tokens})["tokens"] == tokens).all()


def a_text():
    """A task under a text, whose pooled embedding and whose tokens are dropped each by itself, and a batch of 4,096."""
    t = task(cond=Text(vocab=8, context=3, width=8, layers=1, heads=2, out=4), drop=FrozenDict(vec=0.3, seq=0.6))
    raw = {"image": batch()["image"], "tokens": jnp.tile(jnp.arange(6, dtype=jnp.int32).reshape(2, 3), (2048, 1))}
    return t, raw, {"model": {}, "cond": t.cond.init(jax.random.key(0), raw)["params"]}


@pytest.mark.parametrize("label", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "label"])
def test_a_pooled_text_and_its_tokens_are_dropped_each_at_its_rate(label):
    t, raw, params = a_text()
    raw |= {"label": jnp.zeros(4096, jnp.int32)} if label else {}
    draws = dict(zip(t.drop, jax.random.uniform(jax.random.key(1), (2, 4096)), strict=True))
    dropped = t.embed(params, t.dropped(raw, draws))
    whole, null = (t.cond.apply({"params": params["cond"]}, part) for part in (raw, t.cond.null(raw)))
    shares = {}
    for name, rate in t.drop.items():
        axes = tuple(range(1, whole[name].ndim))
        is_null = np.asarray(jnp.all(jnp.abs(dropped[name] - null[name]) < 1e-6, axis=axes))
        np.testing.assert_allclose(dropped[name][~is_null], whole[name][~is_null], rtol=1e-5, atol=1e-6)
        shares[name] = is_null
        assert abs(is_null.mean() - rate) < 0.03
    assert abs((shares["vec"] & shares["seq"]).mean() - 0.18) < 0.03                              # each by itself


def test_the_null_of_a_text_is_made_once_for_all_examples():
    t, raw, _ = a_text()
    assert {name: len(value) for name, value in t._alike(raw | {"label": raw["tokens"][:, 0]}).items()} == {"tokens": 1}
    assert len(t._alike(raw | {"sizes": jnp.zeros((4096, 6))})["tokens"]) == 4096                  # the null may keep these


def test_a_part_that_the_conditioner_does_not_make_cannot_be_dropped():
    t = task(drop=FrozenDict(seq=0.5))
    params = jax.jit(t.init)(jax.random.key(0), batch(2))
    with pytest.raises(ConfigError, match="task.drop has 'seq', this conditioner makes .'vec'."):
        t.loss(params, {}, batch(2), jax.random.key(0), True)
